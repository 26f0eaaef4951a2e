"""The engine as a process: runs one spec, writes a result folder, reports progress as JSON lines. No queue.

    python -m extractor SPEC.json --out DIR [--threads N] [--bridged DIR] [--guard]

Standard output has one JSON object per line (events: stage, progress, checkpoint, note, done, error). On SIGTERM or SIGINT the process
saves a checkpoint and exits with 75; the same command resumes. With --guard it exits when its standard input is closed, so that no engine
outlives its supervisor. Exit codes: 0 done (manifest.json exists), 75 stopped, otherwise those of `extractor.errors`.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
from pathlib import Path

from extractor.errors import ExtractorError, UsageError
from extractor.progress import Progress, Stopped, emit
from extractor.spec.limits import MAX_THREADS

STOPPED = 75
CHECKPOINT_SECONDS = "EXTRACT_CHECKPOINT_SECONDS"  # the environment variable that sets the time between two checkpoints


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m extractor", description="Run one job spec in this process.")
    parser.add_argument("spec", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=_threads, default=os.cpu_count())
    parser.add_argument("--bridged", type=Path, help="folder in the cache of bridged models: read if it exists, else written")
    parser.add_argument("--guard", action="store_true", help="exit when standard input is closed")
    arguments = parser.parse_args(argv)
    # OpenMP reads it when torch is imported. Threads that wait for each other give way: beside one busy process two threads keep half of
    # their rate instead of a third, and lose nothing on a quiet machine (tests/benchmarks, contention).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if arguments.guard:
        threading.Thread(target=_exit_with_supervisor, daemon=True).start()
    try:
        from extractor.jobs.run import run_job
        from extractor.spec.schema import read_job

        progress = Progress(emit, stop.is_set, _checkpoint_seconds())
        run_job(read_job(arguments.spec), arguments.out, progress, arguments.threads, arguments.bridged)
    except Stopped:
        return STOPPED
    except ExtractorError as error:
        emit({"event": "error", "type": type(error).__name__, "message": str(error)})
        return error.exit_code
    emit({"event": "done"})
    return 0


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:20]) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_THREADS:,}")
    return int(text)


def _checkpoint_seconds() -> float:
    text = os.environ.get(CHECKPOINT_SECONDS) or "20"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{CHECKPOINT_SECONDS}={text!r} is not a number of seconds; correct it or unset it")
    return seconds


def _exit_with_supervisor() -> None:
    while os.read(0, 4096):
        pass
    os._exit(STOPPED)  # immediately: another worker may already own this folder


if __name__ == "__main__":
    sys.exit(main())
