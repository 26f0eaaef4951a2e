"""extractor: the engine. Train weight-sparse GPTs, bridge dense models into them, find and check circuits.

The public names, one per stage. Importing the package loads no torch; the first use of a stage does.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extractor.bridges.train import train_bridges
    from extractor.circuits.circuit import Circuit
    from extractor.data.build_corpus import build_corpus
    from extractor.jobs.request import circuit_job, train_job
    from extractor.jobs.run import run_job
    from extractor.models.openai_import import import_checkpoint
    from extractor.pruning.prune import find_circuits
    from extractor.report.page import write_report
    from extractor.results.compared import compare
    from extractor.results.extracting import extract
    from extractor.results.listed import jobs
    from extractor.results.result import Result, load
    from extractor.sparse.kernels import sparsify
    from extractor.spec.schema import JobSpec
    from extractor.training.train_sparse import train_sparse
    from extractor.validation.validate import validate

_HOME = {
    "Circuit": "extractor.circuits.circuit",
    "JobSpec": "extractor.spec.schema",
    "Result": "extractor.results.result",
    "build_corpus": "extractor.data.build_corpus",
    "circuit_job": "extractor.jobs.request",
    "compare": "extractor.results.compared",
    "extract": "extractor.results.extracting",
    "find_circuits": "extractor.pruning.prune",
    "import_checkpoint": "extractor.models.openai_import",
    "jobs": "extractor.jobs",  # a package that can be called, so that it does not hide a function
    "load": "extractor.results.result",
    "run_job": "extractor.jobs.run",
    "sparsify": "extractor.sparse.kernels",
    "train_bridges": "extractor.bridges.train",
    "train_job": "extractor.jobs.request",
    "train_sparse": "extractor.training.train_sparse",
    "validate": "extractor.validation.validate",
    "write_report": "extractor.report.page",
}

__all__ = [
    "Circuit",
    "JobSpec",
    "Result",
    "build_corpus",
    "circuit_job",
    "compare",
    "extract",
    "find_circuits",
    "import_checkpoint",
    "jobs",
    "load",
    "run_job",
    "sparsify",
    "train_bridges",
    "train_job",
    "train_sparse",
    "validate",
    "write_report",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _HOME:
        home = importlib.import_module(_HOME[name])
        return home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    close = difflib.get_close_matches(name, __all__, 3, 0.5)
    raise AttributeError(f"module 'extractor' has no attribute {name!r}" + (f"; close: {', '.join(close)}" if close else ""))
