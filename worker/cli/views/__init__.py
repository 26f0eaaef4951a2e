"""Output of commands for people, one file per subject: plain lines in a pipe, live tables and lines in a terminal.

live.py      what watched batches and sweeps share: a redrawn table, or a line per change
progress.py  what a job is doing, as text;  live_line.py: as one line of a terminal, redrawn
verdicts.py  the lines below the table of a job's result
circuit.py   a circuit drawn as text, one row per node; circuit_rows.py: the rows
job.py batch.py sweep.py status.py cost.py transfer.py
"""
