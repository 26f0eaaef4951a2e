"""The folder of a job on a disk that others may write to: made for this user alone, and marked with the server whose job it is."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from extractor import files
from extractor.errors import OutputError
from worker.storage.layout import MARKER, read_marker


def claim_folder(folder: Path, server: str) -> None:
    """Make the folder of a job, or check that an earlier attempt of the same server and user made it.

    Raises OutputError for a folder or anything in it that belongs to another user or is a link, and for the job of another server.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_own(folder)
        other = read_marker(folder / MARKER)
        if other not in (None, server):
            raise OutputError(f"{folder} is a job of another server; submit with another --job-id, or give each server its EXTRACT_ROOT")
        if other is None:
            files.write_json(folder / MARKER, {"server": server})
    except OSError as error:
        raise OutputError(f"job folder {folder} cannot be written ({error.strerror}); set EXTRACT_ROOT to a writable folder") from None


def check_own(folder: Path, inside: bool = True) -> None:
    """Check that a folder, and with `inside` all that is in it, is ours and no link, through which a job would write or read elsewhere.

    Raises OutputError; OSError when it cannot be read.
    """
    if not os.path.lexists(folder):
        return
    own: int | None = None
    for path in _everything(folder) if inside else [folder]:
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            raise OutputError(f"{path} is a link; a job uses only its own folders: remove the link")
        if facts.st_uid != os.geteuid():
            own = _owner_of_new_files(folder.parent) if own is None else own  # a shared disk may map all users to one
            if facts.st_uid != own:
                raise OutputError(f"{path} belongs to another user (uid {facts.st_uid}); a job uses only its own folders: remove {folder}")


def _everything(folder: Path) -> Iterator[Path]:
    yield folder
    for place, below, names in os.walk(folder):
        yield from (Path(place, name) for name in [*below, *names])


def _owner_of_new_files(folder: Path) -> int:
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid
    return os.geteuid()
