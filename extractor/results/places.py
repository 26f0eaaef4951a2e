"""Where a result is: in a folder that is named, or in that of a job of the service.

The service is reached by its name, since the engine imports no `worker`. It is loaded at the first question, which starts neither a worker
nor a server.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Protocol

from extractor import files
from extractor.errors import NotFound, ServiceUnavailable, UsageError

_DOOR = "worker.client.python"
_SERVICE = ("worker", "redis", "celery")  # packages that an installation of the engine alone lacks


class HasId(Protocol):
    """A job, as `extractor.jobs()` lists it."""

    @property
    def id(self) -> str: ...


def service() -> Any:
    """The module `worker.client.python`. Raises ServiceUnavailable where only the engine is installed."""
    try:
        return importlib.import_module(_DOOR)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SERVICE:
            raise
        raise ServiceUnavailable(
            f"the service is not installed here (no {error.name}), so there are no jobs; extractor.load(FOLDER) opens a result folder"
        ) from None


def place_of(given: str | os.PathLike[str] | HasId | None) -> Path:
    """The folder of a finished result: a folder, the id of a job, a listed job, or None, the newest finished job with a circuit.

    A folder goes before a job of the same name. Raises NotFound, UsageError for what is none of them, ServiceUnavailable.
    """
    if given is None:
        return Path(service().folder_of(service().newest_finished()))
    if not isinstance(given, str | os.PathLike):
        if not isinstance(job := getattr(given, "id", None), str):
            raise UsageError(f"a result is named by its folder or by the id of its job, not by {type(given).__name__}")
        return Path(service().folder_of(job))
    folder = Path(given).expanduser()
    if str(given) and folder.is_dir():
        return _checked(folder)
    if not isinstance(given, str) or os.sep in given or given.startswith("~"):
        problem = f"{folder} is a file" if folder.is_file() else f"there is no folder {str(given)!r}"
        raise NotFound(f"{problem}; name a result folder, or the id of a job")
    job, colon, task = given.partition(":")
    if colon:
        raise UsageError(f"{given!r} is neither a folder nor the id of a job; a task is the second argument, as in load({job!r}, {task!r})")
    return Path(service().folder_of(given))


def _checked(folder: Path) -> Path:
    """A folder that exists. Raises UsageError for a part of a result, NotFound where there is no finished one."""
    whole = folder.absolute().parent.parent
    if folder.absolute().parent.name == "circuits" and (folder / "circuit.json").is_file():
        raise UsageError(f"{folder} is a part of a result; load {whole}, task {folder.absolute().name!r}")
    if not (folder / files.MANIFEST).is_file():
        inside = folder / "result"  # of a job
        hint = f"load {inside}" if (inside / files.MANIFEST).is_file() else "wait for its job, or run its spec again"
        raise NotFound(f"{folder} holds no finished result (no {files.MANIFEST}); {hint}")
    return folder
