"""What an object says where it has no attribute of the name that was guessed: which attribute has the thing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping


def no_attribute(owner: object, name: str, instead: Mapping[str, str]) -> AttributeError:
    """The error for `owner.NAME`, for use in `__getattr__`.

    instead   {name that users guess: what does it}; other names are answered with the most similar ones that exist

    Where a property of this name itself failed with an AttributeError, that error is raised again.
    """
    kind = type(owner)
    if hasattr(kind, name):
        object.__getattribute__(owner, name)
    said = f"{kind.__name__} has no attribute {name!r}"
    if name.startswith("_"):
        return AttributeError(said, name=name, obj=owner)
    known = [*instead, *(other for other in (*dir(kind), *vars(owner)) if not other.startswith("_"))]
    close = difflib.get_close_matches(name, known, 1)
    if name in instead:
        said += f"; use {instead[name]}"
    elif close:
        said += f"; close: {instead.get(close[0], close[0])}"
    else:
        said += f"; it has {', '.join(sorted(set(known) - set(instead)))}"
    return AttributeError(said)
