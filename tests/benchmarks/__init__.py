"""Speed and memory, measured: `python -m tests.benchmarks NAME [--json]`.

Each benchmark is a module here with a function `rows(threads)` that yields rows. A value is a ratio of two things of one run; a goal
says which side of it is good.
"""
