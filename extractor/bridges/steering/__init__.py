"""Edits of one sparse node carried into the dense model. Paper: App. A.4.

edit.py      the edit of a node, and its change at each site of the dense model
evaluate.py  how often edits flip the dense model's answer, beside random directions
prompt.py    `extract steer`: one prompt of the user's
"""
