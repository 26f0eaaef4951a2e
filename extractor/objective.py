"""A task under a tokenizer: token ids, lengths, answers; and the task loss.

1. Take the first spelling of the answers whose two members are single, different tokens that continue the prompts naturally
   (tokenizing prompt + answer gives the prompt's tokens and then the answer's).
2. Keep the pairs whose two prompts have equal length; refuse the task when too few are left.
3. Task loss (nats): softmax over the two answers' logits at the last position, cross-entropy, mean over both members of all pairs.

ln 2 is chance. Paper: Sec. 2.2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extractor.errors import TaskNotExpressible, UnknownTask
from tasks import Pair, Task, find_task

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

PROBED_PAIRS = 64
UNFIT_IN_A_ROW = 1000  # pairs after which the search for fitting ones ends
NEEDED_SHARE = 0.25  # of probed pairs that must have equal length and natural answers


@dataclass(frozen=True)
class Expression:
    """How one tokenizer writes one task: the two answers as text and as token ids."""

    task: Task
    answers: tuple[str, str]
    answer_ids: tuple[int, int]


@dataclass(frozen=True)
class TaskBatch:
    """Pairs as tensors. Row 2i is a positive prompt, row 2i + 1 its negative; right padded.

    ids (2P, T) int64; last (2P,) position of the last prompt token; correct, wrong (2P,) answer ids; sign (2P,) +1 or -1.
    """

    ids: Tensor
    last: Tensor
    correct: Tensor
    wrong: Tensor
    sign: Tensor
    answers: tuple[int, int]

    @property
    def pairs(self) -> int:
        return len(self.ids) // 2

    def pick(self, pairs: Tensor) -> TaskBatch:
        """The batch of these pairs (P',), cut to its longest prompt."""
        import torch

        return self.rows(torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten().to(self.ids.device))

    def rows(self, rows: Tensor) -> TaskBatch:
        """The prompts at these rows, cut to the longest; members of a pair may part."""
        width = int(self.last[rows].max()) + 1
        ids, last, correct, wrong, sign = (t[rows] for t in (self.ids, self.last, self.correct, self.wrong, self.sign))
        return TaskBatch(ids[:, :width], last, correct, wrong, sign, self.answers)

    def as_answered(self, margin: Tensor) -> TaskBatch:
        """The same prompts, the right answer of each being the one that a model with these answer margins (2P,) prefers."""
        import torch

        flipped = self.sign * margin < 0
        correct, wrong = torch.where(flipped, self.wrong, self.correct), torch.where(flipped, self.correct, self.wrong)
        return TaskBatch(self.ids, self.last, correct, wrong, torch.where(flipped, -self.sign, self.sign), self.answers)

    def to(self, device: torch.device | str) -> TaskBatch:
        ids, last, correct, wrong, sign = (t.to(device) for t in (self.ids, self.last, self.correct, self.wrong, self.sign))
        return TaskBatch(ids, last, correct, wrong, sign, self.answers)


def get_task(name: str) -> Task:
    """The task of that name or alias. Raises UnknownTask."""
    try:
        return find_task(name)
    except KeyError as error:
        raise UnknownTask(error.args[0]) from None


def express(task: Task, tokenizer: Tokenizer) -> Expression:
    """Choose the answers' spelling. Raises TaskNotExpressible, saying how the tokenizer splits them."""
    probes = list(itertools.islice(task.pairs("select"), PROBED_PAIRS))
    reasons = []
    for answers in task.answers:
        ids = [tokenizer.encode(answer, add_special_tokens=False).ids for answer in answers]
        if len(ids[0]) != 1 or len(ids[1]) != 1:
            split = next(a for a, i in zip(answers, ids, strict=True) if len(i) != 1)
            pieces = [tokenizer.id_to_token(i) for i in tokenizer.encode(split, add_special_tokens=False).ids]
            reasons.append(f"{split!r} is {len(pieces)} tokens {pieces}")
            continue
        if ids[0] == ids[1]:
            reasons.append(f"{answers[0]!r} and {answers[1]!r} are the same token")
            continue
        expression = Expression(task, answers, (ids[0][0], ids[1][0]))
        fitting = sum(_encode_pair(pair, expression, tokenizer) is not None for pair in probes)
        if fitting >= NEEDED_SHARE * len(probes):
            return expression
        reasons.append(f"with answers {answers} only {fitting} of {len(probes)} pairs have equal length and unsplit answers")
    raise TaskNotExpressible(f"task {task.name!r} cannot be asked under this tokenizer: {'; '.join(reasons)}; choose another model or task")


def _encode_pair(pair: Pair, expression: Expression, tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    encoded = []
    for prompt, answer, answer_id in zip((pair.positive, pair.negative), expression.answers, expression.answer_ids, strict=True):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        if tokenizer.encode(prompt + answer, add_special_tokens=False).ids != [*ids, answer_id]:
            return None
        encoded.append(ids)
    return (encoded[0], encoded[1]) if len(encoded[0]) == len(encoded[1]) else None


def task_batch(expression: Expression, tokenizer: Tokenizer, split: str, pairs: int, seed: int, max_tokens: int) -> TaskBatch:
    """`pairs` pairs of a split as tensors; prompts longer than `max_tokens` are left out.

    Raises TaskNotExpressible when the split has fewer than that many fitting pairs.
    """
    import torch

    rows: list[list[int]] = []
    unfit = 0
    for pair in expression.task.pairs(split, seed):
        encoded = _encode_pair(pair, expression, tokenizer)
        if encoded is not None and len(encoded[0]) <= max_tokens:
            rows += encoded
            unfit = 0
        else:
            unfit += 1
        if len(rows) == 2 * pairs or unfit == UNFIT_IN_A_ROW:
            break
    if len(rows) < 2 * pairs:
        raise TaskNotExpressible(
            f"task {expression.task.name!r} has {len(rows) // 2} fitting pairs of at most {max_tokens} tokens in split {split!r}, "
            f"{pairs} were asked for"
        )
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    sign = torch.tensor([1.0, -1.0]).repeat(pairs)
    first, second = expression.answer_ids
    correct = torch.tensor([first, second]).repeat(pairs)
    wrong = torch.tensor([second, first]).repeat(pairs)
    return TaskBatch(ids, last, correct, wrong, sign, expression.answer_ids)


def answer_margin(last_logits: Tensor, batch: TaskBatch) -> Tensor:
    """Logit of the first answer minus logit of the second, (2P,), from logits at the last position (2P, V)."""
    return last_logits[:, batch.answers[0]] - last_logits[:, batch.answers[1]]


def task_loss(margin: Tensor, sign: Tensor) -> Tensor:
    """Mean task loss in nats from answer margins (2P,) and signs (2P,)."""
    from torch.nn.functional import softplus

    return softplus(-sign * margin).mean()


def accuracy(margin: Tensor, sign: Tensor) -> float:
    """Share of prompts whose right answer has the larger logit."""
    return (sign * margin > 0).double().mean().item()
