"""Sweeps: grids of trainings with circuits, and their frontier.

grid.py      from a request to points, each one job;  jobs.py: queue and follow the jobs. Read this first
claims.py    tests of the paper's claims on the results;  frontier.py: the plot;  page.py: the page
"""
