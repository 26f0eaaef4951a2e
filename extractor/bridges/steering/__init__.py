"""Edits of one sparse node carried into the dense model. Paper: App. A.4.

edit.py      the edit of a node, and what it adds to the dense model
trials.py    the prompts on which edits are tried, and a model's odds on them
causal.py    whether an edit does in the dense model what it does in the sparse one
evaluate.py  how edits of a node, and of the nodes of a site, move the dense model's answer, compared with random directions
ranking.py   the nodes of the sparse model that are worth trying
few_nodes.py a set of at most five nodes, and how many answers it flips
prompt.py    `extract steer`: edits on one prompt of the user's
"""
