"""Grids of trainings.

grid.py      from a request to points, each one job;  jobs.py: queue them, follow them
claims.py    what the results say;  frontier.py: their picture;  page.py: their page
"""
