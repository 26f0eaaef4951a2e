"""References to models and adapters: bundled names, folders, hub ids, models of jobs. No torch: `extract submit` checks them at once.

A hub id is pinned to a commit when the job is created ("ID@SHA"); the worker downloads that commit. "job:ID/ATTEMPT" is the model of a job
whose result is in storage; the caller must have fetched that result to the cache before it is opened.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extractor.errors import BrokenArtifact, HubUnavailable, ModelNotFound, SpecError, UnsupportedModel
from extractor.files import digest as digest_of
from extractor.models import hub
from extractor.models.checks import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    SPARSE_TYPE,
    WEIGHTS,
    Files,
    FolderFiles,
    check_adapter,
    check_adapter_bytes,
    check_bytes,
    check_model,
    check_size,
    check_tokenizer,
    check_weights,
    indexed_weights,
    is_adapter,
    weights_of,
)
from extractor.models.hub import HUB_ID
from extractor.models.tokenizer_files import TOKENIZER_FILES

BUNDLED = Path(__file__).parent.parent / "bundled"
JOB_MODEL = re.compile(r"job:([A-Za-z0-9_-]{1,64})/([0-9a-f]{16})")
MAX_PARAMETERS = "EXTRACT_MAX_PARAMETERS"
HUB_FILES = [
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "*.safetensors.index.json",
    *TOKENIZER_FILES,
]


@dataclass(frozen=True)
class ModelFolder:
    """A checked local model: its folder, its model_type ('sparse_gpt' or one of `dense_types()`), and the reference that named it."""

    path: Path
    model_type: str
    reference: str = ""

    @property
    def is_sparse(self) -> bool:
        return self.model_type == SPARSE_TYPE


@dataclass(frozen=True)
class NamedModel:
    """What a user names as the model of a job, checked. model, adapter: references as a JobSpec stores them; files: of the model."""

    model: str
    adapter: str | None
    files: Files

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return self.files.json(CONFIG)

    @property
    def folder(self) -> Path | None:
        """The folder of the model's files; None where they are not on this machine."""
        return self.files.folder


@dataclass(frozen=True)
class AdapterFolder:
    """A checked local LoRA adapter: its folder, and the reference that named it."""

    path: Path
    reference: str = ""


def bundled_models() -> list[dict]:
    """The models of this package: name, path, description."""
    found = []
    for folder in sorted(p for p in BUNDLED.iterdir() if (p / "config.json").is_file()):
        card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""
        lines = [line for line in card.splitlines() if line and not line.startswith(("#", "---"))]
        found.append({"name": folder.name, "path": str(folder), "description": lines[0] if lines else ""})
    return found


def max_parameters() -> int:
    """The largest number of parameters accepted, from EXTRACT_MAX_PARAMETERS (default 2e9). Raises SpecError."""
    text = os.environ.get(MAX_PARAMETERS, "").strip() or "2e9"
    try:
        limit = int(float(text))
    except (ValueError, OverflowError):
        limit = 0
    if limit < 1:
        raise SpecError(f"{MAX_PARAMETERS} is {text!r}; it must be a positive number, such as 2e9")
    return limit


def resolve_pair(model: str, adapter: str | None = None) -> tuple[str, str | None]:
    """The references of a model and its adapter as a JobSpec stores them; see `resolve_given`."""
    given = resolve_given(model, adapter)
    return given.model, given.adapter


def resolve_given(model: str, adapter: str | None = None) -> NamedModel:
    """A model and its adapter, checked; their references are pinned: a bundled name, an absolute folder, or 'ID@SHA'.

    A `model` that is an adapter means its base with this adapter.

    Raises ModelNotFound, UnsupportedModel, BrokenArtifact, SpecError.
    """
    found, files = find(model, "model")
    if adapter is not None:
        reference, others = find(adapter, "adapter")
        check_adapter_files(others)
        return NamedModel(_dense(found, files), reference, files)
    if is_adapter(files):
        base, others = _base_of(files, check_adapter_files(files))
        return NamedModel(base, found, others)
    return NamedModel(_resolve_model(found, files)[0], None, files)


def is_here(reference: str) -> bool:
    """Whether a JobSpec's reference is a bundled name, a folder or a job's model, not a hub id."""
    return _is_bundled(reference) or Path(reference).is_absolute() or JOB_MODEL.fullmatch(reference) is not None


def fetched_result(job: str, attempt: str) -> Path:
    """The folder on this machine for the result of an attempt at a job, which its fetch from storage fills."""
    from extractor.files import cache_root

    return cache_root() / "results" / job / attempt


def inspect_folder(path: Path, reference: str = "") -> ModelFolder:
    """Check that a folder (or the model/ in a result folder) holds a supported model. Raises UnsupportedModel, BrokenArtifact."""
    files = FolderFiles(_model_in(path))
    model_type = check_model(files)
    check_weights(files)
    return ModelFolder(files.path, model_type, reference)


def open_model(reference: str, digest: str | None = None) -> ModelFolder:
    """The checked local folder of a JobSpec's model, downloaded if it is on the hub. digest: see `bundled_folder`.

    Raises ModelNotFound, UnsupportedModel, BrokenArtifact.
    """
    return inspect_folder(local_folder(reference, digest), reference)


def local_folder(reference: str, digest: str | None = None) -> Path:
    """The local folder of a JobSpec's model, not checked, downloaded if it is on the hub. Raises ModelNotFound."""
    return bundled_folder(reference, digest) if _is_bundled(reference) else _local(reference, "model", HUB_FILES)


def bundled_folder(name: str, digest: str | None = None) -> Path:
    """The folder of a bundled model, or of the earlier version of it that has the files of this digest.

    Earlier versions stay beside it as NAME-1, NAME-2, ..., for results and jobs that began with them.
    """
    earlier = sorted(BUNDLED.glob(f"{name}-[0-9]*")) if digest else []
    return next((folder for folder in earlier if model_digest(folder) == digest), BUNDLED / name)


def model_digest(folder: Path) -> str:
    """What `dense.json` knows a model by: the sha256 over its config and weights."""
    return digest_of(folder, CONFIG, "*.safetensors")


def open_adapter(reference: str) -> AdapterFolder:
    """The checked local folder of a JobSpec's adapter, downloaded if it is on the hub.

    Raises ModelNotFound, UnsupportedModel, BrokenArtifact.
    """
    path = _local(reference, "adapter", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
    check_adapter(FolderFiles(path))
    return AdapterFolder(path, reference)


def _local(reference: str, kind: str, patterns: list[str]) -> Path:
    if JOB_MODEL.fullmatch(reference):
        return _of_job(reference)
    if Path(reference).is_absolute():
        if not _is_folder(reference):
            raise ModelNotFound(f"{kind} folder {reference} is not on this machine")
        return Path(reference)
    if not HUB_ID.fullmatch(reference.partition("@")[0]):
        raise ModelNotFound(f"{kind} {reference!r} is neither an absolute folder nor a hub id; make the job again with `extract submit`")
    folder = hub.download(reference, patterns)
    if kind == "model" and not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        folder = hub.download(reference, indexed_weights(FolderFiles(folder)))
    return folder


def _of_job(reference: str) -> Path:
    found = JOB_MODEL.fullmatch(reference)
    assert found is not None  # callers check this
    path = fetched_result(*found.groups()) / "model"
    if not path.is_dir():
        raise ModelNotFound(f"model {reference} is not on this machine; a job finds it if EXTRACT_ROOT names the storage that holds it")
    return path


def find(reference: str, kind: str, digest: str | None = None) -> tuple[str, Files]:
    """The pinned form of a reference, and the files it names, not checked yet. digest: see `bundled_folder`.

    Raises ModelNotFound, UnsupportedModel.
    """
    if JOB_MODEL.fullmatch(reference):
        return reference, FolderFiles(_of_job(reference))
    if _is_bundled(reference):
        return reference, FolderFiles(bundled_folder(reference, digest))
    if _is_folder(reference):
        path = _model_in(Path(os.path.expanduser(reference)).resolve())
        return str(path), FolderFiles(path)
    if os.path.exists(os.path.expanduser(reference)):
        raise UnsupportedModel(f"{kind} {reference!r} is a file; name the folder that holds it and its config")
    if reference.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(reference.partition("@")[0]):
        raise ModelNotFound(f"{kind} {reference!r} not found: there is no such folder")
    return _find_on_hub(reference)


def _find_on_hub(reference: str) -> tuple[str, Files]:
    try:
        files = hub.inspect(reference)
    except (ModelNotFound, HubUnavailable) as error:
        near = difflib.get_close_matches(reference, [model["name"] for model in bundled_models()], 1)
        raise type(error)(f"{error}; did you mean the bundled model {near[0]!r}?" if near else str(error)) from None
    return files.reference, files


def _resolve_model(reference: str, files: Files) -> tuple[str, str]:
    """The reference and model_type of a model, checked as a job needs it."""
    model_type = check_model(files)
    check_size(files, max_parameters(), MAX_PARAMETERS)
    check_rest(files, max_parameters(), MAX_PARAMETERS)
    if files.folder is not None:
        check_weights(files)
    return reference, model_type


def check_rest(files: Files, limit: int, setting: str) -> None:
    """Check for a tokenizer and all weight files, and on the hub the bytes of what a job downloads; limit, setting: as of `check_size`.

    Raises UnsupportedModel, BrokenArtifact.
    """
    check_tokenizer(files)
    weights_of(files)
    if files.folder is None:
        check_bytes(files, HUB_FILES, limit, setting)


def check_adapter_files(files: Files) -> dict[str, Any]:
    """The content of an adapter's config, checked as a job needs it. Raises UnsupportedModel, BrokenArtifact."""
    config = check_adapter(files)
    if files.folder is None:
        check_adapter_bytes(files, max_parameters(), MAX_PARAMETERS)
    return config


def _dense(reference: str, files: Files) -> str:
    if _resolve_model(reference, files)[1] == SPARSE_TYPE:
        raise UnsupportedModel(f"model {files.label} is a {SPARSE_TYPE}; an adapter goes on a dense model")
    return reference


def _base_of(files: Files, config: dict[str, Any]) -> tuple[str, Files]:
    """The reference and files of the base that an adapter's config names. An adapter from the hub cannot name a folder of this machine."""
    name, revision = str(config.get("base_model_name_or_path") or ""), str(config.get("revision") or "")
    both = "name a base with --model and this with --adapter"
    is_folder = isinstance(files, FolderFiles) and _is_folder(name)
    if not (is_folder or _is_bundled(name) or HUB_ID.fullmatch(name)):
        named = repr(name) if name else "nothing"
        raise UnsupportedModel(f"adapter {files.label} names {named} as its base, neither a folder of this machine nor a hub id; {both}")
    try:
        here = is_folder or _is_bundled(name)
        reference, base = find(name, "model") if here else _find_on_hub(f"{name}@{revision}" if revision else name)
        return _dense(reference, base), base
    except (ModelNotFound, HubUnavailable, UnsupportedModel, BrokenArtifact) as error:
        raise type(error)(f"base of the adapter {files.label}: {error}; or {both}") from None


def _model_in(path: Path) -> Path:
    """The folder itself, or the model/ inside a result folder."""
    inside = path / "model"
    return inside if (inside / "config.json").is_file() and not any((path / n).is_file() for n in ("config.json", ADAPTER_CONFIG)) else path


def _is_bundled(reference: str) -> bool:
    return bool(HUB_ID.fullmatch(reference)) and "/" not in reference and os.path.isfile(BUNDLED / reference / "config.json")


def _is_folder(reference: str) -> bool:
    return reference != "" and os.path.isdir(os.path.expanduser(reference))  # unlike pathlib's, these never raise
