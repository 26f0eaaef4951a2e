"""Every error a user can meet, drawn as a tree.

    ExtractorError                     exit 1   base of all; its message says what was asked, what was found, what to do
    ├── UsageError                     exit 2   the request itself is wrong
    │   ├── SpecError                           a spec file or option that does not validate
    │   ├── UnknownTask                         no such behaviour
    │   ├── TaskNotExpressible                  the tokenizer cannot write the task's answers as single tokens
    │   ├── UnsupportedModel                    a model, but not one we can work on (a BERT, pickled weights, ...)
    │   └── OutputError                         an output folder that cannot be written or holds something else
    ├── NotFound                       exit 3   a job, model or file that does not exist
    │   └── ModelNotFound
    ├── ServiceUnavailable             exit 4   no Redis, no socket, no server binary
    │   └── StorageUnavailable                  the storage of EXTRACT_ROOT does not answer
    │       └── StorageRefused                  it answers, and refuses: no such bucket, no permission
    ├── Cancelled                      exit 5   the job was cancelled
    ├── BrokenArtifact                 exit 1   a file that is truncated, altered or not what its name says
    ├── DiskFull                       exit 1   no room for a file; the same command goes on once there is
    ├── OutOfMemory                    exit 1   a model that does not fit, however small the batch
    └── TrainingDiverged               exit 1   a loss that is not a number

Anything else that escapes is a mistake of ours and keeps its traceback in the job's log.
"""

from __future__ import annotations


class ExtractorError(Exception):
    """Base of all errors meant for a user: one line, no traceback."""

    exit_code = 1


class UsageError(ExtractorError):
    exit_code = 2


class SpecError(UsageError):
    """A spec that does not validate."""


class UnknownTask(UsageError):
    """A task name that no file in `tasks/` and no installed package carries, or a package's task that cannot be used."""


class TaskNotExpressible(UsageError):
    """A tokenizer under which the task has no single-token answers or no pairs of equal length."""


class UnsupportedModel(UsageError):
    """A checkpoint of a kind this system does not handle."""


class OutputError(UsageError):
    """An output folder that cannot be used."""


class NotFound(ExtractorError):
    exit_code = 3


class ModelNotFound(NotFound):
    """A model reference that leads nowhere."""


class ServiceUnavailable(ExtractorError):
    exit_code = 4


class StorageUnavailable(ServiceUnavailable):
    """Storage that does not answer; it may later."""


class StorageRefused(StorageUnavailable):
    """Storage that says no; waiting does not help."""


class Cancelled(ExtractorError):
    exit_code = 5


class BrokenArtifact(ExtractorError):
    """Files that are damaged or incomplete."""


class DiskFull(ExtractorError):
    """A disk or quota that has no room for what is to be written."""


class OutOfMemory(ExtractorError):
    """Memory that does not hold one sequence's pass."""


class TrainingDiverged(ExtractorError):
    """A loss that became NaN or infinite."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 160 characters; the name of its type where it has no message."""
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def by_name(name: str, message: str) -> ExtractorError:
    """Rebuild an error that crossed a process boundary as (type name, message)."""
    for cls in _family(ExtractorError):
        if cls.__name__ == name:
            return cls(message)
    return ExtractorError(message)


def _family(cls: type[ExtractorError]) -> list[type[ExtractorError]]:
    return [cls] + [c for sub in cls.__subclasses__() for c in _family(sub)]
