"""Searches on the hub: the models for a query, with the metadata of the hub's listing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from extractor.errors import ServiceUnavailable, UsageError
from extractor.models.hub import reason, token

_SORTS = ("downloads", "likes", "last_modified", "created_at", "trending_score")
_EXPAND = ["config", "safetensors", "siblings", "gated", "private", "disabled", "sha"]
_EXAMPLES = "for example hub:gpt2, 'hub:tiny author=roneneldan', hub:filter=gpt2"


@dataclass(frozen=True)
class Query:
    """A search: words in model names, an owner, tags, and the order of the results."""

    words: str = ""
    author: str = ""
    tags: tuple[str, ...] = ()
    sort: str = "downloads"

    def __str__(self) -> str:
        named = {"author": self.author, "filter": ",".join(self.tags), "sort": self.sort}
        return " ".join([*self.words.split(), *(f"{name}={value}" for name, value in named.items() if value)])


@dataclass(frozen=True)
class Listed:
    """A model in the hub's listing, with a part of its config and its file names (None: not listed), without file sizes."""

    name: str
    gated: bool
    parameters: int | None
    config: Mapping[str, Any] | None = field(repr=False)
    files: frozenset[str] | None = field(repr=False)

    @property
    def label(self) -> str:
        return f"{self.name!r} on the hub"

    @property
    def sizes(self) -> Mapping[str, int]:
        return dict.fromkeys(self.files or (), 0)

    @property
    def folder(self) -> None:
        return None

    def json(self, file: str) -> Any:
        """The listed part of config.json, the only file content in a listing."""
        return dict(self.config or {})


def parse_query(text: str) -> Query:
    """The query of 'WORDS author=NAME filter=TAG,TAG sort=ORDER', each part optional. Raises UsageError."""
    words, named = [], {}
    for part in text.split():
        name, equals, value = part.partition("=")
        if not equals:
            words.append(part)
        elif name not in ("author", "filter", "sort") or not value:
            raise UsageError(f"hub:{text}: {part!r} is not author=NAME, filter=TAG,TAG or sort=ORDER; {_EXAMPLES}")
        else:
            named[name] = value
    if not words and not named.keys() & {"author", "filter"}:
        raise UsageError(f"hub:{text} matches every model; narrow the search: {_EXAMPLES}")
    if named.get("sort", _SORTS[0]) not in _SORTS:
        raise UsageError(f"hub:{text}: sort={named['sort']} is unknown; choose {', '.join(_SORTS)}")
    tags = tuple(filter(None, named.get("filter", "").split(",")))
    return Query(" ".join(words), named.get("author", ""), tags, named.get("sort", _SORTS[0]))


def search(query: Query) -> Iterator[Listed]:
    """The matching models in the order of the query, fetched page by page on demand. Raises ServiceUnavailable."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise ServiceUnavailable(f"cannot search hub:{query}: HF_HUB_OFFLINE is set; unset it, or give a file or a folder")
    asked: dict[str, Any] = {"search": query.words or None, "author": query.author or None, "filter": list(query.tags) or None}
    try:
        for info in HfApi(token=token()).list_models(**asked, sort=query.sort, expand=_EXPAND):  # type: ignore[arg-type]
            yield _listed(info)
    except Exception as error:  # the client raises many types; all mean that the listing is not available
        raise ServiceUnavailable(f"cannot search hub:{query}: {reason(error)}") from None


def _listed(info: Any) -> Listed:
    files = None if info.siblings is None else frozenset(s.rfilename for s in info.siblings if "/" not in s.rfilename)
    config = info.config if isinstance(info.config, dict) else None
    return Listed(str(info.id), bool(info.gated), info.safetensors.total if info.safetensors else None, config, files)
