"""Job ids: their form, and new ones. Ids become file names and Redis keys, so every id from outside is checked."""

from __future__ import annotations

import re
import secrets

from extractor.errors import UsageError

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # no characters that look alike


def new_id() -> str:
    """A random id of 8 characters."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def is_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    try:
        check_id(text)
    except UsageError:
        return False
    return True


def check_id(job: str) -> str:
    """The id itself. Raises UsageError if it does not have the form of an id."""
    if not ID.fullmatch(job):
        raise UsageError(f"{job[:80]!r} is not a job id; an id has 1 to 64 letters, digits, '-' or '_'")
    return job
