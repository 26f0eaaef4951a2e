"""The processes that make attempts.

worker.py     one worker: a Celery consumer in this process;  machine.py: several, one on each GPU
local.py      the worker that a client starts on its own machine;  devices.py: GPUs and memory
vitals.py     what a worker reports about itself;  caretaker.py: lost jobs come back
"""
