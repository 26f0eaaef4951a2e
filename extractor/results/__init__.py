"""A finished result as Python objects, for notebooks and scripts.

result.py      load: a result folder -> Result: circuit, numbers, model, prompts; extract: make one
asked.py       what a user asks of a circuit on a prompt, checked
compare.py     two results: what their circuits share
prompt_run.py  the circuit on one prompt, with nodes switched off, patched or scaled

Doors: result, compare.
"""
