"""Ordinary text at which a node has its highest, its lowest and its middle values (as in the paper's circuit viewer)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from extractor.circuits.graph import CircuitMask
from extractor.circuits.sites import node_id
from extractor.data.corpus import Corpus
from extractor.pruning.problem import PruningProblem
from extractor.validation.activations import MOST_NODES, TOKENS, values_on_text

RANKS = (0.001, 0.01, 0.1, 0.5)  # fraction of tokens with a higher value
BEFORE, AFTER = 14, 5  # tokens of text around the one that is ranked


@dataclass(frozen=True)
class Passage:
    """rank: fraction of tokens with a higher value; ids, values: tokens in order and the node's value at each; at: the ranked one."""

    rank: float
    ids: tuple[int, ...]
    values: tuple[float, ...]
    at: int


def passages(problem: PruningProblem, graph: CircuitMask, corpus: Corpus, tokens: int = TOKENS) -> dict[str, list[Passage]]:
    """{node: its passages, the highest value first}, values in the full model; {} for circuits of more than `MOST_NODES` nodes."""
    if graph.node_count() > MOST_NODES:
        return {}
    text, on_text = values_on_text(problem, graph, corpus, tokens)
    ranks, context = (*RANKS, *(1 - rank for rank in reversed(RANKS[:-1]))), text.shape[1]
    found: dict[str, list[Passage]] = {}
    for site, (kept, values) in on_text.items():
        order = values.flatten(0, 1).argsort(stable=True, dim=0, descending=True)
        for number, channel in enumerate(kept.tolist()):
            at = [int(order[round(rank * (len(order) - 1)), number]) for rank in ranks]
            found[node_id(site, channel)] = [
                _passage(text, values[..., number], rank, place // context, place % context) for rank, place in zip(ranks, at, strict=True)
            ]
    return found


def _passage(text: torch.Tensor, values: torch.Tensor, rank: float, row: int, column: int) -> Passage:
    start, stop = max(0, column - BEFORE), column + AFTER + 1
    return Passage(rank, tuple(text[row, start:stop].tolist()), tuple(values[row, start:stop].tolist()), column - start)
