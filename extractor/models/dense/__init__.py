"""Dense architectures: how bridges read their residual stream and enter it. One file per architecture defines `DENSE`.

base.py    the interface, and the supported types with those of installed packages
start.py   what config.json alone says: what cannot be bridged, and what a sparse GPT can start from. No torch
gpt2.py gpt_neo.py opt.py    a table of positions;  gpt_neox.py phi.py: parallel blocks
llama.py mistral.py qwen2.py qwen3.py gemma2.py    gated MLPs
"""
