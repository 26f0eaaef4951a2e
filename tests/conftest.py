"""Fixtures for all tests; support/worlds.py makes them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: several test processes share the cores

from worlds import cache, corpus, env, fresh_python, gpt2, gpt2_folder, tokenizer

__all__ = ["cache", "corpus", "env", "fresh_python", "gpt2", "gpt2_folder", "tokenizer"]

LONGEST = (
    "test_main_job",
    "test_pipeline",
    "test_storage",
    "test_planted",
    "test_real_engine",
    "test_prune",
    "test_lora_circuit",
    "test_jobs",
    "test_failures",
    "test_frozen",
    "test_engine_process",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that at the end no process waits for another's."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_runtest_setup(item):
    """The other processes of a test run give way to the one that runs the longest file: it decides when all are done."""
    if "PYTEST_XDIST_WORKER" in os.environ and item.path.stem != LONGEST[0] and os.nice(0) == 0:
        os.nice(5)
