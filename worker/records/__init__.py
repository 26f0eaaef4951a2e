"""Redis as the truth about jobs: records, their transitions (Lua), their counts.

records.py       access to job records and workers;  transitions.py: every change of state, atomic
counts.py        jobs by state, waiting times, ages of leases
"""
