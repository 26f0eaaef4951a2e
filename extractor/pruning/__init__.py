"""Finding the smallest circuit that does a task. Paper: Sec. 2.2, App. A.5.

prune.py       find_circuits: start, eliminate, choose the candidate with fewest edges. Read this first
starts.py      where elimination starts: prefixes of rankings;  race.py: which rankings, and whether another one pays
standards.py   the circuits of a task by the paper's standard and by the robust one
problem.py     the model, the pairs, the target;  elements.py: nodes or edges, one by one
algorithms/    rankings, one file each;  mask_sets.py: populations of learned masks
criteria.py    when a circuit counts;  choose.py: the candidate, and which of its edges can still go
bisection.py   the smallest prefix of a ranking that meets the target
eliminate.py   removes nodes or edges step by step; every step is a candidate

Doors: prune, standards, criteria, choose, problem, algorithms.
"""
