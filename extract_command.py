"""The `extract` program. Its name is its own: a worker.py or tasks.py on PYTHONPATH must not come before the packages of this project."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run `worker.cli`."""
    here = str(Path(__file__).resolve().parent)
    sys.path.insert(0, here)
    import worker  # noqa: F401 - from here on, all packages of this project are found beside it

    sys.path.remove(here)
    from worker.cli import main as run

    run()


if __name__ == "__main__":
    main()
