"""Pruning: the smallest circuit of a model that does a task.

graph.py         what is on, nodes and edges;  elements.py: one kind or the other, one by one
reference.py     what a circuit computes, plainly;  network.py, layers.py: the same, fast, for many circuits at once;  plain.py: its twin
calibration.py   scale and shift of the margin;  judge.py: losses of many circuits, and the smallest k that will do
algorithms/      ways to rank nodes, one file each;  learned.py: populations of learned masks
eliminate.py     the cheapest elements go, one by one;  engine.py: all of it in order;  problem.py: what it is asked
"""
