"""A job's log: log.jsonl in its folder, one JSON object a line, whoever had the job and however often.

    time      seconds since 1970                  source    'engine': its stderr, and the notes among its events; 'worker': ours
    attempt   from 1                              message   without control characters and secrets
    level     'info', 'warning' or 'error'

The engine writes its stderr to engine.log by itself, so that nothing is lost with its supervisor; we copy it from there. Both files have a
bounded size. Nothing about a log ever fails a job.
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

RAW_BYTES = 4 << 20  # engine.log is emptied when it is longer, and copied
COPY_SECONDS = 0.3
_PIECE = 1 << 18  # bytes copied at once; a longer line is cut
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ERROR = re.compile(r"Traceback \(most recent call last\)|([\w.]+\.)?\w*(Error|Exception|Interrupt)\b")
_WARNING = re.compile(r"\bwarn(ing)?\b|\w+Warning\b", re.IGNORECASE)

_worker = logging.getLogger("extract")
_engine = logging.getLogger("extract.engine")
_engine.propagate = False  # what engines say is for their jobs' logs, not for the worker's own
_engine.setLevel(logging.INFO)


class JobLog:
    """While its block runs, what this process logs, and what the engine writes to FOLDER/engine.log, goes to the job's log as well.

    url: of the Redis in use, whose password no log may hold.
    """

    def __init__(self, job: str, folder: Path, attempt: int, url: str) -> None:
        secrets = [urlsplit(url).password, *(os.environ.get(name) for name in _SECRETS)]
        self._folder, self._attempt = folder, attempt
        self._handler = _File(folder / NAME, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True)
        self._handler.setFormatter(_Lines(job, attempt, secrets))

    def __enter__(self) -> JobLog:
        with contextlib.suppress(OSError):  # who needs the folder for more will complain
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
        """The engine has ended: what it wrote comes before what is said of its end."""
        self._copy.copy(everything=True)


def hear(event: Mapping[str, Any]) -> None:
    """Log an event of the engine, if it is one that a reader of logs wants: stages, notes and checkpoints."""
    kind = event["event"]
    if kind == "stage":
        _engine.info("stage %s of %s: %s", event.get("index"), event.get("of"), event.get("stage"))
    elif kind == "note":
        _engine.info("%s", event.get("message"))
    elif kind == "checkpoint":
        _engine.info("checkpoint at step %s of %s", event.get("step"), event.get("stage"))


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A folder that cannot be written, or a full disk: the line is lost, the job goes on."""


class _Lines(logging.Formatter):
    """A record as a JSON line."""

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
    """Copies new lines of engine.log. How far it came stands beside that file, for the next attempt, whatever becomes of this one."""

    def __init__(self, raw: Path, attempt: int) -> None:
        super().__init__(name="engine log", daemon=True)
        self._raw, self._mark = raw, raw.with_name(raw.name + ".read")
        self._finishing, self._copying = threading.Event(), threading.Lock()
        self._offset, self._attempt = self._recall() or (0, attempt)
        if self._attempt != attempt:
            self.copy(everything=True)  # what nobody copied when that attempt was lost
            self._attempt = attempt
        self._remember()

    def run(self) -> None:
        while not self._finishing.wait(COPY_SECONDS):
            self.copy()

    def finish(self) -> None:
        """Copy what is left: the engine has ended."""
        self._finishing.set()
        self.join()
        self.copy(everything=True)

    def _recall(self) -> tuple[int, int] | None:
        try:
            offset, attempt = self._mark.read_text().split()
            return int(offset), int(attempt)
        except (OSError, ValueError):
            return None

    def _remember(self) -> None:
        with contextlib.suppress(OSError):
            self._mark.write_text(f"{self._offset} {self._attempt}")

    def copy(self, everything: bool = False) -> None:
        """Copy whole lines that are new; with `everything` the last need not be whole."""
        with self._copying, contextlib.suppress(OSError):  # no such file yet, or a full disk
            while piece := self._next_piece(everything):
                for line in piece.decode(errors="replace").split("\n"):
                    _tell(line, self._attempt)
                self._offset += len(piece)
                self._remember()
            if self._offset > RAW_BYTES and self._raw.stat().st_size == self._offset:
                os.truncate(self._raw, 0)  # a line written at this very moment may go with it
                self._offset = 0
                self._remember()

    def _next_piece(self, everything: bool) -> bytes:
        with open(self._raw, "rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:  # emptied meanwhile
                self._offset = 0
            file.seek(self._offset)
            piece = file.read(_PIECE)
        whole = piece[: piece.rfind(b"\n") + 1]
        return whole or (piece if everything or len(piece) == _PIECE else b"")


def _tell(line: str, attempt: int) -> None:
    line = line.rstrip().rpartition("\r")[2]  # of a bar that was redrawn, how it was last
    if line:
        level = logging.ERROR if _ERROR.match(line) else logging.WARNING if _WARNING.search(line) else logging.INFO
        _engine.log(level, "%s", line, extra={"attempt": attempt})
