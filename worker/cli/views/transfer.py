"""What people see while a result comes from storage: a bar on stderr, where that is a terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[int, int], None]


@contextmanager
def fetching(job: str) -> Iterator[Tell]:
    """Yields a function that is told the bytes that have come, of all; from any thread. The bar appears with the first."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console, lock = Console(stderr=True), threading.Lock()
    columns = (TextColumn(f"fetching {job}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def tell(count: int, whole: int) -> None:
        with lock:
            if not progress.task_ids:
                progress.start()
                progress.add_task("", total=whole)
            progress.advance(progress.task_ids[0], count)

    try:
        yield tell
    finally:
        progress.stop()
