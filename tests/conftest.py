"""Fixtures for all tests; what they are made of is in worlds.py."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: several test processes share the cores

from worlds import cache, corpus, env, fresh_python, gpt2, gpt2_folder, tokenizer

__all__ = ["cache", "corpus", "env", "fresh_python", "gpt2", "gpt2_folder", "tokenizer"]
