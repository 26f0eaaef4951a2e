"""Edits of one sparse node carried into the dense model. Paper: App. A.4.

edit.py      the edit of a node, and what it adds to the dense model
evaluate.py  how often edits flip the dense model's answer, compared with random directions
prompt.py    `extract steer`: edits on one prompt of the user's
"""
