"""Steering by hand: a finished result and two prompts in, what the dense model answers along the strengths of an edit out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor import files
from extractor.circuits.circuit import Circuit
from extractor.errors import NotFound, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from extractor.bridges.pair import BridgedPair
    from extractor.bridges.steering.edit import CounterfactualRun, ResidualEdit, SteeredNode, Way

TOP_TOKENS = 3


@dataclass(frozen=True)
class BridgedResult:
    """One circuit of a finished result folder whose sparse model has bridges."""

    folder: Path
    circuit: Circuit

    @cached_property
    def pair(self) -> BridgedPair:
        """Opened with the dense model that the bridges were made for. Raises what opening a model raises."""
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
    """The circuit of a task in a finished result; torch is not needed yet.

    Raises NotFound for a result that is unfinished or none, UsageError where there is no dense model or which circuit is meant is open.
    """
    if not (folder / "spec.json").is_file():
        raise NotFound(f"{folder} is not a result folder: it holds no spec.json")
    if not (folder / files.MANIFEST).is_file():
        raise NotFound(f"the result in {folder} is not finished; wait for its job, or run its spec again")
    if not (folder / "model" / "bridges").is_dir():
        raise UsageError(f"the result in {folder} was made from a sparse model, there is no dense model to steer")
    found = sorted(place.parent.name for place in folder.glob("circuits/*/circuit.json"))
    if task is None and len(found) == 1:
        task = found[0]
    if task not in found:
        asked = f"no circuit of {task!r}" if task else "several circuits; say which with --task" if found else "no circuit"
        raise UsageError(f"the result in {folder} holds {asked}{'; it has ' + ', '.join(found) if found else ''}")
    return BridgedResult(folder, Circuit.from_json(files.read_json(folder / "circuits" / task / "circuit.json")))


def steer_result(
    result: BridgedResult, toward: str, prompt: str | None, nodes: Sequence[str], way: Way | None, strengths: Sequence[float], seed: int = 0
) -> dict[str, Any]:
    """What the dense model says after `prompt` while nodes of one site go toward their values after another prompt.

    {model, task, nodes, way, prompt, toward, answers, other (the one it does not give by itself), steps}; a step is {strength,
    probability: both answers' among all tokens, between: the other's against the first, random, random_worst: the same of random
    directions, top: [[token, probability], ...]}. Where a task's answers vary, they are what the model says after the two prompts.

    prompt   None: a held-out prompt of the task with the other answer, as near to `toward` as there is
    nodes    none: the best of the circuit
    way      see `contrast`; None: the way that was found best, else 'read'
    Raises UsageError.
    """
    from extractor.bridges.steering.edit import CounterfactualRun, find_node

    pair, circuit = result.pair, result.circuit
    chosen = [find_node(pair, node, [n.id for n in circuit.nodes]) for node in nodes]
    there = _encode(result, toward)
    here = _encode(result, prompt) if prompt is not None else _held_out(result, there)
    _check_lengths(result, here, there)
    contrast = CounterfactualRun(pair, _row(result, here), _row(result, there), _row(result, [len(here) - 1])[0])
    choice = _choice(result, contrast)
    if not chosen:
        chosen, way = _best(result, contrast, choice, way)
    change = contrast.change(chosen, way or "read")
    return {
        "model": pair.name,
        "task": circuit.task,
        "nodes": [node.id for node in chosen],
        "way": change.way,
        "prompt": result.tokenizer.decode(here),
        "toward": toward,
        "answers": list(choice.answers),
        "other": choice.answers[choice.other],
        "steps": _steps(result, contrast, choice, change, strengths, seed),
    }


@dataclass(frozen=True)
class AnswerPair:
    """The two answers, their tokens, and which of them (0 or 1) the dense model does not give by itself."""

    answers: tuple[str, str]
    ids: tuple[int, int]
    other: int

    def between(self, logits: Tensor) -> float:
        """The other answer's probability against the first's, from logits (1, V)."""
        return logits[0, list(self.ids)].double().softmax(0)[self.other].item()


def _choice(result: BridgedResult, contrast: CounterfactualRun) -> AnswerPair:
    """Between the task's answers; where these vary, between what the dense model says after each prompt, which must differ."""
    circuit = result.circuit
    if circuit.answers and circuit.answer_ids:
        return AnswerPair(circuit.answers, circuit.answer_ids, int(contrast.plain_logits()[0, list(circuit.answer_ids)].argmin()))
    ids = _said(result, contrast.presented), _said(result, contrast.toward)
    answers = result.tokenizer.decode([ids[0]]), result.tokenizer.decode([ids[1]])
    if ids[0] == ids[1]:
        raise UsageError(
            f"{result.pair.name} says {answers[0]!r} after both prompts; the answers of {circuit.task} vary: "
            "give prompts with different ones"
        )
    return AnswerPair(answers, ids, 1)


def _said(result: BridgedResult, ids: Tensor) -> int:
    """What the dense model finds likeliest after a prompt (1, T): one of the task's two answers, or any token where these vary."""
    from extractor.bridges.steering.edit import CounterfactualRun

    logits, known = (
        CounterfactualRun(result.pair, ids, ids, _row(result, [ids.shape[1] - 1])[0]).plain_logits()[0],
        result.circuit.answer_ids,
    )
    return known[int(logits[list(known)].argmax())] if known else int(logits.argmax())


def _steps(
    result: BridgedResult, contrast: CounterfactualRun, choice: AnswerPair, change: ResidualEdit, strengths: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    from extractor.bridges.steering.edit import random_directions
    from extractor.bridges.steering.evaluate import RANDOM_DRAWS

    drawn = random_directions(change, RANDOM_DRAWS, seed)
    found = []
    for strength in strengths:
        logits = contrast.logits(change, strength)
        everything = logits[0].softmax(0)
        best = everything.topk(TOP_TOKENS)
        chance = [choice.between(contrast.logits(turned, strength)) for turned in drawn]
        found.append(
            {
                "strength": strength,
                "probability": dict(zip(choice.answers, everything[list(choice.ids)].tolist(), strict=True)),
                "between": choice.between(logits),
                "random": sum(chance) / len(chance),
                "random_worst": max(chance),
                "top": [[result.tokenizer.decode([i]), p] for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)],
            }
        )
    return found


def _best(result: BridgedResult, contrast: CounterfactualRun, choice: AnswerPair, way: Way | None) -> tuple[list[SteeredNode], Way | None]:
    """The node that the report found best, and its way; where there is no such finding, the best for these prompts."""
    from extractor.bridges.steering.edit import find_node, steerable

    known = files.read_json(result.circuit_folder / "result.json").get("steering")
    if known:
        return [find_node(result.pair, known["node"])], way or known["way"]
    nodes = steerable(result.pair, [node.id for node in result.circuit.nodes])
    if not nodes:
        raise UsageError(f"the circuit of {result.circuit.task} has no node that can be steered; name one of the model with --node")

    def moved(node: SteeredNode) -> float:
        return choice.between(contrast.logits(contrast.change([node], way or "read")))

    return [max(nodes, key=moved)], way


def _encode(result: BridgedResult, text: str) -> list[int]:
    """Token ids. Raises UsageError for a text that is empty or longer than both models read."""
    pair = result.pair
    ids: list[int] = result.tokenizer.encode(text, add_special_tokens=False).ids
    base: Any = pair.adapter.get_base_model()
    longest = min(pair.sparse.config.n_ctx, base.config.max_position_embeddings)
    if not ids:
        raise UsageError("a prompt is empty; give it at least one token")
    if len(ids) > longest:
        raise UsageError(f"prompt {text[:40]!r} has {len(ids)} tokens, the models take at most {longest}; shorten it")
    return ids


def _check_lengths(result: BridgedResult, here: list[int], there: list[int]) -> None:
    if len(here) == len(there):
        return
    told = [f"{len(ids)} tokens {[result.tokenizer.decode([i]) for i in ids]}" for ids in (here, there)]
    raise UsageError(f"both prompts must have the same number of tokens: --prompt has {told[0]}, --toward {told[1]}")


def _held_out(result: BridgedResult, there: list[int]) -> list[int]:
    """The held-out prompt nearest to `there`, token by token, whose wrong answer is the one that the dense model gives there."""
    import torch

    kept = files.read_tensors(result.circuit_folder / "held_out.safetensors")
    fitting = (kept["last"] == len(there) - 1).nonzero()[:, 0]
    rows = fitting[kept["wrong"][fitting] == _said(result, _row(result, there))]
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
