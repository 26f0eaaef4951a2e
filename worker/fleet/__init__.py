"""The processes that run jobs.

worker.py     one worker: a Celery consumer in this process. Read this first;  machine.py: several workers, for example one per GPU
local.py      the worker that a command starts on its own machine;  devices.py: GPUs and memory
vitals.py     what a worker announces about itself;  caretaker.py: recovers lost jobs
"""
