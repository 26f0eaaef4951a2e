"""Datasets on the hub to commits, so that a job means the same tomorrow. Models: `extractor.hub`."""

from __future__ import annotations

from extractor.errors import NotFound


def commit_of(name: str, revision: str | None) -> str:
    """The commit sha that a revision (a branch, tag or commit; None: main) of a hub dataset names now.

    Raises NotFound when there is no such name or revision, it is gated, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision, timeout=20).sha)
    except Exception as error:  # the client raises a wide family; all mean that it is not to be had
        raise _refusal(name, revision, error) from None


def _refusal(name: str, revision: str | None, error: Exception) -> NotFound:
    """What the hub's refusal means, in one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return NotFound(f"hub dataset {name!r} is gated: accept its terms on the hub and set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return NotFound(f"hub dataset {name!r} has no revision {revision!r}; give a branch, a tag or a commit of it")
    if isinstance(error, RepositoryNotFoundError):
        return NotFound(f"dataset {name!r} not found: no folder, and not on the hub (or private: set HF_TOKEN)")
    return NotFound(f"dataset {name!r} not found: no folder, and the hub cannot be reached ({one_line(error)})")


def one_line(error: BaseException, length: int = 160) -> str:
    """The first line of what an error says, or its type."""
    text = str(error).strip()
    return text.splitlines()[0][:length] if text else type(error).__name__
