"""The tasks that a user names (of tasks/, of installed packages, or task files), and which of them a tokenizer can express. No torch.

A task file is pinned when the job is created: the spec holds its path and digest, and a file that changed since is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.data.encoding import token_texts, without_embedding
from extractor.data.prompts import (
    PROBED_PAIRS,
    SHOWN_PIECES,
    AnswerMismatch,
    TokenizedTask,
    answer_ids,
    get_task,
    tokenize_task,
    usual_answer_ids,
)
from extractor.errors import NotFound, SpecError, TaskNotExpressible
from extractor.files import read_regular
from extractor.spec.schema import TaskFileSpec
from tasks import Task
from tasks.base import ALL, Pair, task_names
from tasks.files import MAX_TASK_FILE_BYTES, FileTask, TaskFileError, read_task
from tasks.installed import installed_tasks, reserved_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TaskChoice:
    """The chosen tasks in the order they were named, without repetition.

    files   path and digest of the tasks that are files, for the spec
    named   names of the tasks that were chosen by name or path, not by 'all'
    """

    tasks: tuple[Task, ...]
    files: tuple[TaskFileSpec, ...]
    named: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def under(
        self,
        tokenizer: Tokenizer,
        longest: int | None,
        on_left_out: Callable[[str], None] = lambda _: None,
        vocab_size: int | None = None,
    ) -> TaskChoice:
        """The tasks that the tokenizer can express, in prompts of at most `longest` tokens that have embeddings (None: no limit).

        Tasks of 'all' that it cannot express are left out, each with a line to `on_left_out`. Raises TaskNotExpressible for a named task
        that it cannot express, or if no task remains.
        """
        reasons: dict[str, str] = {}
        for task in self.tasks:
            try:
                check_expressible(task, tokenizer, longest, vocab_size)
            except TaskNotExpressible as error:
                if task.name in self.named:
                    raise
                reasons[task.name] = str(error)
        refuse_if_none(reasons, len(self.tasks))
        for name, reason in reasons.items():
            on_left_out(f"{name} is left out: {reason}")
        return replace(self, tasks=tuple(task for task in self.tasks if task.name not in reasons))


def choose(words: Iterable[str]) -> TaskChoice:
    """The tasks that a user names: by name or alias, by the path of a JSONL file, or 'all' for those of tasks/.

    Raises UnknownTask, NotFound, SpecError.
    """
    found: dict[str, Task] = {}
    files: dict[str, TaskFileSpec] = {}
    named: set[str] = set()
    for word in words:
        if word == ALL:
            found |= {name: get_task(name) for name in task_names() if name not in found}
            continue
        if is_path(word):
            own, pinned = pin_file(word)
            if files.setdefault(own.name, pinned) != pinned:
                raise SpecError(f"task files {files[own.name].path} and {pinned.path} have one name, {own.name!r}; rename one of them")
        task = own if is_path(word) else get_task(word)
        found.setdefault(task.name, task)
        named.add(task.name)
    return TaskChoice(tuple(found.values()), tuple(files.values()), frozenset(named))


def refuse_if_none(reasons: Mapping[str, str], tasks: int) -> None:
    """Raise TaskNotExpressible if `reasons` holds all of the tasks; `tasks` is their number."""
    if tasks and len(reasons) == tasks:
        raise TaskNotExpressible(f"none of {tasks} tasks can be asked of this model; the first: {next(iter(reasons.values()))}")


def is_path(word: str) -> bool:
    """Whether a word names a task file, not a task."""
    return "/" in word or "." in word


def pin_file(word: str) -> tuple[FileTask, TaskFileSpec]:
    """The task of a file, and its entry for the spec. Raises NotFound, SpecError."""
    path = Path(os.path.expanduser(word)).absolute()
    content = _content(path)
    task = _parsed(path, content)
    if task.name in reserved_names():
        raise SpecError(f"task file {path}: {task.name!r} is the name of a built-in task; rename the file")
    offer = next((offer for offer in installed_tasks() if offer.name == task.name), None)
    if offer is not None:
        raise SpecError(f"task file {path}: {task.name!r} is the name of a task of {offer.source}; rename the file")
    return task, TaskFileSpec(name=task.name, path=str(path), sha256=hashlib.sha256(content).hexdigest())


def open_tasks(names: Iterable[str], files: Iterable[TaskFileSpec]) -> dict[str, Task]:
    """The tasks of a job by name. Raises UnknownTask, NotFound, SpecError where a file has changed."""
    pinned = {file.name: file for file in files}
    return {name: _open_file(pinned[name]) if name in pinned else get_task(name) for name in names}


def _open_file(file: TaskFileSpec) -> FileTask:
    path = Path(file.path)
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise SpecError(
            f"task file {path} was changed since the job was made (sha256 {digest[:12]} now, {file.sha256[:12]} then); create the job again"
        )
    return _parsed(path, content)


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_TASK_FILE_BYTES)
    except FileNotFoundError:
        raise NotFound(f"task file {path} is not on this machine") from None
    except OSError as error:
        raise SpecError(f"task file {path} cannot be read ({error.strerror})") from None


def _parsed(path: Path, content: bytes) -> FileTask:
    try:
        return read_task(path, content)
    except TaskFileError as error:
        raise SpecError(str(error)) from None


def check_expressible(task: Task, tokenizer: Tokenizer, longest: int | None = None, vocab_size: int | None = None) -> TokenizedTask:
    """The task in the tokenizer's tokens; every line of a task file must be usable. Raises TaskNotExpressible.

    longest      tokens that the model reads at most;  vocab_size: tokens that it has embeddings for; None: no limit
    """
    if isinstance(task, FileTask):
        check_lines(task, tokenizer, longest, vocab_size)
    return tokenize_task(task, tokenizer, vocab_size)


def check_lines(task: FileTask, tokenizer: Tokenizer, longest: int | None = None, vocab_size: int | None = None) -> None:
    """Check that every line can be asked: prompts of equal length and not too long, answers of one token, embeddings for all tokens.

    Raises TaskNotExpressible with the first line that fails, the reason, and the number of such lines.
    """
    first = (pair for _, pair in task.listed[:PROBED_PAIRS])
    usual = usual_answer_ids(first, task.answers[0], tokenizer) if task.answers else None
    wrong = [(line, what) for line, pair in task.listed if (what := _unfit(pair, task, usual, tokenizer, longest, vocab_size))]
    if wrong:
        line, what = wrong[0]
        raise TaskNotExpressible(
            f"task file {task.path}, line {line}: {what}; {len(wrong)} of {len(task.listed)} pairs cannot be asked under this tokenizer, "
            "change or remove them, or choose another model"
        )


def _unfit(
    pair: Pair, task: FileTask, usual: tuple[int, int] | None, tokenizer: Tokenizer, longest: int | None, vocab_size: int | None
) -> str | None:
    """Why a pair cannot be asked; None if it can. usual: the ids of the task's answers, None where each pair has its own."""

    def pieces(ids: list[int]) -> str:
        return f"{len(ids)} tokens {token_texts(tokenizer, ids[:SHOWN_PIECES])}{' ...' if len(ids) > SHOWN_PIECES else ''}"

    answers = pair.answers or task.answers[0]
    try:
        encoded = answer_ids(pair, answers, tokenizer)
    except AnswerMismatch as mismatch:
        return str(mismatch)
    positive, negative, *ends = encoded
    if len(positive) != len(negative):
        return f"the positive prompt is {pieces(positive)}, the negative one {pieces(negative)}"
    if usual is not None and tuple(ends) != usual:
        return f"the answers are the tokens {token_texts(tokenizer, ends)}, after most prompts {token_texts(tokenizer, usual)}"
    if longest is not None and len(positive) > longest:
        more = "shorten them, or for a bridging set bridge.optim.context and bridge.model.n_ctx higher"
        return f"the prompts have {len(positive)} tokens, the model reads {longest} at most: {more}"
    return without_embedding(max(*positive, *negative, *ends), tokenizer, vocab_size)
