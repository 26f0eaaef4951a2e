"""A task under a tokenizer: token ids, lengths, answers; and the task loss.

1. Take the first spelling of the answers whose two members are single, different tokens that continue the prompts naturally
   (tokenizing prompt + answer gives the prompt's tokens and then the answer's). Where every pair has answers of its own, these must be so.
2. Keep the pairs whose two prompts have equal length; refuse the task when too few are left.
3. Task loss (nats): softmax over the two answers' logits at the last position, cross-entropy, mean over both members of all pairs.

ln 2 is chance. Paper: Sec. 2.2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

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
class TokenizedTask:
    """How one tokenizer writes one task: the two answers as text and as token ids; () where every pair has its own."""

    task: Task
    answers: tuple[str, str] | tuple[()]
    answer_ids: tuple[int, int] | tuple[()]


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

    @property
    def pairs(self) -> int:
        return len(self.ids) // 2

    @property
    def first(self) -> Tensor:
        """The first answer's token (2P,) of each prompt's pair: the same at every prompt, or varying from pair to pair."""
        import torch

        return torch.where(self.sign > 0, self.correct, self.wrong)

    @property
    def second(self) -> Tensor:
        """The second answer's token (2P,)."""
        import torch

        return torch.where(self.sign > 0, self.wrong, self.correct)

    def pick(self, pairs: Tensor) -> TaskBatch:
        """The batch of these pairs (P',), cut to its longest prompt."""
        import torch

        return self.rows(torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten().to(self.ids.device))

    def rows(self, rows: Tensor) -> TaskBatch:
        """The prompts at these rows, cut to the longest; members of a pair may part."""
        width = int(self.last[rows].max()) + 1
        ids, last, correct, wrong, sign = (t[rows] for t in (self.ids, self.last, self.correct, self.wrong, self.sign))
        return TaskBatch(ids[:, :width], last, correct, wrong, sign)

    def losses(self, diff: Tensor) -> Tensor:
        """Task loss of every prompt, nats, of logit differences (..., 2P)."""
        from torch.nn.functional import softplus

        return softplus(-self.sign * diff)

    def as_answered(self, diff: Tensor) -> TaskBatch:
        """The same prompts, the right answer of each being the one that a model with these logit differences (2P,) prefers.

        First and second answer stay what they are.
        """
        import torch

        flipped = self.sign * diff < 0
        correct, wrong = torch.where(flipped, self.wrong, self.correct), torch.where(flipped, self.correct, self.wrong)
        return TaskBatch(self.ids, self.last, correct, wrong, torch.where(flipped, -self.sign, self.sign))

    def to(self, device: torch.device | str) -> TaskBatch:
        ids, last, correct, wrong, sign = (t.to(device) for t in (self.ids, self.last, self.correct, self.wrong, self.sign))
        return TaskBatch(ids, last, correct, wrong, sign)


def get_task(name: str) -> Task:
    """The task of that name or alias. Raises UnknownTask."""
    try:
        return find_task(name)
    except KeyError as error:
        raise UnknownTask(error.args[0]) from None


class EncodedPair(NamedTuple):
    """Token ids of two prompts of one length and of their answers."""

    positive: list[int]
    negative: list[int]
    first: int
    second: int


def tokenize_task(task: Task, tokenizer: Tokenizer) -> TokenizedTask:
    """Choose the answers' spelling. Raises TaskNotExpressible, saying how the tokenizer splits them."""
    probes = list(itertools.islice(task.pairs("select"), PROBED_PAIRS))
    reasons = []
    for answers in task.answers:
        try:
            ids = _answer_ids(answers, tokenizer)
        except AnswerMismatch as mismatch:
            reasons.append(str(mismatch))
            continue
        expression = TokenizedTask(task, answers, ids)
        fitting = sum(encode_pair(pair, expression, tokenizer) is not None for pair in probes)
        if fitting >= NEEDED_SHARE * len(probes):
            return expression
        reasons.append(f"with answers {answers} only {fitting} of {len(probes)} pairs have equal length and unsplit answers")
    if not task.answers:
        expression = TokenizedTask(task, (), ())
        unfit = [pair for pair in probes if encode_pair(pair, expression, tokenizer) is None]
        if probes and len(unfit) <= (1 - NEEDED_SHARE) * len(probes):
            return expression
        example = f": {_unfitness(unfit[0], tokenizer)}" if unfit else ""
        reasons.append(f"only {len(probes) - len(unfit)} of {len(probes)} pairs have equal length and unsplit answers{example}")
    raise TaskNotExpressible(f"task {task.name!r} cannot be asked under this tokenizer: {'; '.join(reasons)}; choose another model or task")


class AnswerMismatch(Exception):
    """Two answers are not single, different tokens. The message gives the reason."""


def _answer_ids(answers: tuple[str, str], tokenizer: Tokenizer) -> tuple[int, int]:
    """Two answers as single, different tokens. Raises AnswerMismatch."""
    first, second = (tokenizer.encode(answer, add_special_tokens=False).ids for answer in answers)
    for answer, ids in zip(answers, (first, second), strict=True):
        if len(ids) != 1:
            raise AnswerMismatch(f"{answer!r} is {len(ids)} tokens {[tokenizer.id_to_token(i) for i in ids]}")
    if first == second:
        raise AnswerMismatch(f"{answers[0]!r} and {answers[1]!r} are the same token")
    return first[0], second[0]


def _unfitness(pair: Pair, tokenizer: Tokenizer) -> str:
    """Why a pair with its own answers does not fit."""
    if pair.answers is None:
        return f"{pair.positive!r} has no answer"
    try:
        _answer_ids(pair.answers, tokenizer)
    except AnswerMismatch as mismatch:
        return str(mismatch)
    return f"{pair.positive!r} and {pair.negative!r} differ in length, or merge with their answers"


def encode_pair(pair: Pair, expression: TokenizedTask, tokenizer: Tokenizer) -> EncodedPair | None:
    """None for a pair that does not fit: of unequal length, or with an answer that is not one natural token."""
    answers, answer_ids = expression.answers or pair.answers, expression.answer_ids
    if not answers:
        return None
    if not answer_ids:
        try:
            answer_ids = _answer_ids(answers, tokenizer)
        except AnswerMismatch:
            return None
    encoded = []
    for prompt, answer, answer_id in zip((pair.positive, pair.negative), answers, answer_ids, strict=True):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        if tokenizer.encode(prompt + answer, add_special_tokens=False).ids != [*ids, answer_id]:
            return None
        encoded.append(ids)
    return EncodedPair(encoded[0], encoded[1], *answer_ids) if len(encoded[0]) == len(encoded[1]) else None


def task_batch(expression: TokenizedTask, tokenizer: Tokenizer, split: str, pairs: int, seed: int, max_tokens: int) -> TaskBatch:
    """`pairs` pairs of a split as tensors; prompts longer than `max_tokens` are left out.

    Raises TaskNotExpressible when the split has fewer than that many fitting pairs.
    """
    import torch

    found: list[EncodedPair] = []
    unfit = 0
    for pair in expression.task.pairs(split, seed):
        encoded = encode_pair(pair, expression, tokenizer)
        if encoded is not None and len(encoded.positive) <= max_tokens:
            found.append(encoded)
            unfit = 0
        else:
            unfit += 1
        if len(found) == pairs or unfit == UNFIT_IN_A_ROW:
            break
    if len(found) < pairs:
        raise TaskNotExpressible(
            f"task {expression.task.name!r} has {len(found)} fitting pairs of at most {max_tokens} tokens in split {split!r}, "
            f"{pairs} were asked for"
        )
    rows = [ids for pair in found for ids in (pair.positive, pair.negative)]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    sign = torch.tensor([1.0, -1.0]).repeat(pairs)
    correct = torch.tensor([answer for pair in found for answer in (pair.first, pair.second)])
    wrong = torch.tensor([answer for pair in found for answer in (pair.second, pair.first)])
    return TaskBatch(ids, last, correct, wrong, sign)


def logit_diff(last_logits: Tensor, batch: TaskBatch) -> Tensor:
    """Logit of the first answer minus logit of the second, (2P,), from logits at the last position (2P, V)."""
    first, second = (last_logits.gather(1, answer[:, None])[:, 0] for answer in (batch.first, batch.second))
    return first - second


def task_loss(diff: Tensor, sign: Tensor) -> Tensor:
    """Mean task loss in nats from logit differences (2P,) and signs (2P,)."""
    from torch.nn.functional import softplus

    return softplus(-sign * diff).mean()


def accuracy(diff: Tensor, sign: Tensor) -> float:
    """Share of prompts whose right answer has the larger logit."""
    return (sign * diff > 0).double().mean().item()
