"""Output of commands for people, one file per subject: plain lines in a pipe, live tables and bars in a terminal.

live.py      what watched batches and sweeps share: a redrawn table, or a line per change
verdicts.py  the lines below the table of a job's result
job.py batch.py sweep.py status.py cost.py transfer.py
"""
