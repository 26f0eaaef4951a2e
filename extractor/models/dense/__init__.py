"""Dense architectures: how bridges read their residual stream and enter it. One file per architecture defines `DENSE`.

base.py    the interface;  gpt2.py, gpt_neo.py, llama.py: the architectures
start.py   whether a sparse GPT can start from a dense model's weights. No torch
"""
