"""A task under a tokenizer: token ids, lengths, answers; and the task loss.

1. Take the first spelling of the answers whose two members are single, different tokens after the prompts: tokenizing prompt + answer
   gives the prompt's tokens and then one more, the answer's. Where every pair has answers of its own, these must be so.
2. Keep the pairs whose two prompts have equal length; refuse the task when too few are left.
3. Task loss (nats): softmax over the two answers' logits at the last position, cross-entropy, mean over both members of all pairs.

ln 2 is chance. Paper: Sec. 2.2.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from extractor.data.encoding import text_ids, text_ids_of, token_texts, without_embedding
from extractor.errors import TaskNotExpressible, UnknownTask, UnsupportedModel
from tasks import Pair, Task, find_task

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

PROBED_PAIRS = 64
SHOWN_PIECES = 12  # tokens of a text in a message
LAST_PIECES = 3
UNFIT_IN_A_ROW = 1000  # pairs after which the search for fitting ones ends
UNFIT_SHIFTED = 100  # the same of shifted pairs: a split has few templates, and their prompts are of nearly one length
AT_ONCE = 256  # pairs that are encoded together
NOTHING: Mapping[str, list[int]] = {}
NEEDED_SHARE = 0.25  # of probed pairs that must have equal length and natural answers


@dataclass(frozen=True)
class TokenizedTask:
    """How one tokenizer writes one task: the two answers as text and as token ids; () where every pair has its own.

    vocab_size: the number of tokens that the model has embeddings for; None where it has one for every token.
    """

    task: Task
    answers: tuple[str, str] | tuple[()]
    answer_ids: tuple[int, int] | tuple[()]
    vocab_size: int | None = None


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of rows of different lengths, (N, T) int64, padded with 0 on the right."""
    import torch

    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


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

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair]) -> TaskBatch:
        """At least one pair."""
        import torch

        rows = [ids for pair in pairs for ids in (pair.positive, pair.negative)]
        last = torch.tensor([len(row) - 1 for row in rows])
        sign = torch.tensor([1.0, -1.0]).repeat(len(pairs))
        correct = torch.tensor([answer for pair in pairs for answer in (pair.first, pair.second)])
        wrong = torch.tensor([answer for pair in pairs for answer in (pair.second, pair.first)])
        return cls(padded(rows), last, correct, wrong, sign)

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

    def joined(self, other: TaskBatch) -> TaskBatch:
        """The pairs of both batches, those of this one first."""
        import torch
        from torch.nn.functional import pad

        width = max(self.ids.shape[1], other.ids.shape[1])
        ids = torch.cat([pad(one.ids, (0, width - one.ids.shape[1])) for one in (self, other)])
        return TaskBatch(ids, *(torch.cat([getattr(self, name), getattr(other, name)]) for name in ("last", "correct", "wrong", "sign")))

    def rows(self, rows: Tensor) -> TaskBatch:
        """The prompts at these rows, cut to the longest; members of a pair may part."""
        width = int(self.last[rows].max()) + 1
        ids, last, correct, wrong, sign = (t[rows] for t in (self.ids, self.last, self.correct, self.wrong, self.sign))
        return TaskBatch(ids[:, :width], last, correct, wrong, sign)

    def repeat(self, times: int) -> TaskBatch:
        """The batch, `times` times below each other."""
        ids, *others = (self.ids, self.last, self.correct, self.wrong, self.sign)
        return TaskBatch(ids.repeat(times, 1), *(t.repeat(times) for t in others))

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


def tokenize_task(task: Task, tokenizer: Tokenizer, vocab_size: int | None = None) -> TokenizedTask:
    """Choose the answers' spelling. `vocab_size`: the number of the model's embeddings, None where there are enough.

    Raises TaskNotExpressible, saying how the tokenizer splits the answers, or which token has no embedding.
    """
    probes = list(itertools.islice(task.pairs("select"), PROBED_PAIRS))
    reasons = []
    for answers in task.answers:
        ids = usual_answer_ids(probes, answers, tokenizer)
        if ids is None:
            reasons.append(_unfitness(probes, answers, tokenizer))
            continue
        expression = TokenizedTask(task, answers, ids, vocab_size)
        fitting = sum(encode_pair(pair, expression, tokenizer) is not None for pair in probes)
        if fitting >= NEEDED_SHARE * len(probes):
            return expression
        reasons.append(f"with answers {answers} only {fitting} of {len(probes)} pairs have equal length and unsplit answers")
    if not task.answers:
        expression = TokenizedTask(task, (), (), vocab_size)
        unfit = [pair for pair in probes if encode_pair(pair, expression, tokenizer) is None]
        if probes and len(unfit) <= (1 - NEEDED_SHARE) * len(probes):
            return expression
        example = f": {_unfitness(unfit[:1], (), tokenizer)}" if unfit else ""
        reasons.append(f"only {len(probes) - len(unfit)} of {len(probes)} pairs have equal length and unsplit answers{example}")
    raise TaskNotExpressible(f"task {task.name!r} cannot be asked under this tokenizer: {'; '.join(reasons)}; choose another model or task")


class AnswerMismatch(Exception):
    """Two answers are not single, different tokens after their prompts. The message gives the reason."""


def with_answer(prompt: str, answer: str, tokenizer: Tokenizer, known: Mapping[str, list[int]] = NOTHING) -> tuple[list[int], int]:
    """The ids of a prompt, and the one id that follows them when the answer is written after it.

    known   ids of texts that are encoded already
    An answer is never encoded alone: many tokenizers mark the beginning of a text. Raises AnswerMismatch.
    """
    try:
        ids, together = (known.get(text) or text_ids(tokenizer, text) for text in (prompt, prompt + answer))
    except UnsupportedModel as error:
        raise AnswerMismatch(str(error)) from None
    end = together[len(ids) :]
    if together[: len(ids)] != ids or not end:
        last = token_texts(tokenizer, together[-LAST_PIECES:])
        raise AnswerMismatch(f"after its prompt the answer {answer!r} is not a token of its own: together they end in {last}")
    if len(end) > 1:
        raise AnswerMismatch(f"the answer {answer!r} is {len(end)} tokens {token_texts(tokenizer, end[:SHOWN_PIECES])}, not one")
    return ids, end[0]


def answer_ids(pair: Pair, answers: tuple[str, str], tokenizer: Tokenizer, known: Mapping[str, list[int]] = NOTHING) -> EncodedPair:
    """The ids of two prompts and of their answers. Raises AnswerMismatch."""
    positive, first = with_answer(pair.positive, answers[0], tokenizer, known)
    negative, second = with_answer(pair.negative, answers[1], tokenizer, known)
    if first == second:
        raise AnswerMismatch(f"the answers {answers[0]!r} and {answers[1]!r} are the same token")
    return EncodedPair(positive, negative, first, second)


def usual_answer_ids(pairs: Iterable[Pair], answers: tuple[str, str], tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The ids that the two answers have after most prompts; None where they are nowhere single, different tokens."""
    found: Counter[tuple[int, int]] = Counter()
    for pair in pairs:
        with suppress(AnswerMismatch):
            encoded = answer_ids(pair, answers, tokenizer)
            found[encoded.first, encoded.second] += 1
    return found.most_common(1)[0][0] if found else None


def _unfitness(pairs: Sequence[Pair], answers: tuple[str, str] | tuple[()], tokenizer: Tokenizer) -> str:
    """Why the first of some pairs, none of which fits, does not."""
    if not pairs:
        return "it has no pairs"
    answers = answers or pairs[0].answers or ()
    if not answers:
        return f"{pairs[0].positive!r} has no answer"
    try:
        answer_ids(pairs[0], answers, tokenizer)
    except AnswerMismatch as mismatch:
        return str(mismatch)
    return f"{pairs[0].positive!r} and {pairs[0].negative!r} differ in length"


def encode_pair(
    pair: Pair, expression: TokenizedTask, tokenizer: Tokenizer, known: Mapping[str, list[int]] = NOTHING
) -> EncodedPair | None:
    """None for a pair that does not fit: of unequal length, or with an answer that is not one token, or not the task's.

    Raises TaskNotExpressible for a token without an embedding.
    """
    answers = expression.answers or pair.answers
    if not answers:
        return None
    try:
        encoded = answer_ids(pair, answers, tokenizer, known)
    except AnswerMismatch:
        return None
    if expression.answer_ids and (encoded.first, encoded.second) != expression.answer_ids:
        return None
    if len(encoded.positive) != len(encoded.negative):
        return None
    ids = [*encoded.positive, *encoded.negative, encoded.first, encoded.second]
    if missing := without_embedding(max(ids), tokenizer, expression.vocab_size):
        raise TaskNotExpressible(f"task {expression.task.name!r} cannot be asked of this model: {missing}")
    return encoded


def task_batch(
    expression: TokenizedTask,
    tokenizer: Tokenizer,
    split: str,
    pairs: int,
    seed: int,
    max_tokens: int,
    on_note: Callable[[str], None] = lambda text: None,
    shifted: bool = False,
    fewer: bool = False,
    scanned: int | None = None,
) -> TaskBatch:
    """`pairs` pairs of a split, plain or shifted ones, as tensors.

    Pairs that do not fit and prompts longer than `max_tokens` are left out, which a note counts. scanned: how many pairs are looked at, at
    most; None: until 1,000 in a row do not fit.

    Raises TaskNotExpressible when the split has fewer than that many fitting pairs; with `fewer` only when it has none.
    """
    found, left_out = fitting_pairs(expression, tokenizer, split, pairs, seed, max_tokens, shifted, scanned)
    if len(found) < (1 if fewer else pairs):
        raise TaskNotExpressible(
            f"task {expression.task.name!r} has {len(found)} fitting pairs of at most {max_tokens} tokens in split {split!r}, "
            f"{pairs} were asked for"
        )
    if left_out:
        on_note(
            f"task {expression.task.name}, split {split}: {left_out} of {left_out + len(found)} pairs are left out: their prompts differ "
            f"in length or exceed {max_tokens} tokens, or an answer is not the one token that others have"
        )
    return TaskBatch.of([encoded for _, encoded in found])


def fitting_pairs(
    expression: TokenizedTask,
    tokenizer: Tokenizer,
    split: str,
    most: int,
    seed: int,
    max_tokens: int,
    shifted: bool,
    scanned: int | None = None,
) -> tuple[list[tuple[Pair, EncodedPair]], int]:
    """At most `most` pairs that fit, of the first `scanned`, as text and as token ids; and how many before the last do not fit.

    Raises TaskNotExpressible for a token without an embedding.
    """
    found: list[tuple[Pair, EncodedPair]] = []
    unfit = left_out = 0
    pairs = itertools.islice(expression.task.pairs(split, seed, shifted), scanned)
    for pair, known in _with_ids(pairs, expression, tokenizer, min(most, AT_ONCE)):
        encoded = encode_pair(pair, expression, tokenizer, known)
        if encoded is not None and len(encoded.positive) <= max_tokens:
            found.append((pair, encoded))
            unfit = 0
        else:
            unfit += 1
            left_out += 1
        if len(found) == most or unfit == (UNFIT_SHIFTED if shifted else UNFIT_IN_A_ROW):
            break
    return found, left_out


def _with_ids(
    pairs: Iterable[Pair], expression: TokenizedTask, tokenizer: Tokenizer, at_once: int
) -> Iterator[tuple[Pair, Mapping[str, list[int]]]]:
    """Each pair with the ids of its prompts with and without answers, which are encoded for many pairs together."""
    remaining = iter(pairs)
    while some := list(itertools.islice(remaining, at_once)):
        known = text_ids_of(tokenizer, [text for pair in some for text in _texts(pair, expression.answers or pair.answers)])
        yield from ((pair, known) for pair in some)


def _texts(pair: Pair, answers: tuple[str, str] | None) -> Iterator[str]:
    for prompt, answer in zip((pair.positive, pair.negative), answers or (), strict=False):
        yield prompt
        yield prompt + answer


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
