"""Many models, many tasks: one request, one job for each pair.

sources.py     the models that a request names: files, folders, the hub (hub_search.py)
selection.py   which of them are taken, and why not;  request.py: from words to a request
batch.py       queue, follow, cancel;  results.py: the summary;  page.py: its page
"""
