"""Batches: one request for many models and tasks, one job per model and task.

request.py     from the command line to a batch
sources.py     the candidate models: files, folders, hub searches (hub_search.py);  selection.py: accepts or rejects each
batch.py       queue, follow, cancel. Read this first;  results.py: the summary;  page.py: its page
"""
