"""The cost of a job, computed before it starts. Loads no torch.

bridging.py      parameters, memory and operations of a bridging;  text.py: the same as text and JSON
constants.py     the constants of the cost model
memory.py        bytes that a job needs, by which the queue chooses workers;  hardware.py: available memory, measured speed
parts.py         the parts of a job with their seconds;  time_left.py: the time left of a running job, by its events
units.py         counts, bytes and seconds as text
"""
