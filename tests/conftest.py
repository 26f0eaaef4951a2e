"""Fixtures for all tests; support/worlds.py makes them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: several test processes share the cores

from worlds import cache, corpus, env, fresh_python, gpt2, gpt2_folder, tokenizer

__all__ = ["cache", "corpus", "env", "fresh_python", "gpt2", "gpt2_folder", "tokenizer"]

LONGEST = (
    "test_main_job",
    "test_pipeline",
    "test_frozen",
    "test_planted",
    "test_lora_circuit",
    "test_real_engine",
    "test_storage",
    "test_engine_process",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that at the end no process waits for another's."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
