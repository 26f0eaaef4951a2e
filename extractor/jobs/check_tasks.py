"""How well a model does each task without any training: the answers in its tokens, its held-out loss and accuracy.

Works for every model that a circuit job accepts: dense ones with or without an adapter, and sparse ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from extractor.data import prompts
from extractor.data.encoding import token_text, token_texts
from extractor.data.task_choice import check_expressible
from extractor.errors import TaskNotExpressible
from extractor.models import hub
from extractor.models.checks import vocab_size_of
from extractor.models.reference import is_here, open_adapter, open_model
from extractor.models.tokenizer import load_tokenizer
from extractor.models.tokenizer_files import TOKENIZER_DOWNLOADS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

    from extractor.data.prompts import TaskBatch, TokenizedTask
    from tasks import Task

PAIRS = 256  # held-out pairs
PROMPTS_AT_ONCE = 64
SEARCHED_PAIRS = 1000  # pairs among which samples that the tokenizer can express are searched


@dataclass(frozen=True)
class TaskCheck:
    """A model's performance on a task, over both prompts of `pairs` held-out pairs.

    why        why the tokenizer cannot express the task; then the numbers are None
    answers    the two answers as the tokenizer writes them; None where every pair has its own
    loss       nats per prompt;  accuracy: a fraction
    """

    task: str
    expressible: bool
    why: str | None
    answers: tuple[str, ...] | None
    pairs: int | None
    loss: float | None
    accuracy: float | None
    meets_target: bool


def tokenizer_of(reference: str) -> tuple[Tokenizer, int | None]:
    """The tokenizer of a JobSpec's model, and the number of its embeddings where known; downloads no weights of a hub model.

    Raises ModelNotFound, UnsupportedModel, BrokenArtifact.
    """
    folder = open_model(reference).path if is_here(reference) else hub.download(reference, TOKENIZER_DOWNLOADS)
    return load_tokenizer(folder), vocab_size_of(folder)


def open_on_device(reference: str, adapter: str | None = None) -> tuple[PreTrainedModel, Tokenizer]:
    """A JobSpec's model, dense or sparse, with the adapter merged, on the device; and its tokenizer.

    Raises ModelNotFound, UnsupportedModel, BrokenArtifact.
    """
    from extractor.models.load import load_dense, load_model
    from extractor.training.compute import pick_device

    folder = open_model(reference)
    model: Any = load_model(folder) if adapter is None else load_dense(folder, open_adapter(adapter)).model
    return model.to(pick_device()).eval().requires_grad_(False), load_tokenizer(folder.path)


def check_tasks(
    model: PreTrainedModel, tokenizer: Tokenizer, tasks: Iterable[Task], target_loss: float, pairs: int = PAIRS, seed: int = 0
) -> Iterator[TaskCheck]:
    """Measure the tasks one after the other; yields each row as soon as it is known."""
    longest = model.config.max_position_embeddings
    for task in tasks:
        try:
            tokenized = check_expressible(task, tokenizer, longest, model.config.vocab_size)
            available = task.available("held_out")
            batch = prompts.task_batch(tokenized, tokenizer, "held_out", min(pairs, available or pairs), seed, longest)
        except TaskNotExpressible as error:
            yield TaskCheck(task.name, False, str(error), None, None, None, None, False)
            continue
        diff = last_logit_diff(model, batch)
        loss, right = prompts.task_loss(diff, batch.sign).item(), prompts.accuracy(diff, batch.sign)
        yield TaskCheck(task.name, True, None, tokenized.answers or None, batch.pairs, loss, right, loss <= target_loss)


def last_logit_diff(model: PreTrainedModel, batch: TaskBatch) -> Tensor:
    """The logit differences (2P,) of a model, on the CPU. Prompts of equal length run together, without padding."""
    import torch

    diff = torch.empty(len(batch.ids))
    with torch.no_grad():
        for last in batch.last.unique():
            for rows in (batch.last == last).nonzero()[:, 0].split(PROMPTS_AT_ONCE):
                part = batch.rows(rows)
                logits = model(input_ids=part.ids.to(model.device), logits_to_keep=1).logits[:, -1]
                diff[rows] = prompts.logit_diff(logits.float().cpu(), part)
    return diff


def samples(tokenized: TokenizedTask, tokenizer: Tokenizer, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Some pairs of the task that the tokenizer can express, cut into tokens: [{positive, negative: {text, tokens, answer}}]."""
    fitting = (
        (pair, encoded)
        for pair in islice(tokenized.task.pairs("train", seed), SEARCHED_PAIRS)
        if (encoded := prompts.encode_pair(pair, tokenized, tokenizer)) is not None
    )

    def prompt(text: str, ids: list[int], answer: int) -> dict[str, Any]:
        return {"text": text, "tokens": token_texts(tokenizer, ids), "answer": token_text(tokenizer, answer)}

    return [
        {"positive": prompt(pair.positive, ids.positive, ids.first), "negative": prompt(pair.negative, ids.negative, ids.second)}
        for pair, ids in islice(fitting, count)
    ]
