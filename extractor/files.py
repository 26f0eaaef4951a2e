"""Atomic writes, the manifest, digests, locks.

A file or folder is written under a temporary name and then renamed, so it is complete or absent. `manifest.json` lists every file with its
sha256 and is written last: if it exists, the result is complete.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from extractor.errors import BrokenArtifact, DiskFull, OutputError, ServiceUnavailable

if TYPE_CHECKING:
    from torch import Tensor


MANIFEST = "manifest.json"
_SET_CACHE = "set EXTRACT_CACHE_DIR to a folder that you may write"
MAX_JSON_BYTES = 1 << 30  # of a JSON file; the largest that the engine writes lists a million edges
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORK = ".work"  # inside an output folder: checkpoints and unfinished stages; removed when the job is done


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    with explain_full_disk(path), open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def open_private(path: Path) -> IO[bytes]:
    """Open a file for appending that only its owner may read: state of this user, not a result."""
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; keys keep their order."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; of others nothing is read, since a pipe may block and a device never end.

    Raises OSError, whose `strerror` is one line. A file whose size is 0, as of those in /proc, is empty.
    """
    size = regular_size(path)
    if size > most:
        raise OSError(errno.EOVERFLOW, f"it has {size:,} bytes, more than the {most:,} that are read")
    if not size:
        return b""
    with open(path, "rb") as file:
        return file.read(size)


def regular_size(path: Path) -> int:
    """Bytes of a regular file. Raises OSError, whose `strerror` is one line, for anything else."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device; save its content to a file")
    return found.st_size


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """Read JSON of at most `most` bytes. Raises BrokenArtifact."""
    try:
        return json.loads(read_regular(path, most).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BrokenArtifact(f"{path} is not readable JSON: {why}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    from safetensors.torch import save_file

    temporary = path.with_name(path.name + ".tmp")
    with explain_full_disk(path):
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises BrokenArtifact."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise BrokenArtifact(f"{path} is not a readable safetensors file: {error}") from None


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Raise DiskFull for 'no space left', 'quota exceeded' and 'file too large'; on any error remove the temporary file of `path`."""
    try:
        yield
    except Exception as error:
        temporary = path.with_name(path.name + ".tmp")
        if temporary.is_file():
            temporary.unlink()
        full = getattr(error, "errno", None) in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)
        if full:
            raise DiskFull(f"disk full while writing {path}: free some space and run the same command again, it resumes") from None
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `path` when the block ends without an error. Raises DiskFull."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with explain_full_disk(path):
            yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


def write_manifest(folder: Path) -> None:
    """Hash every file below `folder` and write manifest.json; the last step of a job. All files get the mode of newly opened ones."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not name.startswith(WORK):
            files[name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    share_as_umask([folder / name for name in files])
    write_json(folder / MANIFEST, {"version": 1, "files": files})


def share_as_umask(paths: Iterable[Path]) -> None:
    """Give files the mode that open() gives to a new file. Some libraries make theirs private, whatever the umask says."""
    mode: int | None = None
    for path in paths:
        if mode is None:
            probe = path.with_name(path.name + ".tmp")
            with open(probe, "wb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            probe.unlink()
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def verify_manifest(folder: Path) -> dict[str, dict]:
    """Check that every file of a finished result exists, lies inside the folder, and is unaltered. Raises BrokenArtifact."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise BrokenArtifact(f"{folder / MANIFEST} lists no files")
    for name, facts in files.items():
        path = folder / name
        if not _is_inside(folder, name):
            raise BrokenArtifact(f"{folder / MANIFEST} names {name[:80]!r}, which is not a plain file inside the folder")
        if not path.is_file():
            raise BrokenArtifact(f"{path} is missing; run the job again")
        if not isinstance(facts, dict) or sha256(path) != facts.get("sha256"):
            raise BrokenArtifact(f"{path} was altered: its sha256 is not the manifest's; run the job again")
    return files


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name is a plain path inside the folder: no '..', no link, no invalid name."""
    try:
        return not Path(name).is_absolute() and (folder / name).resolve() == folder.resolve() / name and len(os.fsencode(name)) < 1000
    except ValueError:  # a null byte or half a surrogate pair
        return False


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest(folder: Path, *patterns: str) -> str:
    """sha256 over names and contents of the files directly in a folder that match a pattern."""
    found = {file for pattern in patterns for file in folder.glob(pattern)}
    total = hashlib.sha256()
    for file in sorted(found):
        total.update(f"{sha256(file)}  {file.name}\n".encode())
    return total.hexdigest()


def cache_root() -> Path:
    """The folder of corpora and downloads that jobs share: EXTRACT_CACHE_DIR, else `extract` in the user's cache folder.

    Raises OutputError without either and without a home folder, as for a user id that is not in the password file.
    """
    if base := os.environ.get("EXTRACT_CACHE_DIR"):
        return Path(base)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "extract"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise OutputError(f"no home folder is known for user {os.getuid()}, so there is no cache; {_SET_CACHE}")
    return Path(home) / ".cache" / "extract"


@contextmanager
def explain_cache() -> Iterator[None]:
    """Raise OutputError, which names the variable, for a cache that cannot be made or written."""
    try:
        yield
    except OSError as error:
        root = cache_root().absolute()
        place = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, str | bytes | os.PathLike) else None
        if place is None or not _concerns(place, root, error):
            raise
        raise OutputError(f"cache folder {root} cannot be used ({error.strerror}: {place}); {_SET_CACHE}") from None


def _concerns(place: Path, root: Path, error: OSError) -> bool:
    """Whether an error at a place means that the cache is missing and cannot be made, or is read-only."""
    if not os.path.isdir(root):
        return place.is_relative_to(root) or root.is_relative_to(place)
    return place.is_relative_to(root) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def rounded(value: Any) -> Any:
    """A JSON value with every float rounded to six decimals."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return round(value, 6) if isinstance(value, float) else value


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, for one process at a time. Raises ServiceUnavailable when the file cannot be opened."""
    try:
        file = open(path, "a")  # noqa: SIM115 - closed below, and the lock with it
    except OSError as error:
        raise ServiceUnavailable(f"{path} cannot be opened ({error.strerror}); set EXTRACT_STATE_DIR to a folder you may write") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
