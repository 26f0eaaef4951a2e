"""Prompts of tasks for a bridging, so that the sparse model answers them as the dense model does: seeded batches of the train split.

Half of the prompts of a task are its plain ones, half its shifted ones, where it has such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from extractor.data.prompts import TaskBatch, TokenizedTask, task_batch
from extractor.data.task_choice import check_expressible
from extractor.errors import TaskNotExpressible
from tasks import Task

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

FOCUS_PAIRS = 256  # pairs of every task, plain and shifted each, from which batches are drawn


class Prompts(NamedTuple):
    """Prompts, padded on the right: ids (N, T) int64, and the position of the last token of each, (N,)."""

    ids: Tensor
    last: Tensor

    def part(self, start: int, stop: int) -> Prompts:
        """Prompts [start, stop), cut to the longest."""
        last = self.last[start:stop]
        return Prompts(self.ids[start:stop, : int(last.max()) + 1 if len(last) else 1], last)

    def to(self, device: torch.device) -> Prompts:
        return Prompts(self.ids.to(device), self.last.to(device))


@dataclass(frozen=True)
class FocusPrompts:
    """Pairs of prompts by task: rows 2i and 2i + 1 of each are a pair."""

    by_task: dict[str, Prompts]

    def batch(self, seed: int, step: int, pairs: int) -> Prompts:
        """`pairs` pairs, (2 * pairs, T): a pure function of the arguments. All tasks, and all pairs of a task, are equally likely."""
        import torch
        from torch.nn import functional

        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 2 + 1)
        tasks = [*self.by_task.values()]
        ids, last = [], []
        for task in torch.randint(len(tasks), (pairs,), generator=generator).tolist():
            row = 2 * int(torch.randint(len(tasks[task].last) // 2, (), generator=generator))
            ids.append(tasks[task].ids[row : row + 2])
            last.append(tasks[task].last[row : row + 2])
        width = max(int(some.max()) for some in last) + 1
        return Prompts(torch.cat([functional.pad(some, (0, max(0, width - some.shape[1])))[:, :width] for some in ids]), torch.cat(last))


def focus_prompts(
    tasks: Iterable[Task], tokenizer: Tokenizer, longest: int, seed: int, vocab_size: int | None, on_note: Callable[[str], None]
) -> FocusPrompts | None:
    """The prompts of all tasks that the tokenizer can express in `longest` tokens; None where there are none. Notes the others.

    vocab_size   tokens that the model has embeddings for; None: no limit
    """
    found: dict[str, Prompts] = {}
    left_out = []
    for task in tasks:
        try:
            expression = check_expressible(task, tokenizer, longest, vocab_size)
        except TaskNotExpressible:
            left_out.append(task.name)
            continue
        batches = [some for shifted in (False, True) if (some := _fitting(expression, tokenizer, longest, seed, shifted)) is not None]
        if batches:
            found[task.name] = _joined(batches)
        else:
            left_out.append(task.name)
    if left_out:
        on_note(f"no prompts of {', '.join(left_out)} are part of the bridging: this model cannot be asked them in {longest} tokens")
    return FocusPrompts(found) if found else None


def _fitting(expression: TokenizedTask, tokenizer: Tokenizer, longest: int, seed: int, shifted: bool) -> TaskBatch | None:
    """Up to FOCUS_PAIRS fitting pairs of the train split; None where there are none."""
    if shifted and not expression.task.shifted:
        return None
    try:
        return task_batch(expression, tokenizer, "train", FOCUS_PAIRS, seed, longest, shifted=shifted, fewer=True)
    except TaskNotExpressible:
        return None


def _joined(batches: list[TaskBatch]) -> Prompts:
    import torch
    from torch.nn import functional

    width = max(batch.ids.shape[1] for batch in batches)
    ids = [functional.pad(batch.ids, (0, width - batch.ids.shape[1])) for batch in batches]
    return Prompts(torch.cat(ids), torch.cat([batch.last for batch in batches]))
