"""The progress bar of a download from storage, on stderr if that is a terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnProgress = Callable[[int, int], None]


@contextmanager
def fetching(job: str) -> Iterator[OnProgress]:
    """Yield a function that advances the bar: its arguments are new bytes and total bytes. Any thread may call it.

    The bar appears with the first call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console, lock = Console(stderr=True), threading.Lock()
    columns = (TextColumn(f"fetching {job}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def on_progress(count: int, total: int) -> None:
        with lock:
            if not progress.task_ids:
                progress.start()
                progress.add_task("", total=total)
            progress.advance(progress.task_ids[0], count)

    try:
        yield on_progress
    finally:
        progress.stop()
