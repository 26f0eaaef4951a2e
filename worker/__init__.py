"""The service: queues jobs, runs the engine as a supervised process, stores results.

Only this package uses Celery, Redis and click. It does not import torch; the engine runs in its own process.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OWN_PACKAGES = ("extractor", "tasks", "worker")


class OwnPackages:
    """Finds this project's packages beside this one, whatever modules of the same names PYTHONPATH names."""

    @classmethod
    def find_spec(cls, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(Path(__file__).parent.parent)]) if name in OWN_PACKAGES else None


sys.meta_path.insert(0, OwnPackages)
