"""The output folder of a job: made for one spec, accepted when that spec left it unfinished, removed when no work began."""

from __future__ import annotations

import shutil
from pathlib import Path

from extractor.errors import OutputError, SpecError
from extractor.files import MANIFEST, WORK, write_text


def check_output(folder: Path, spec_text: str) -> None:
    """Make an output folder for this spec, or accept the one this spec left unfinished or finished.

    Raises OutputError when the folder cannot be written or holds anything else.
    """
    spec_path = folder / "spec.json"
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output {folder} is a file; name a folder")
    try:
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {WORK, "spec.json.tmp"}:
            if not spec_path.is_file():
                raise OutputError(f"output folder {folder} is not empty and holds no spec.json; name a new folder")
            if not _is_same_job(spec_path.read_text(encoding="utf-8"), spec_text):
                raise OutputError(f"output folder {folder} holds the work of another spec; name a new folder")
            if not (folder / MANIFEST).exists():
                (folder / WORK).mkdir(exist_ok=True)
            return
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        write_text(spec_path, spec_text)
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be written ({error.strerror}); name another") from None


def _is_same_job(kept: str, wanted: str) -> bool:
    """Whether a spec.json says what the text of a spec does, be it in the words of an earlier version."""
    from extractor.spec.schema import parse_job, to_json

    try:
        return kept == wanted or to_json(parse_job(kept)) == wanted
    except SpecError:
        return False


def discard_unstarted(folder: Path) -> None:
    """Remove an output folder in which no work was left: nothing but the spec and the engine's log."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if files <= {"spec.json", f"{WORK}/engine.log", f"{WORK}/engine.log.pid"}:
        shutil.rmtree(folder, ignore_errors=True)
