"""What a node does on ordinary text: where it is highest, lowest and in the middle (the paper's circuit viewer), and its histogram."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.circuits.sites import node_id
from extractor.data.corpus import Corpus
from extractor.pruning.problem import PruningProblem
from extractor.validation.activations import MOST_NODES, TOKENS, values_on_text

RANKS = (0.001, 0.01, 0.1, 0.5)  # fraction of tokens with a higher value
BEFORE, AFTER = 14, 5  # tokens of text around the one that is ranked
MOST_EACH, MOST_PASSAGES = 5, 300  # of a node at one rank; of all nodes at one rank, where each has more than one
BINS = 24
OUTSIDE = 0.001  # fraction of tokens below and above the bins: they count in the first and the last


@dataclass(frozen=True)
class Passage:
    """rank: fraction of tokens with a higher value; ids, values: tokens in order and the node's value at each; at: the ranked one."""

    rank: float
    ids: tuple[int, ...]
    values: tuple[float, ...]
    at: int


@dataclass(frozen=True)
class OnText:
    """passages: the highest value first;  low, high: ends of the bins;  counts: tokens in each of `BINS` bins of equal width."""

    passages: tuple[Passage, ...]
    low: float
    high: float
    counts: tuple[int, ...]


def on_text(problem: PruningProblem, graph: CircuitMask, corpus: Corpus, tokens: int = TOKENS) -> dict[str, OnText]:
    """{node: its passages and its histogram}, values in the full model; {} for circuits of more than `MOST_NODES` nodes."""
    if graph.node_count() > MOST_NODES:
        return {}
    text, values_of = values_on_text(problem, graph, corpus, tokens)
    each = max(1, min(MOST_EACH, MOST_PASSAGES // max(1, graph.node_count())))
    found: dict[str, OnText] = {}
    for site, (kept, values) in values_of.items():
        order = values.flatten(0, 1).argsort(stable=True, dim=0, descending=True)
        for number, channel in enumerate(kept.tolist()):
            own = values[..., number]
            found[node_id(site, channel)] = OnText(tuple(_passages(text, own, order[:, number], each)), *_histogram(own.flatten()))
    return found


def _passages(text: Tensor, values: Tensor, order: Tensor, each: int) -> Iterator[Passage]:
    """At every rank, `each` passages of different rows of text: the nearest in the order of values (R * context,), highest first."""
    context, last = text.shape[1], len(order) - 1
    for rank in (*RANKS, *(1 - rank for rank in reversed(RANKS[:-1]))):
        centre, rows = round(rank * last), set[int]()
        near = (place for step in range(last + 1) for place in dict.fromkeys((centre + step, centre - step)) if 0 <= place <= last)
        for place in near:
            row, column = divmod(int(order[place]), context)
            if row not in rows:
                rows.add(row)
                yield _passage(text, values, place / max(1, last), row, column)
            if len(rows) == min(each, len(text)):
                break


def _passage(text: Tensor, values: Tensor, rank: float, row: int, column: int) -> Passage:
    start, stop = max(0, column - BEFORE), column + AFTER + 1
    return Passage(rank, tuple(text[row, start:stop].tolist()), tuple(values[row, start:stop].tolist()), column - start)


def _histogram(values: Tensor) -> tuple[float, float, tuple[int, ...]]:
    ordered = values.sort().values
    low, high = (float(ordered[round(place * (len(ordered) - 1))]) for place in (OUTSIDE, 1 - OUTSIDE))
    if high <= low:
        return low, high, (len(values), *(0,) * (BINS - 1))
    counts = torch.histc(values.clamp(low, high).float().cpu(), BINS, low, high)
    return low, high, tuple(map(int, counts.tolist()))
