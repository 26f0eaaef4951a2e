"""What a circuit is and what it computes. Paper: Sec. 2.2.

circuit.py           Node, Edge, Calibration, Circuit: values that become JSON. No torch;  guesses.py: errors for names that do not exist
sites.py             names and widths of sites. No torch
graph.py             which nodes and edges are on, as masks; edges counted exactly; nodes on no live path removed
masks.py             what the two implementations below share
reference.py         the definition of a masked model: what replaces ablated nodes and edges. One mask set at a time
layers.py network.py the fast implementation, many mask sets at once
prompt_network.py    the same where replacement values differ from prompt to prompt, and of further blocks (gates, rotary
                     positions);  prompt_values.py: these values;  prompt_bases.py: what follows from them alone
conditions.py        what ablated nodes may be: five conditions under which a circuit is validated
calibration.py       scale and shift of the logit difference;  scorer.py: losses of many circuits on one batch
mean_activations.py  the mean of every node, its value under mean ablation;  node_labels.py: the tokens a node reads and writes
compiled.py          a circuit that runs without its model

Doors: all but masks and layers.
"""
