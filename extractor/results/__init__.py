"""A finished result as Python objects, for notebooks and scripts.

result.py      load: a result folder or a job -> Result: circuit, numbers, model, prompts. Read this first
places.py      where a result is: a folder, or a job of the service, which is reached by its name. No torch
listed.py      jobs: the jobs of the service. No torch
extracting.py  extract: run a job in this process, and load its result
held_out.py    the prompts on which a circuit was measured
asked.py       what a user asks of a circuit on a prompt, checked
prompt_run.py  the circuit on one prompt, with nodes switched off, patched or scaled
compare.py     two results: what their circuits share;  compared.py: the same of results, folders or jobs, for a notebook
motifs.py      small subgraphs over circuits, against shuffles; motif_forms, motif_graph, motif_shuffles, motif_counts. No torch
rows.py        tables;  shown.py: the picture, the page in a browser

Doors: result, compare, motifs.
"""
