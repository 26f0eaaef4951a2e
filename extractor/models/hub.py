"""Repositories on the Hugging Face hub: inspected when a job is created, downloaded when it runs. Translates the hub's errors. No torch.

Inspection reads a repository's metadata and small JSON files, never weights. HF_TOKEN is the only token used.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extractor.errors import BrokenArtifact, ExtractorError, HubUnavailable, ModelNotFound, NotFound, first_line
from extractor.files import read_json

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_SENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # an answer that the client cannot read
_UNEXPECTED = "the server gave an answer that no hub gives; try again later, or check HF_ENDPOINT"
MAX_JSON_BYTES = 1_000_000  # of a config file; typical ones have a few kilobytes


@dataclass(frozen=True)
class HubFiles:
    """The files at the top of a repository, at one commit.

    sizes        name -> bytes, 0 where the hub does not say
    parameters   number of parameters in its safetensors, as the hub counts them; None where it does not
    digests      name -> sha256, or 'git:' and git's hash for small files
    folder       the commit in the hub's cache on this machine, where the hub does not answer; None: the hub has answered
    """

    name: str
    sha: str
    sizes: Mapping[str, int] = field(repr=False)
    parameters: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # file -> its content, once it is known

    @property
    def label(self) -> str:
        return f"{self.name!r} on the hub" if self.folder is None else f"{self.name!r} in {self.folder}"

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.sha}"

    def json(self, file: str) -> Any:
        """The content of a small JSON file. Raises BrokenArtifact, ModelNotFound."""
        if file not in self.read:
            self.read[file] = self._fetch(file) if self.folder is None else read_json(self.folder / file)
        return copy.deepcopy(self.read[file])

    def _fetch(self, file: str) -> Any:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        if self.sizes[file] > MAX_JSON_BYTES:
            raise BrokenArtifact(f"{file} of model {self.label} has {self.sizes[file]:,} bytes; that is no config")
        try:
            address = hf_hub_url(self.name, file, revision=self.sha)
            response = get_session().get(address, headers=build_hf_headers(token=token()), timeout=constants.HF_HUB_ETAG_TIMEOUT)
            hf_raise_for_status(response)
        except Exception as error:  # the client raises many types; all mean that the repository is not available
            raise refusal(self.name, self.sha, error) from None
        if len(response.content) > MAX_JSON_BYTES:
            raise BrokenArtifact(f"{file} of model {self.label} has {len(response.content):,} bytes; that is no config")
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError) as error:
            raise BrokenArtifact(f"{file} of model {self.label} is not readable JSON: {error}") from None


def token() -> str | bool:
    """HF_TOKEN, or False where it is not set: the client then uses no stored token either."""
    return os.environ.get("HF_TOKEN", "").strip() or False


def inspect(reference: str) -> HubFiles:
    """The files that 'ID' or 'ID@REVISION' names now. Raises ModelNotFound, HubUnavailable.

    Where the hub does not answer, these are the files of the commit that the hub's cache on this machine has under that name.
    """
    from huggingface_hub import HfApi, constants

    name, _, revision = reference.partition("@")
    try:
        info = HfApi(token=token()).model_info(name, revision=revision or None, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # as above
        if not _is_silent(error):
            raise refusal(name, revision, error) from None
        return _cached(name, revision, refusal(name, revision, error))
    if info.disabled:
        raise ModelNotFound(_disabled(name))
    top = [sibling for sibling in info.siblings or [] if "/" not in str(sibling.rfilename)]
    sizes = {str(sibling.rfilename): sibling.size or 0 for sibling in top}
    digests = {str(sibling.rfilename): sibling.lfs.sha256 if sibling.lfs else f"git:{sibling.blob_id}" for sibling in top}
    total = info.safetensors.total if info.safetensors else None
    numbers = [*sizes.values(), 0 if total is None else total]
    if not _COMMIT.fullmatch(str(info.sha)) or any(type(number) is not int or number < 0 for number in numbers):
        raise ModelNotFound(f"model {name!r} cannot be fetched: {_UNEXPECTED}")
    return HubFiles(name, str(info.sha), sizes, total, digests)


def _is_silent(error: Exception) -> bool:
    """Whether an error of the hub's client means that the hub did not answer, or with an error of its own."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    if isinstance(error, HFValidationError):
        return False
    return constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled) or _is_unanswered(error)


def _is_unanswered(error: Exception) -> bool:
    """Whether there was no answer, or one of the hub's own errors."""
    status = _status(error)
    return status >= 500 or not (status or isinstance(error, _NO_SENSE))


def _cached(name: str, revision: str, silent: ExtractorError) -> HubFiles:
    """The commit of a repository in the hub's cache. Raises an error like `silent` that also says where the cache is."""
    from huggingface_hub import constants, snapshot_download

    top = _cache_of(name) / "snapshots"
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns="config.json", local_files_only=True))
    except Exception:  # it is not in the cache, or only in part
        folder = top
    if not _COMMIT.fullmatch(folder.name) or not folder.is_dir():
        kept = sorted(entry.name for entry in top.iterdir() if _COMMIT.fullmatch(entry.name)) if top.is_dir() else []
        way = f"the cache has {name}@{kept[0]}" if kept else f"the cache {constants.HF_HUB_CACHE} does not have it either"
        raise type(silent)(f"{silent}; {way}") from None
    return HubFiles(name, folder.name, {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}, folder=folder)


def download(reference: str, patterns: list[str]) -> Path:
    """Download the files at the top of 'ID@SHA' whose names match; returns their local folder. Raises ModelNotFound, HubUnavailable.

    Where the hub does not answer, the folder has what the hub's cache on this machine has.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    is_away = not _is_listed(name, revision) and _is_away_with_copy(reference)
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=patterns,
                ignore_patterns="*/*",
                token=token(),
                local_files_only=is_away,
            )
        )
    except Exception as error:  # as above
        raise refusal(name, revision, error) from None
    weights = [pattern for pattern in patterns if pattern.endswith((".safetensors", ".safetensors.index.json"))]
    if is_away and weights and not any((folder / file).is_file() for file in weights):
        raise HubUnavailable(f"model {name!r} cannot be fetched: the hub does not answer, and {folder} has no weights; try again later")
    return folder


def _is_away_with_copy(reference: str) -> bool:
    """Whether the hub does not answer and its cache has the model. Asks once; the client's download asks for half a minute.

    Raises HubUnavailable where the cache does not have it either.
    """
    try:
        return inspect(reference).folder is not None
    except ModelNotFound:  # the download says why, or takes what the cache has
        return False


def _is_listed(name: str, commit: str) -> bool:
    """Whether the hub's client has kept the list of the files of a commit. A cache that transformers has filled has none."""
    return (_cache_of(name) / "trees" / f"{commit}.json").is_file()


def _cache_of(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def refusal(name: str, revision: str, error: Exception) -> ExtractorError:
    """The error for a model, in one line, from an error of the hub's client."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # "not in the cache either"; the cause is the hub's error
    if isinstance(error, HFValidationError):
        return ModelNotFound(f"model {name!r} not found: no folder, not bundled, and no name that the hub allows; write ID or OWNER/ID")
    if isinstance(error, GatedRepoError):
        return gated(name)
    if isinstance(error, DisabledRepoError):
        return ModelNotFound(_disabled(name))
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"model {name!r} on the hub has no revision {revision!r}; give a branch, a tag or a commit of it")
    if isinstance(error, RepositoryNotFoundError) or (_status(error) == 401 and not token()):
        private = "your HF_TOKEN has no access" if token() else "set HF_TOKEN"
        return ModelNotFound(f"model {name!r} not found: no folder, not bundled, and not on the hub, or private: {private}")
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return ModelNotFound(f"model {name!r} cannot be fetched: HF_HUB_OFFLINE is set; unset it, or name a folder or a bundled model")
    kind = HubUnavailable if _is_away(error) else ModelNotFound
    return kind(f"model {name!r} cannot be fetched: {reason(error)}")


def _is_away(error: Exception) -> bool:
    """Whether the same request may succeed later: no answer, an error of the hub itself, or too many requests."""
    return _status(error) == 429 or (_is_unanswered(error) and not _is_full(error))


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def gated(name: str) -> ModelNotFound:
    """The error for a repository whose terms must be accepted first."""
    way = "with the account of your HF_TOKEN, which has no access yet" if token() else "and set HF_TOKEN"
    return ModelNotFound(f"model {name!r} on the hub is gated: accept its terms on its page {way}")


def reason(error: Exception) -> str:
    """Why the hub does not deliver a model that it may have."""
    status = _status(error)
    if status == 401:
        return "the hub rejects your HF_TOKEN as invalid or expired; set a valid one, or none for public models"
    if status == 403:
        return "the hub forbids it; set HF_TOKEN to a token with the right to read this repository"
    if status == 429:
        return "the hub limits requests (429); try again in a few minutes, or set HF_TOKEN"
    if status >= 500:
        return f"the hub is out of order ({status}); try again later"
    if _is_full(error):
        return "the disk is full; free some space, or point HF_HOME at another disk"
    if "Timeout" in type(error).__name__:
        return "the hub does not answer in time; try again later, or set HF_HUB_ETAG_TIMEOUT to more seconds"
    if isinstance(error, _NO_SENSE):
        return _UNEXPECTED
    return f"the hub cannot be reached ({first_line(error)})"


def _status(error: Exception) -> int:
    """The HTTP status of the hub's answer, 0 without an answer."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _disabled(name: str) -> str:
    return f"model {name!r} on the hub is disabled by the hub or its owner; choose another"


def commit_of(name: str, revision: str | None) -> str:
    """The commit sha that a revision (branch, tag or commit; None: main) of a hub dataset names now.

    Raises NotFound when the dataset or revision does not exist or is gated, HubUnavailable when the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision, timeout=20).sha)
    except Exception as error:  # the client raises many types; all mean that the repository is not available
        raise _dataset_error(name, revision, error) from None


def _dataset_error(name: str, revision: str | None, error: Exception) -> ExtractorError:
    """The error for a dataset, in one line, from an error of the hub's client."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return NotFound(f"hub dataset {name!r} is gated: accept its terms on the hub and set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return NotFound(f"hub dataset {name!r} has no revision {revision!r}; give a branch, a tag or a commit of it")
    if isinstance(error, RepositoryNotFoundError):
        return NotFound(f"dataset {name!r} not found: no folder, and not on the hub (or private: set HF_TOKEN)")
    if _is_away(error):
        return HubUnavailable(f"dataset {name!r} is no folder, and cannot be looked up: {reason(error)}")
    return NotFound(f"dataset {name!r} is no folder, and cannot be looked up: {reason(error)}")
