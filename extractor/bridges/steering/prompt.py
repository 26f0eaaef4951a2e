"""`extract steer`: edit nodes of a finished result on a prompt of the user's, and show the dense model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor import files
from extractor.circuits.circuit import Circuit
from extractor.data.encoding import marks_of, prompt_text, text_ids, token_text, token_texts, without_embedding
from extractor.errors import NotFound, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from extractor.bridges.pair import BridgedPair
    from extractor.bridges.steering.edit import CounterfactualRun, ResidualEdit, SteeredNode, Way

TOP_TOKENS = 3


@dataclass(frozen=True)
class BridgedResult:
    """A circuit of a finished result whose sparse model has bridges."""

    folder: Path
    circuit: Circuit

    @cached_property
    def pair(self) -> BridgedPair:
        """The models, loaded at the first use. Raises what `open_pair` raises."""
        from extractor.bridges.pair import open_pair

        return open_pair(self.folder / "model")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from extractor.models.tokenizer import load_tokenizer

        return load_tokenizer(self.folder / "model")

    @property
    def circuit_folder(self) -> Path:
        return self.folder / "circuits" / self.circuit.task


def open_result(folder: Path, task: str | None = None) -> BridgedResult:
    """The circuit of a task in a finished result; without `task` its only circuit. Does not load torch.

    Raises NotFound where there is no finished result, UsageError where it has no dense model, no such circuit or several circuits.
    """
    if not (folder / "spec.json").is_file():
        raise NotFound(f"{folder} is not a result folder: it holds no spec.json")
    if not (folder / files.MANIFEST).is_file():
        raise NotFound(f"the result in {folder} is not finished; wait for its job, or run its spec again")
    if not (folder / "model" / "bridges").is_dir():
        spec = files.read_json(folder / "spec.json")
        how = "is a circuit of the dense model itself (--dense)" if spec.get("subject") == "dense" else "was made from a sparse model"
        raise UsageError(f"the result in {folder} {how}, there is no bridge to steer a dense model through")
    found = sorted(place.parent.name for place in folder.glob("circuits/*/circuit.json"))
    if task is None and len(found) == 1:
        task = found[0]
    if task not in found:
        problem = f"no circuit of {task!r}" if task else "several circuits; say which with --task" if found else "no circuit"
        raise UsageError(f"the result in {folder} holds {problem}{'; it has ' + ', '.join(found) if found else ''}")
    return BridgedResult(folder, Circuit.from_json(files.read_json(folder / "circuits" / task / "circuit.json")))


def steer_result(
    result: BridgedResult, toward: str, prompt: str | None, nodes: Sequence[str], way: Way | None, strengths: Sequence[float], seed: int = 0
) -> dict[str, Any]:
    """The dense model's answers after `prompt` while nodes of one site move to their values after the prompt `toward`.

    prompt   None: the held-out prompt of the task with the other answer that is most similar to `toward`
    nodes    empty: the best node of the circuit
    way      see edit.py; None: the way that the report found best, else 'read'

    Returns {model, task, nodes, way, prompt, toward, answers, other (the answer that the model does not give without an edit), steps}. A
    step is {strength, probability (of both answers, among all tokens), between (of `other`, against the first answer), random,
    random_worst (`between` for random directions: mean and highest), top ([[token, probability], ...])}. Where a task's answers vary from
    pair to pair, they are the likeliest tokens after the two prompts. Raises UsageError.
    """
    from extractor.bridges.steering.edit import CounterfactualRun, find_node

    pair, circuit = result.pair, result.circuit
    chosen = [find_node(pair, node, [n.id for n in circuit.nodes]) for node in nodes]
    there = _encode(result, toward)
    here = _encode(result, prompt) if prompt is not None else _held_out(result, there)
    _check_lengths(result, here, there)
    run = CounterfactualRun(pair, _row(result, here), _row(result, there), _row(result, [len(here) - 1])[0])
    choice = _choice(result, run)
    if not chosen:
        chosen, way = _best(result, run, choice, way)
    edit = run.edit(chosen, way or "read")
    return {
        "model": pair.name,
        "task": circuit.task,
        "nodes": [node.id for node in chosen],
        "way": edit.way,
        "prompt": prompt_text(result.tokenizer, here),
        "toward": toward,
        "answers": list(choice.answers),
        "other": choice.answers[choice.other],
        "steps": _steps(result, run, choice, edit, strengths, seed),
    }


@dataclass(frozen=True)
class AnswerPair:
    """The two answers, their token ids, and the index of the one that the dense model does not give without an edit."""

    answers: tuple[str, str]
    ids: tuple[int, int]
    other: int

    def between(self, logits: Tensor) -> float:
        """The probability of `other` against the first answer, from logits (1, V)."""
        return logits[0, list(self.ids)].double().softmax(0)[self.other].item()


def _choice(result: BridgedResult, run: CounterfactualRun) -> AnswerPair:
    """The task's answers; where these vary, the likeliest tokens after each prompt, which must differ."""
    circuit = result.circuit
    if circuit.answers and circuit.answer_ids:
        return AnswerPair(circuit.answers, circuit.answer_ids, int(run.plain_logits()[0, list(circuit.answer_ids)].argmin()))
    ids = _likeliest(result, run.presented), _likeliest(result, run.counterfactual)
    answers = token_text(result.tokenizer, ids[0]), token_text(result.tokenizer, ids[1])
    if ids[0] == ids[1]:
        raise UsageError(
            f"{result.pair.name} says {answers[0]!r} after both prompts; the answers of {circuit.task} vary: "
            "give prompts with different ones"
        )
    return AnswerPair(answers, ids, 1)


def _likeliest(result: BridgedResult, ids: Tensor) -> int:
    """The token that is likeliest after a prompt (1, T) in the dense model: one of the task's answers, or any where these vary."""
    from extractor.bridges.steering.edit import CounterfactualRun

    last, known = _row(result, [ids.shape[1] - 1])[0], result.circuit.answer_ids
    logits = CounterfactualRun(result.pair, ids, ids, last).plain_logits()[0]
    return known[int(logits[list(known)].argmax())] if known else int(logits.argmax())


def _steps(
    result: BridgedResult, run: CounterfactualRun, choice: AnswerPair, edit: ResidualEdit, strengths: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    from extractor.bridges.steering.edit import random_directions
    from extractor.bridges.steering.evaluate import RANDOM_DRAWS

    drawn = random_directions(edit, RANDOM_DRAWS, seed)
    found = []
    for strength in strengths:
        logits = run.logits(edit, strength)
        everything = logits[0].softmax(0)
        best = everything.topk(TOP_TOKENS)
        chance = [choice.between(run.logits(turned, strength)) for turned in drawn]
        found.append(
            {
                "strength": strength,
                "probability": dict(zip(choice.answers, everything[list(choice.ids)].tolist(), strict=True)),
                "between": choice.between(logits),
                "random": sum(chance) / len(chance),
                "random_worst": max(chance),
                "top": [[token_text(result.tokenizer, i), p] for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)],
            }
        )
    return found


def _best(result: BridgedResult, run: CounterfactualRun, choice: AnswerPair, way: Way | None) -> tuple[list[SteeredNode], Way | None]:
    """The best node of the report and its way; without such a report, the best node for these prompts."""
    from extractor.bridges.steering.edit import find_node, steerable

    known = files.read_json(result.circuit_folder / "result.json").get("steering")
    if known:
        return [find_node(result.pair, known["node"])], way or known["way"]
    nodes = steerable(result.pair, [node.id for node in result.circuit.nodes])
    if not nodes:
        raise UsageError(f"the circuit of {result.circuit.task} has no node that can be steered; name one of the model with --node")

    def moved(node: SteeredNode) -> float:
        return choice.between(run.logits(run.edit([node], way or "read")))

    return [max(nodes, key=moved)], way


def _encode(result: BridgedResult, text: str) -> list[int]:
    """Token ids. Raises UsageError for a text that is empty or too long for one of the models."""
    pair = result.pair
    ids = text_ids(result.tokenizer, text)
    base: Any = pair.adapter.get_base_model()
    longest = min(pair.sparse.config.n_ctx, base.config.max_position_embeddings)
    if ids == marks_of(result.tokenizer).before:
        raise UsageError("a prompt is empty; give it at least one token")
    if len(ids) > longest:
        raise UsageError(f"prompt {text[:40]!r} has {len(ids)} tokens, the models take at most {longest}; shorten it")
    if missing := without_embedding(max(ids), result.tokenizer, base.config.vocab_size):
        raise UsageError(f"prompt {text[:40]!r}: {missing}")
    return ids


def _check_lengths(result: BridgedResult, here: list[int], there: list[int]) -> None:
    if len(here) == len(there):
        return
    shown = [f"{len(ids)} tokens {token_texts(result.tokenizer, ids)}" for ids in (here, there)]
    raise UsageError(f"both prompts must have the same number of tokens: --prompt has {shown[0]}, --toward {shown[1]}")


def _held_out(result: BridgedResult, there: list[int]) -> list[int]:
    """The held-out prompt with most tokens in common with `there` whose wrong answer is the dense model's answer to `there`."""
    import torch

    kept = files.read_tensors(result.circuit_folder / "held_out.safetensors")
    fitting = (kept["last"] == len(there) - 1).nonzero()[:, 0]
    rows = fitting[kept["wrong"][fitting] == _likeliest(result, _row(result, there))]
    if not len(rows):
        lengths = sorted({int(last) + 1 for last in kept["last"]})
        raise UsageError(
            f"no held-out prompt of {len(there)} tokens has the other answer (there are some of {lengths}); give one with --prompt"
        )
    prompts = kept["ids"][rows, : len(there)]
    return prompts[int((prompts == torch.tensor(there)).sum(1).argmax())].tolist()


def _row(result: BridgedResult, ids: list[int]) -> Tensor:
    import torch

    return torch.tensor([ids], device=result.pair.sparse.device)
