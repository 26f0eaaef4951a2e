"""extractor: the engine. Train weight-sparse GPTs, bridge dense models into them, find and check circuits.

The public surface, one name per stage; torch is imported when a stage is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extractor.bridges.train import train_bridges
    from extractor.checkpoint_import import import_checkpoint
    from extractor.circuit import Circuit
    from extractor.data.corpus import build_corpus
    from extractor.pipeline import run_job
    from extractor.pruning.engine import find_circuits
    from extractor.report import write_report
    from extractor.request import circuit_job, train_job
    from extractor.sparse.inference import sparsify
    from extractor.sparse.train import train_sparse
    from extractor.specs import JobSpec
    from extractor.validation import validate

_HOME = {
    "Circuit": "extractor.circuit",
    "JobSpec": "extractor.specs",
    "build_corpus": "extractor.data.corpus",
    "circuit_job": "extractor.request",
    "find_circuits": "extractor.pruning.engine",
    "import_checkpoint": "extractor.checkpoint_import",
    "run_job": "extractor.pipeline",
    "sparsify": "extractor.sparse.inference",
    "train_bridges": "extractor.bridges.train",
    "train_job": "extractor.request",
    "train_sparse": "extractor.sparse.train",
    "validate": "extractor.validation",
    "write_report": "extractor.report",
}

__all__ = [
    "Circuit",
    "JobSpec",
    "build_corpus",
    "circuit_job",
    "find_circuits",
    "import_checkpoint",
    "run_job",
    "sparsify",
    "train_bridges",
    "train_job",
    "train_sparse",
    "validate",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'extractor' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
