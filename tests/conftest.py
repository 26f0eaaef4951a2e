"""Fixtures for all tests; what they are made of is in worlds.py."""

from worlds import cache, corpus, env, fresh_python, gpt2, gpt2_folder, tokenizer

__all__ = ["cache", "corpus", "env", "fresh_python", "gpt2", "gpt2_folder", "tokenizer"]
