"""Hugging Face datasets as streams of documents: pinned to a commit when the job is created, and read through `datasets`.

Datasets are streamed, not downloaded, and none of their code runs. A stream reports its position, from which a new stream continues; after
a broken connection it reopens at its position.
"""

from __future__ import annotations

import gc
import itertools
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from extractor.data.text_files import LeftOut, files_below
from extractor.errors import BrokenArtifact, ExtractorError, NotFound, SpecError, first_line, require
from extractor.models.hub import HUB_ID, commit_of
from extractor.progress import Progress, Stopped
from extractor.spec.schema import DatasetSpec

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)  # waits after a broken connection, in addition to those of the hub's client
TEXT_KINDS = ("string", "large_string", "string_view", "str", "null", "NoneType")  # None in a first row: later ones may have text
_PATTERN_MARKS = ("*", "?", "[", "]", "::")
PROBED_ROWS = 1000  # rows read when a job is created, to check that there is text


def pin_dataset(spec: DatasetSpec) -> DatasetSpec:
    """The dataset with its absolute folder, or with the commit that its revision (default: main) names now.

    Raises NotFound when it does not exist or is gated, SpecError when `datasets` is not installed or a folder is given a revision.
    """
    _client()
    path = Path(os.path.expanduser(spec.name))
    if os.path.isdir(path):
        if spec.revision is not None:
            raise SpecError(f"dataset {spec.name!r} is a folder, which has no revision {spec.revision!r}; leave the revision out")
        _check_folder(path.resolve())
        return spec.model_copy(update={"name": str(path.resolve())})
    if os.path.exists(path):
        raise SpecError(f"dataset {spec.name!r} is a file: name its folder, or give a .txt, .py or .jsonl file with --corpus")
    if spec.name.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(spec.name):
        raise NotFound(f"dataset {spec.name!r} not found: there is no such folder, and it is not a hub id (NAME or OWNER/NAME)")
    return spec.model_copy(update={"revision": commit_of(spec.name, spec.revision)})


def _check_folder(folder: Path) -> None:
    """Raise SpecError for a folder that `datasets` cannot read as it stands."""
    if any(mark in str(folder) for mark in _PATTERN_MARKS):
        raise SpecError(
            f"dataset {str(folder)!r} has a name that is read as a pattern or a chain; rename it without {' '.join(_PATTERN_MARKS)}"
        )
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        raise SpecError(f"dataset {str(folder)!r} was saved with save_to_disk; save it with to_parquet(...) in a folder of its own")


def check_dataset(spec: DatasetSpec, on_note: Callable[[str], None] = lambda text: None) -> None:
    """Read the first rows of a pinned dataset. on_note receives what `DocumentStream.remarks` says.

    Raises SpecError when configuration, split or text column do not exist or hold no text, NotFound, or ExtractorError when the
    connection breaks.
    """
    stream = DocumentStream(spec, retries=0)
    if next(filter(str.strip, itertools.islice(stream, PROBED_ROWS)), None) is None:
        raise SpecError(f"dataset {spec.name!r} holds no text in column {spec.text_column!r} of split {spec.split!r}")
    for remark in stream.remarks:
        on_note(f"dataset {spec.name}: {remark}")


def first_documents(spec: DatasetSpec, documents: int, characters: int, progress: Progress) -> Iterator[str]:
    """The first `documents` documents of a dataset in its own order, at most about `characters` of text. Raises Stopped on request."""
    for text in itertools.islice(DocumentStream(spec, progress=progress), documents):
        if progress.should_stop():
            raise Stopped
        yield text
        characters -= len(text)
        if characters <= 0:
            return


class DocumentStream:
    """The texts of a dataset in its own order, row by row; a row without text yields ''.

    After a broken connection it reopens at its position, after waits of RETRY_SECONDS; then it raises ExtractorError.

    remarks    how a folder's files are read otherwise than a user may expect; known once the first row is read
    """

    def __init__(
        self, spec: DatasetSpec, position: dict | None = None, progress: Progress | None = None, retries: int = len(RETRY_SECONDS)
    ):
        self.spec, self.retries = spec, retries
        self.progress = progress or Progress()
        self.remarks: list[str] = []
        self._mark: dict = position or {"rows": 0, "state": None, "datasets": _client().__version__}
        self._since = 0  # rows read since the mark
        self._dataset: Any = None
        self._rows: Iterator[dict] | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        failures = 0
        while True:
            try:
                if self._rows is None:
                    self._rows = self._open()
                text = next(self._rows)[self.spec.text_column]
                break
            except (StopIteration, ExtractorError):
                raise
            except Exception as error:  # the clients raise many types
                refusal = _refusal(self.spec, error, self._mark["rows"] + self._since)
                if refusal is not None:
                    raise refusal from None
                self._rows = None
                self._wait(failures, error)
                failures += 1
        self._since += 1
        if text is not None and not isinstance(text, str):
            row = self._mark["rows"] + self._since
            raise SpecError(f"dataset {self.spec.name!r} row {row}: column {self.spec.text_column!r} holds {type(text).__name__}, not text")
        return text or ""

    def position(self) -> dict:
        """The position of the stream as JSON; a new stream continues from it."""
        if self._dataset is not None and self._since:
            rows = self._mark["rows"] + self._since
            self._mark, self._since = {"rows": rows, "state": self._dataset.state_dict(), "datasets": _client().__version__}, 0
        return self._mark

    def _open(self) -> Iterator[dict]:
        self._dataset, self.remarks = _load(self.spec)
        if self._mark["state"] is not None and self._mark["datasets"] == _client().__version__:
            self._dataset.load_state_dict(self._mark["state"])
            skipped = self._since
        else:
            skipped = self._mark["rows"] + self._since
        rows = iter(self._dataset)
        weakref.finalize(self, _release, rows)  # at the latest at exit
        next(itertools.islice(rows, skipped, skipped), None)
        return rows

    def _wait(self, failures: int, error: Exception) -> None:
        if failures >= self.retries:
            kept = "prepared tokens are kept: run the same command again to resume"
            place = f"stopped after {self._mark['rows'] + self._since} rows" if self._mark["rows"] + self._since else "cannot be reached"
            raise ExtractorError(f"dataset {self.spec.name!r} {place} ({first_line(error)}); {kept}") from None
        self.progress.note(f"dataset {self.spec.name}: {first_line(error)}; trying again")
        until = time.monotonic() + RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
        while time.monotonic() < until:
            if self.progress.should_stop():
                raise Stopped
            time.sleep(0.1)


def _client() -> Any:
    """The `datasets` library, with few retries of its own and no progress bars. Raises SpecError when it is not installed."""
    require("datasets", "--dataset", "datasets", SpecError)
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 2
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 1
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what matters is raised
    return datasets


def _is_folder(spec: DatasetSpec) -> bool:
    return Path(spec.name).is_absolute()


def _load(spec: DatasetSpec) -> tuple[Any, list[str]]:
    """The dataset, streamed, cut to its text column; and remarks on its files. Raises SpecError, and what `datasets` raises."""
    # The prefix excludes a folder of that name in the working directory; our own cache_dir excludes tables that were built elsewhere.
    from extractor.files import cache_root

    builder = _client().load_dataset_builder(
        spec.name if _is_folder(spec) else f"hf://datasets/{spec.name}",
        spec.config,
        revision=spec.revision,
        cache_dir=str(cache_root() / "hub"),
    )
    remarks = _remarks(spec, builder) if _is_folder(spec) else []
    dataset = builder.as_streaming_dataset(split=spec.split)
    column = spec.text_column
    if dataset.features is None:
        rows = iter(dataset)
        kinds = {name: type(value).__name__ for name, value in next(rows, {}).items()}
        _release(rows)
    else:
        kinds = {name: str(getattr(feature, "dtype", type(feature).__name__)) for name, feature in dataset.features.items()}
    if kinds and column not in kinds:
        raise SpecError(f"dataset {spec.name!r} has no column {column!r}; it has {_listed(kinds)}; choose one with --text-column")
    if kinds and kinds[column] not in TEXT_KINDS:
        raise SpecError(f"dataset {spec.name!r}: column {column!r} holds {kinds[column]}, not text; the columns are {_listed(kinds)}")
    return dataset.select_columns([column]) if kinds else dataset, remarks


def _remarks(spec: DatasetSpec, builder: Any) -> list[str]:
    """Remarks on a folder's files. Raises SpecError for data files elsewhere: their changes would not be seen."""
    folder, unread = Path(spec.name), LeftOut()
    read = {os.path.normpath(str(file)) for files in (builder.config.data_files or {}).values() for file in files}
    below = {str(file): file.relative_to(folder) for file in files_below(folder, LeftOut())}
    if outside := sorted(read - below.keys()):
        raise SpecError(
            f"dataset {spec.name!r} names data files outside of its folder, behind a link or hidden, first {outside[0]}; copy them into it"
        )
    for path, name in below.items():
        if path not in read and name.suffix != ".md":
            unread.add("files that belong to no split, not read", name)
    remarks = [str(unread)] if str(unread) else []
    if builder.name == "text":
        remarks.append("text files are read line by line, every line a document; --corpus reads every file as one")
    return remarks


def _release(rows: Generator[dict]) -> None:
    """Stop the threads that read ahead: those of a half-read parquet file abort an interpreter that shuts down (apache/arrow 45214)."""
    rows.close()
    gc.collect()


def _listed(kinds: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _refusal(spec: DatasetSpec, error: Exception, row: int) -> ExtractorError | None:
    """The error to raise for an error of the client; None for connection errors, where a retry may help."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    name, text = f"dataset {spec.name!r}", " ".join(str(error).split())
    if isinstance(error, DatasetNotFoundError):
        return NotFound(f"{name} is not available: {first_line(error)}")
    if isinstance(error, (EmptyDatasetError, DataFilesNotFoundError)):
        return SpecError(f"{name} holds no data files that can be read (parquet, JSON lines, CSV, text, arrow)")
    if "Dataset scripts are no longer supported" in text:
        return SpecError(
            f"{name} is a script, and remote code is never run; choose a dataset of data files (parquet, JSON lines, CSV, text)"
        )
    if text.startswith("Config name is missing"):
        found = text.partition("available configs:")[2].partition(" Example")[0].strip()
        return SpecError(f"{name} has several configurations: {found}; choose one with --dataset-config")
    if text.startswith("BuilderConfig"):
        found = text.partition("Available:")[2].strip()
        return SpecError(f"{name} has no configuration {spec.config!r}; available: {found}")
    if text.startswith(("Bad split", "Unknown split")):
        return SpecError(f"{name} has no split {spec.split!r}; {text.partition('. ')[2] or text}")
    if not _is_folder(spec) and _is_connection(error):
        return None
    cause = error.__cause__ if error.__cause__ is not None else error
    return BrokenArtifact(f"{name} cannot be read after row {row}: {first_line(cause)}")


def _is_connection(error: BaseException | None) -> bool:
    """Whether an error is one of the network, not of the data."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "aiohttp", "fsspec"):
            return True
        error = error.__cause__ or error.__context__
    return False
