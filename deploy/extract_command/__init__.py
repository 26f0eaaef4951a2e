"""The `extract` program. Its name is its own: a worker.py or tasks.py on PYTHONPATH must not come before the packages of this project."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents


def main() -> None:
    """Run `worker.cli`."""
    beside = str(next(place for place in HERE[1:3] if (place / "worker" / "cli").is_dir()))  # installed, or in a checkout's deploy/
    sys.path.insert(0, beside)
    import worker  # noqa: F401 - from here on, all packages of this project are found beside it

    sys.path.remove(beside)
    from worker.cli import main as run

    run()


if __name__ == "__main__":
    main()
