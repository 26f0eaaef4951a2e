"""What the page of a circuit shows token by token: pairs of prompts, the nodes' values, attention, passages of ordinary text.

Values are integers, to keep the page small: 127 is the node's largest deviation from its mean on the shown prompts or in its passages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor.data.encoding import token_text
from extractor.validation.mechanism.claims import is_measured
from extractor.validation.mechanism.observe import CircuitOnPairs
from extractor.validation.passages import OnText, Passage, on_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.circuits.circuit import Circuit
    from extractor.jobs.context import CircuitRun
    from extractor.pruning.criteria import PrunedCircuit
    from extractor.pruning.problem import PruningProblem

PAIRS = 8
MOST_NUMBERS = 150_000  # of values and attention each; with more, fewer pairs are shown
STEPS = 127


def page_data(run: CircuitRun, problem: PruningProblem, circuit: Circuit, pruned: PrunedCircuit) -> dict[str, Any] | None:
    """The content of tokens.json; None for the circuits whose mechanism is not measured (see `mechanism.claims`).

    texts      token texts; all other places give indices into them
    ids        their tokens
    pairs      [{tokens: [[index, ...] of both prompts], answers: [index, index] the right ones, first: [probability of the first answer]}]
    nodes      {id: {scale, values: [[[integer, ...] of both prompts] of every pair]}}
    heads      {'layer.head': [[[[integer of 255, ...] of every token] of both prompts] of every pair]}: row i attends to tokens 0 to i
    passages   {id: {scale, texts: [{rank, tokens, values, at}]}}; {} without ordinary text
    histograms {id: {low, high, counts: tokens in each of the bins between}}; {} without ordinary text
    """
    held_out = run.splits.held_out
    if not is_measured(problem, pruned.graph):
        return None
    longest = held_out.ids.shape[1]
    each = 2 * longest * max(len(circuit.nodes), 8 * longest)
    pairs = max(1, min(PAIRS, held_out.pairs, MOST_NUMBERS // each))
    seen = CircuitOnPairs(problem, pruned.graph, pruned.calibration, held_out.pick(torch.arange(pairs)))
    texts = _Texts(run.loaded.tokenizer)
    means = {node.id: node.mean for node in circuit.nodes}
    corpus = run.loaded.corpus
    read = {} if corpus is None else on_text(problem, pruned.graph, corpus)
    found = {
        "pairs": [_pair(seen, texts, row) for row in range(0, 2 * pairs, 2)],
        "nodes": {node: _values(seen, seen.values[node] - seen.mean(node)) for node in seen.nodes},
        "heads": {f"{layer}.{head}": _attention(seen, pattern) for (layer, head), pattern in seen.patterns.items()},
        "passages": {node: _passages(one.passages, means[node], texts) for node, one in read.items()},
        "histograms": {node: _histogram(one) for node, one in read.items()},
    }
    return {"texts": texts.texts, "ids": texts.ids} | found


class _Texts:
    """Texts of tokens, each once."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.texts, self._places = tokenizer, list[str](), dict[int, int]()

    @property
    def ids(self) -> list[int]:
        return list(self._places)

    def places(self, ids: Iterable[int]) -> list[int]:
        return [self._place(token) for token in ids]

    def _place(self, token: int) -> int:
        if token not in self._places:
            self._places[token] = len(self.texts)
            self.texts.append(token_text(self.tokenizer, token))
        return self._places[token]


def _pair(seen: CircuitOnPairs, texts: _Texts, row: int) -> dict[str, Any]:
    batch, rows = seen.batch, (row, row + 1)
    return {
        "tokens": [texts.places(batch.ids[r, : int(batch.last[r]) + 1].tolist()) for r in rows],
        "answers": texts.places(batch.correct[list(rows)].tolist()),
        "first": [round(p, 4) for p in seen.diff[list(rows)].sigmoid().tolist()],
    }


def _by_pair(seen: CircuitOnPairs, rows: Sequence[Any]) -> list[list[Any]]:
    return [list(rows[row : row + 2]) for row in range(0, len(seen.batch.ids), 2)]


def _values(seen: CircuitOnPairs, deviation: Tensor) -> dict[str, Any]:
    scale = max(float(deviation[seen.real].abs().max()), 1e-9)
    steps = (deviation / scale * STEPS).round().int().tolist()
    cut = [row[: int(last) + 1] for row, last in zip(steps, seen.batch.last, strict=True)]
    return {"scale": float(f"{scale:.4g}"), "values": _by_pair(seen, cut)}


def _attention(seen: CircuitOnPairs, pattern: Tensor) -> list[list[Any]]:
    steps = (pattern * 255).round().int().tolist()
    rows = [[row[: i + 1] for i, row in enumerate(one[: int(last) + 1])] for one, last in zip(steps, seen.batch.last, strict=True)]
    return _by_pair(seen, rows)


def _histogram(one: OnText) -> dict[str, Any]:
    return {"low": float(f"{one.low:.4g}"), "high": float(f"{one.high:.4g}"), "counts": list(one.counts)}


def _passages(some: Sequence[Passage], mean: float, texts: _Texts) -> dict[str, Any]:
    scale = max(1e-9, *(abs(value - mean) for one in some for value in one.values))
    rows = [
        {
            "rank": round(one.rank, 4),
            "tokens": texts.places(one.ids),
            "values": [round((value - mean) / scale * STEPS) for value in one.values],
            "at": one.at,
        }
        for one in some
    ]
    return {"scale": float(f"{scale:.4g}"), "texts": rows}
