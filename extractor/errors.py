"""All errors meant for users, as a tree.

    ExtractorError                     exit 1   base of all; one line: the request, the problem, the remedy
    ├── UsageError                     exit 2   the request is wrong
    │   ├── SpecError                           a spec file or option that does not validate
    │   ├── UnknownTask                         no task of this name
    │   ├── TaskNotExpressible                  the tokenizer cannot encode the task's answers as single tokens
    │   ├── UnsupportedModel                    a model of an unsupported kind (a BERT, pickled weights, ...)
    │   └── OutputError                         an output folder that cannot be written or has other content
    ├── NotFound                       exit 3   a job, model or file that does not exist
    │   └── ModelNotFound
    ├── ServiceUnavailable             exit 4   no Redis, no socket, no server binary
    │   ├── HubUnavailable                      the Hugging Face hub does not answer, or limits requests
    │   └── StorageUnavailable                  the storage of EXTRACT_ROOT does not answer
    │       └── StorageRefused                  it refuses: no such bucket, no permission
    ├── Cancelled                      exit 5   the job was cancelled
    ├── BrokenArtifact                 exit 1   a file that is truncated, altered or of another format
    ├── DiskFull                       exit 1   the disk is full; the same command resumes once it is not
    ├── OutOfMemory                    exit 1   a model that does not fit, even with one sequence
    └── TrainingDiverged               exit 1   a loss that is not a number

Any other exception is a bug; its traceback is in the job's log.
"""

from __future__ import annotations

from html import escape
from importlib.util import find_spec


class ExtractorError(Exception):
    """Base of all errors meant for users: one line, no traceback."""

    exit_code = 1


class UsageError(ExtractorError):
    exit_code = 2


class SpecError(UsageError):
    """A spec that does not validate."""


class UnknownTask(UsageError):
    """A name of no built-in and no installed task, or an installed task that cannot be used."""


class TaskNotExpressible(UsageError):
    """A tokenizer that gives the task no single-token answers or no pairs of equal length."""


class UnsupportedModel(UsageError):
    """A checkpoint of an unsupported kind."""


class OutputError(UsageError):
    """An output folder that cannot be used."""


class NotFound(ExtractorError):
    exit_code = 3


class ModelNotFound(NotFound):
    """A model reference to no existing model."""


class ServiceUnavailable(ExtractorError):
    exit_code = 4


class HubUnavailable(ServiceUnavailable):
    """The hub does not answer, with an error of its own, or that there are too many requests."""


class StorageUnavailable(ServiceUnavailable):
    """Storage that does not answer at the moment."""


class StorageRefused(StorageUnavailable):
    """Storage that refuses access; retrying does not help."""


class Cancelled(ExtractorError):
    exit_code = 5


class BrokenArtifact(ExtractorError):
    """Files that are damaged or incomplete."""


class DiskFull(ExtractorError):
    """A full disk or an exceeded quota."""


class OutOfMemory(ExtractorError):
    """Too little memory for a pass of one sequence."""


class TrainingDiverged(ExtractorError):
    """A loss that became NaN or infinite."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 160 characters; the name of its type where it has no message."""
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def require(package: str, what: str, extra: str, error: type[UsageError] = UsageError) -> None:
    """Raise `error` where a package of an optional extra (pyproject.toml) is not installed; `what` needs it."""
    if find_spec(package) is None:
        raise error(f"{what} needs {package}, which is not installed here; {install(extra)}")


def install(extra: str) -> str:
    """How to install an extra: a plain `pip install .` would turn a checkout's environment into a copy of it."""
    return f"in the checkout: deploy/in-venv pip install -c deploy/constraints.txt -e '.[{extra}]'"


def printable(text: str) -> str:
    """One line that a terminal shows and does not obey: text of others may hold escape codes, or marks that turn the direction of text.

    A line break or tab becomes a space, any other character that does not print its escape, such as \\x1b.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def html_text(text: object) -> str:
    """`printable` text for a page, also inside a quoted attribute."""
    return escape(printable(str(text)), quote=True)


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def by_name(name: str, message: str) -> ExtractorError:
    """Rebuild an error that crossed a process boundary as (type name, message)."""
    for cls in _family(ExtractorError):
        if cls.__name__ == name:
            return cls(message)
    return ExtractorError(message)


def _family(cls: type[ExtractorError]) -> list[type[ExtractorError]]:
    return [cls] + [c for sub in cls.__subclasses__() for c in _family(sub)]
