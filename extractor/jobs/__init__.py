"""A job from its spec to its manifest.

run.py            run_job: read this first
request.py        from what a user typed to a checked spec. No torch
job.py            one running job: spec, folder, stages;  output.py: its output folder. No torch
context.py        what the stages of a circuit job hand to each other
train_job.py      a model from scratch;  circuit_job.py: a given model and its circuits
bridge_stage.py   makes model/ from the given model;  bridged_cache.py: a finished bridging kept for other jobs
find_circuit.py   splits -> prune -> validate -> report;  circuit_files.py: writes circuits/TASK/
check_tasks.py    which tasks a model can do
cost/             what a bridging needs: memory, time

Doors: run, request, output, bridged_cache, check_tasks, cost.
"""
