"""Names on the hub to commits, so that a job means the same tomorrow."""

from __future__ import annotations

from extractor.errors import ModelNotFound, NotFound


def commit_of(kind: str, name: str, revision: str | None) -> str:
    """The commit sha that a revision (a branch, tag or commit; None: main) of a hub 'model' or 'dataset' names now.

    Raises NotFound (ModelNotFound for a model) when there is no such name or revision, it is gated, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        info = (api.model_info if kind == "model" else api.dataset_info)(name, revision=revision, timeout=20)
    except Exception as error:  # the client raises a wide family; all mean that it is not to be had
        raise hub_refusal(kind, name, revision, error) from None
    return str(info.sha)


def hub_refusal(kind: str, name: str, revision: str | None, error: Exception) -> NotFound:
    """What the hub's refusal means, in one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        text = f"hub {kind} {name!r} is gated: accept its terms on the hub and set HF_TOKEN"
    elif isinstance(error, RevisionNotFoundError):
        text = f"hub {kind} {name!r} has no revision {revision!r}; give a branch, a tag or a commit of it"
    elif isinstance(error, RepositoryNotFoundError):
        text = f"{kind} {name!r} not found: no folder, and not on the hub (or private: set HF_TOKEN)"
    else:
        text = f"{kind} {name!r} not found: no folder, and the hub cannot be reached ({one_line(error)})"
    return (ModelNotFound if kind == "model" else NotFound)(text)


def one_line(error: BaseException, length: int = 160) -> str:
    """The first line of what an error says, or its type."""
    text = str(error).strip()
    return text.splitlines()[0][:length] if text else type(error).__name__
