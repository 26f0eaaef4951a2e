"""A job from its spec to its manifest.

run.py            run_job: read this first
request.py        from a user's request to a checked spec. No torch
bridge_choice.py  whether a bridging starts from the dense weights, by config.json. No torch
job.py            one running job: spec, folder, stages;  output.py: its output folder. No torch
context.py        values that the stages of a circuit job pass on
train_job.py      a model from scratch;  circuit_job.py: circuits of a given model
bridge_stage.py   makes model/ from the given model;  bridged_cache.py: cache of bridged models for other jobs
find_circuit.py   splits -> prune -> validate -> report;  circuit_files.py: writes circuits/TASK/
page_data.py      what the page shows token by token;  live_data.py: with which it runs the circuit
check_tasks.py    how well a model does each task
cost/             memory and time that a bridging needs

Doors: run, request, bridge_choice, output, bridged_cache, check_tasks, cost.
"""
