"""Job records in Redis: the state of every job, its transitions (Lua), counts.

records.py       job records and live workers. Read this first;  transitions.py: every change of state, atomic
counts.py        jobs by state, waiting times, ages of leases
"""
