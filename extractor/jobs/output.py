"""The output folder of a job: created for one spec, accepted again for the same spec, removed when no work was done."""

from __future__ import annotations

import shutil
from pathlib import Path

from extractor.errors import OutputError, SpecError
from extractor.files import MANIFEST, WORK, write_text


def check_output(folder: Path, spec_text: str) -> None:
    """Create an output folder for this spec, or accept one with finished or unfinished work of the same spec.

    Raises OutputError when the folder cannot be written or has other content.
    """
    spec_path = folder / "spec.json"
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output {folder} is a file; name a folder")
    try:
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {WORK, "spec.json.tmp"}:
            if not spec_path.is_file():
                raise OutputError(f"output folder {folder} is not empty and has no spec.json; name a new folder")
            if not _is_same_job(spec_path.read_text(encoding="utf-8"), spec_text):
                raise OutputError(f"output folder {folder} has the work of another spec; name a new folder")
            if not (folder / MANIFEST).exists():
                (folder / WORK).mkdir(exist_ok=True)
            return
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        write_text(spec_path, spec_text)
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be written ({error.strerror}); name another") from None


def _is_same_job(kept: str, wanted: str) -> bool:
    """Whether a stored spec.json, possibly of an earlier version, describes the same job as a spec's text."""
    from extractor.spec.schema import parse_job, to_json

    try:
        return kept == wanted or to_json(parse_job(kept)) == wanted
    except SpecError:
        return False


def discard_unstarted(folder: Path) -> None:
    """Remove an output folder that has only the spec and the engine's log."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if files <= {"spec.json", f"{WORK}/engine.log", f"{WORK}/engine.log.pid"}:
        shutil.rmtree(folder, ignore_errors=True)
