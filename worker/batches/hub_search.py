"""Searches on the hub: which models there are for a query, and what the hub's listing says of each, before any is looked into."""

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
    """A search: words that names contain, an owner, tags, and the order in which models come."""

    words: str = ""
    author: str = ""
    tags: tuple[str, ...] = ()
    sort: str = "downloads"

    def __str__(self) -> str:
        named = {"author": self.author, "filter": ",".join(self.tags), "sort": self.sort}
        return " ".join([*self.words.split(), *(f"{name}={value}" for name, value in named.items() if value)])


@dataclass(frozen=True)
class Listed:
    """A model as the hub's listing tells of it: a part of its config (None: nothing), file names (None: nothing), no sizes."""

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

    def json(self, file: str) -> Any:
        """What the listing has of the config, the only file that it shows."""
        return dict(self.config or {})


def parse_query(text: str) -> Query:
    """The query of 'WORDS author=NAME filter=TAG,TAG sort=ORDER', each part optional. Raises UsageError."""
    words, named = [], {}
    for part in text.split():
        name, equals, value = part.partition("=")
        if not equals:
            words.append(part)
        elif name not in ("author", "filter", "sort") or not value:
            raise UsageError(f"hub:{text}: {part!r} is none of author=NAME, filter=TAG,TAG, sort=ORDER; {_EXAMPLES}")
        else:
            named[name] = value
    if not words and not named.keys() & {"author", "filter"}:
        raise UsageError(f"hub:{text} asks for every model there is; say which: {_EXAMPLES}")
    if named.get("sort", _SORTS[0]) not in _SORTS:
        raise UsageError(f"hub:{text}: sort={named['sort']} is unknown; choose {', '.join(_SORTS)}")
    tags = tuple(filter(None, named.get("filter", "").split(",")))
    return Query(" ".join(words), named.get("author", ""), tags, named.get("sort", _SORTS[0]))


def search(query: Query) -> Iterator[Listed]:
    """Models in the order of the query, page by page as they are asked for. Raises ServiceUnavailable."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise ServiceUnavailable(f"hub:{query} cannot be searched for: HF_HUB_OFFLINE is set; unset it, or give a file or a folder")
    asked: dict[str, Any] = {"search": query.words or None, "author": query.author or None, "filter": list(query.tags) or None}
    try:
        for info in HfApi(token=token()).list_models(**asked, sort=query.sort, expand=_EXPAND):  # type: ignore[arg-type]
            yield _listed(info)
    except Exception as error:  # the client raises a wide family; all mean that the listing is not to be had
        raise ServiceUnavailable(f"hub:{query} cannot be searched for: {reason(error)}") from None


def _listed(info: Any) -> Listed:
    files = None if info.siblings is None else frozenset(s.rfilename for s in info.siblings if "/" not in s.rfilename)
    config = info.config if isinstance(info.config, dict) else None
    return Listed(str(info.id), bool(info.gated), info.safetensors.total if info.safetensors else None, config, files)
