"""Is the circuit real? Controls on held-out pairs. Paper: Sec. 3.1, App. E and F.

validate.py      all checks in order, and the report of their numbers. Read this first
ablations.py     mean, zero and resample ablation;  binarise.py: every node replaced by two values
edge_effects.py  each edge removed alone;  activations.py: percentiles of every node over text
null_search.py   the same search where there is nothing to find;  random_circuits.py: p-values against random live circuits
adversarial.py   ablated nodes chosen by an adversary, kept nodes as in the full model;  faithfulness_curve.py: CPR and CMD
roles.py         each node's value and each head's pattern in the circuit and in the full model
seeds.py         overlap of circuits from several seeds

Doors: validate.
"""
