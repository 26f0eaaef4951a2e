"""A job from its spec to its manifest.

run.py            run_job: read this first
request.py        from a user's request to a checked spec. No torch
bridge_choice.py  whether a bridging starts from the dense weights, by config.json. No torch
job.py            one running job: spec, folder, stages;  clock.py: its times;  output.py: its output folder. No torch
context.py        values that the stages of a circuit job pass on
train_job.py      a model from scratch;  circuit_job.py: circuits of a given model
bridge_stage.py   makes model/ from the given model;  bridged_cache.py: cache of bridged models for other jobs
find_circuit.py   splits -> prune -> validate -> report;  circuit_files.py: writes circuits/TASK/
page_data.py      what the page shows token by token;  live_data.py: with which it runs the circuit
check_tasks.py    how well a model does each task
cost/             memory and time that a job needs

Doors: run, request, bridge_choice, output, bridged_cache, check_tasks, cost.

The package can be called: `extractor.jobs()` lists the jobs of the service (`extractor.results.listed`). A package of this name would
hide a function of this name, whichever is loaded last.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    def __call__(self, limit: int = 50, all: bool = False) -> Any:
        """`extractor.results.listed.jobs`: the newest jobs of the service; all: include those of batches and sweeps."""
        return importlib.import_module("extractor.results.listed").jobs(limit, all)


sys.modules[__name__].__class__ = _CallableRoom
