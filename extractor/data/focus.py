"""Prompts of tasks for a bridging, so that the sparse model answers them as the dense model does: seeded batches of the train split.

Half of the prompts of a task are its plain ones, half its shifted ones, where it has such. A shifted prompt is followed by the rest of its
program, up to `BridgeSpec.focus_tokens` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from extractor.data.encoding import text_ids, without_embedding
from extractor.data.prompts import EncodedPair, TokenizedTask, fitting_pairs, padded
from extractor.data.task_choice import check_expressible
from extractor.errors import TaskNotExpressible
from tasks import Pair, Task

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

FOCUS_PAIRS = 256  # pairs of every task, plain and shifted each, from which batches are drawn
SCANNED_PAIRS = 16 * FOCUS_PAIRS  # pairs among which those that fit are sought


class Prompts(NamedTuple):
    """Prompts and how their programs go on, padded on the right: ids (N, T) int64; and two positions of each, (N,).

    last   of the prompt's last token, where the answer is predicted
    end    of the last token whose prediction is scored; `last` where nothing follows the prompt
    """

    ids: Tensor
    last: Tensor
    end: Tensor

    @property
    def weights(self) -> Tensor:
        """(N, T): 1 at the last token of a prompt, and the rest of its program's equal shares of another 1."""
        import torch

        at, last, end = torch.arange(self.ids.shape[1], device=self.ids.device), self.last[:, None], self.end[:, None]
        return (at == last) + ((at > last) & (at <= end)) / (end - last).clamp_min(1)

    def part(self, start: int, stop: int) -> Prompts:
        """Prompts [start, stop), cut to the longest."""
        end = self.end[start:stop]
        return Prompts(self.ids[start:stop, : int(end.max()) + 1 if len(end) else 1], self.last[start:stop], end)

    def to(self, device: torch.device) -> Prompts:
        return Prompts(*(each.to(device) for each in self))


@dataclass(frozen=True)
class FocusPrompts:
    """Pairs of prompts by task: rows 2i and 2i + 1 of each are a pair."""

    by_task: dict[str, Prompts]

    def batch(self, seed: int, step: int, pairs: int) -> Prompts:
        """`pairs` pairs, (2 * pairs, T): a pure function of the arguments. All tasks, and all pairs of a task, are equally likely."""
        import torch
        from torch.nn import functional

        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 2 + 1)
        tasks, drawn = [*self.by_task.values()], []
        for task in torch.randint(len(tasks), (pairs,), generator=generator).tolist():
            row = 2 * int(torch.randint(len(tasks[task].last) // 2, (), generator=generator))
            drawn.append(tasks[task].part(row, row + 2))
        width = max(pair.ids.shape[1] for pair in drawn)
        ids = torch.cat([functional.pad(pair.ids, (0, width - pair.ids.shape[1])) for pair in drawn])
        return Prompts(ids, torch.cat([pair.last for pair in drawn]), torch.cat([pair.end for pair in drawn]))


def focus_prompts(
    tasks: Iterable[Task],
    tokenizer: Tokenizer,
    longest: int,
    seed: int,
    vocab_size: int | None,
    on_note: Callable[[str], None],
    following: int = 0,
) -> FocusPrompts | None:
    """The prompts of all tasks that the tokenizer can express in `longest` tokens; None where there are none. Notes the others.

    vocab_size   tokens that the model has embeddings for; None: no limit
    following    tokens of the rest of a program after its prompt, at most; no sequence gets longer than `longest`
    """
    found: dict[str, Prompts] = {}
    left_out = []
    for task in tasks:
        try:
            expression = check_expressible(task, tokenizer, longest, vocab_size)
        except TaskNotExpressible:
            left_out.append(task.name)
            continue
        pairs = [pair for shifted in (False, True) for pair in _fitting(expression, tokenizer, longest, seed, shifted)]
        if pairs:
            found[task.name] = _prompts(pairs, tokenizer, longest, vocab_size, following)
        else:
            left_out.append(task.name)
    if left_out:
        on_note(f"no prompts of {', '.join(left_out)} are part of the bridging: this model cannot be asked them in {longest} tokens")
    return FocusPrompts(found) if found else None


def _fitting(expression: TokenizedTask, tokenizer: Tokenizer, longest: int, seed: int, shifted: bool) -> list[tuple[Pair, EncodedPair]]:
    """Up to FOCUS_PAIRS fitting pairs of the train split; none where there are none."""
    if shifted and not expression.task.shifted:
        return []
    try:
        return fitting_pairs(expression, tokenizer, "train", FOCUS_PAIRS, seed, longest, shifted, SCANNED_PAIRS)[0]
    except TaskNotExpressible:
        return []


def _prompts(pairs: list[tuple[Pair, EncodedPair]], tokenizer: Tokenizer, longest: int, vocab_size: int | None, following: int) -> Prompts:
    import torch

    prompts, rows = [], []
    for pair, encoded in pairs:
        for prompt, rest, ids in zip((pair.positive, pair.negative), pair.rests, encoded[:2], strict=True):
            prompts.append(ids)
            rows.append([*ids, *_rest(prompt, rest, ids, tokenizer, vocab_size)[: min(following, longest - len(ids))]])
    return Prompts(padded(rows), *(torch.tensor([len(row) - 1 for row in some]) for some in (prompts, rows)))


def _rest(prompt: str, rest: str, ids: list[int], tokenizer: Tokenizer, vocab_size: int | None) -> list[int]:
    """The tokens of a program after its prompt; none where it is not known, or is not a continuation of these ids that the model reads."""
    found = text_ids(tokenizer, prompt + rest) if rest else ids
    follows = found[: len(ids)] == ids and not without_embedding(max(found), tokenizer, vocab_size)
    return found[len(ids) :] if follows else []
