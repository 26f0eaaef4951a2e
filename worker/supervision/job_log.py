"""A job's log: log.jsonl in its folder, one JSON object per line, for all attempts on any worker.

    time      seconds since 1970                  source    'engine': its stderr and some of its events; 'worker': its supervisor
    attempt   from 1                              message   without control characters and secrets
    level     'info', 'warning' or 'error'

The engine writes its stderr to engine.log directly, so that nothing is lost when its supervisor dies; this module copies it from there.
Both files have a bounded size. An error of logging never fails a job.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from worker.storage.layout import BACKUPS, MAX_BYTES, NAME

RAW_BYTES = 4 << 20  # engine.log is truncated when it is longer and fully copied
COPY_SECONDS = 0.3
_PIECE = 1 << 18  # bytes copied at once; a longer line is split
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ERROR = re.compile(r"Traceback \(most recent call last\)|([\w.]+\.)?\w*(Error|Exception|Interrupt)\b")
_WARNING = re.compile(r"\bwarn(ing)?\b|\w+Warning\b", re.IGNORECASE)

_worker = logging.getLogger("extract")
_engine = logging.getLogger("extract.engine")
_engine.propagate = False  # engine messages go to the job's log only, not to the worker's
_engine.setLevel(logging.INFO)


class JobLog:
    """Inside its `with` block, copies this process's log messages and FOLDER/engine.log to the job's log.

    url: the Redis URL, whose password is masked in the log.
    """

    def __init__(self, job: str, folder: Path, attempt: int, url: str) -> None:
        secrets = [urlsplit(url).password, *(os.environ.get(name) for name in _SECRETS)]
        self._folder, self._attempt = folder, attempt
        self._handler = _File(folder / NAME, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True)
        self._handler.setFormatter(_Lines(job, attempt, secrets))

    def __enter__(self) -> JobLog:
        with contextlib.suppress(OSError):  # `Attempt` reports a folder that cannot be created
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for logger in (_worker, _engine):
            logger.addHandler(self._handler)
        self._copy = _Copy(self._folder / "engine.log", self._attempt)
        self._copy.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._copy.finish()
        for logger in (_worker, _engine):
            logger.removeHandler(self._handler)
        self._handler.close()

    def catch_up(self) -> None:
        """Copy all that the engine has written, before the worker logs the engine's end."""
        self._copy.copy(everything=True)


def log_event(event: Mapping[str, Any]) -> None:
    """Log an event of the engine if it is a stage, a note or a checkpoint."""
    kind = event["event"]
    if kind == "stage":
        _engine.info("stage %s of %s: %s", event.get("index"), event.get("of"), event.get("stage"))
    elif kind == "note":
        _engine.info("%s", event.get("message"))
    elif kind == "checkpoint":
        _engine.info("checkpoint at step %s of %s", event.get("step"), event.get("stage"))


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """On a write error, such as a full disk, drop the line; the job continues."""


class _Lines(logging.Formatter):
    """Formats a log record as a JSON line."""

    def __init__(self, job: str, attempt: int, secrets: Iterable[str | None]) -> None:
        super().__init__()
        self._prefix, self._attempt = f"job {job}: ", attempt
        self._secrets = {form for secret in secrets if secret for form in (secret, unquote(secret))}

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record).removeprefix(self._prefix)
        for secret in self._secrets:
            message = message.replace(secret, "***")
        source = "engine" if record.name == _engine.name else "worker"
        facts = {"time": round(record.created, 3), "level": record.levelname.lower(), "attempt": getattr(record, "attempt", self._attempt)}
        return json.dumps(facts | {"source": source, "message": _CONTROL.sub("", message)})


class _Copy(threading.Thread):
    """Copies new lines of engine.log. A file beside it stores the offset, so that the next attempt can continue after a crash."""

    def __init__(self, raw: Path, attempt: int) -> None:
        super().__init__(name="engine log", daemon=True)
        self._raw, self._mark = raw, raw.with_name(raw.name + ".read")
        self._finishing, self._copying = threading.Event(), threading.Lock()
        self._offset, self._attempt = self._load_offset() or (0, attempt)
        if self._attempt != attempt:
            self.copy(everything=True)  # lines that were not copied before the earlier attempt was lost
            self._attempt = attempt
        self._store_offset()

    def run(self) -> None:
        while not self._finishing.wait(COPY_SECONDS):
            self.copy()

    def finish(self) -> None:
        """Copy the rest, after the engine has ended."""
        self._finishing.set()
        self.join()
        self.copy(everything=True)

    def _load_offset(self) -> tuple[int, int] | None:
        try:
            offset, attempt = self._mark.read_text().split()
            return int(offset), int(attempt)
        except (OSError, ValueError):
            return None

    def _store_offset(self) -> None:
        with contextlib.suppress(OSError):
            self._mark.write_text(f"{self._offset} {self._attempt}")

    def copy(self, everything: bool = False) -> None:
        """Copy new complete lines; with `everything` also an incomplete last line."""
        with self._copying, contextlib.suppress(OSError):  # no such file yet, or a full disk
            while piece := self._next_piece(everything):
                for line in piece.decode(errors="replace").split("\n"):
                    _log_line(line, self._attempt)
                self._offset += len(piece)
                self._store_offset()
            if self._offset > RAW_BYTES and self._raw.stat().st_size == self._offset:
                os.truncate(self._raw, 0)  # may lose a line written between the two calls
                self._offset = 0
                self._store_offset()

    def _next_piece(self, everything: bool) -> bytes:
        with open(self._raw, "rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:  # truncated meanwhile
                self._offset = 0
            file.seek(self._offset)
            piece = file.read(_PIECE)
        complete = piece[: piece.rfind(b"\n") + 1]
        return complete or (piece if everything or len(piece) == _PIECE else b"")


def _log_line(line: str, attempt: int) -> None:
    line = line.rstrip().rpartition("\r")[2]  # keep only the last state of a redrawn progress bar
    if line:
        level = logging.ERROR if _ERROR.match(line) else logging.WARNING if _WARNING.search(line) else logging.INFO
        _engine.log(level, "%s", line, extra={"attempt": attempt})
