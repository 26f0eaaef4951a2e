"""Ordinary text at which a node has its highest, its lowest and its middle values (as in the paper's circuit viewer)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from extractor.circuits.graph import CircuitMask
from extractor.circuits.sites import node_id
from extractor.data.corpus import Corpus
from extractor.pruning.problem import PruningProblem
from extractor.validation.activations import MOST_NODES, TOKENS

RANKS = (0.001, 0.01, 0.1, 0.5)  # fraction of tokens with a higher value
BEFORE, AFTER = 14, 5  # tokens of text around the one that is ranked
_ROWS = 64


@dataclass(frozen=True)
class Passage:
    """rank: fraction of tokens with a higher value; ids, values: tokens in order and the node's value at each; at: the ranked one."""

    rank: float
    ids: tuple[int, ...]
    values: tuple[float, ...]
    at: int


@torch.no_grad()
def passages(problem: PruningProblem, graph: CircuitMask, corpus: Corpus, tokens: int = TOKENS) -> dict[str, list[Passage]]:
    """{node: its passages, the highest value first}, values in the full model; {} for circuits of more than `MOST_NODES` nodes."""
    if graph.node_count() > MOST_NODES:
        return {}
    model, context = problem.model, problem.model.config.n_ctx
    channels = {site: part for site, part in graph.channels().items() if len(part)}
    text = corpus.batch(problem.seed, 1 << 41, max(1, tokens // context), context)
    seen: dict[str, list[torch.Tensor]] = {site: [] for site in channels}
    with model.record(list(channels)) as values:
        for ids in text.split(_ROWS):
            model(input_ids=ids.to(model.device), logits_to_keep=1)
            for site, kept in channels.items():
                seen[site].append(values[site][..., kept].cpu())
    found: dict[str, list[Passage]] = {}
    ranks = (*RANKS, *(1 - rank for rank in reversed(RANKS[:-1])))
    for site, kept in channels.items():
        by_node = torch.cat(seen[site])  # (rows, context, nodes)
        order = by_node.flatten(0, 1).argsort(stable=True, dim=0, descending=True)
        for number, channel in enumerate(kept.tolist()):
            at = [int(order[round(rank * (len(order) - 1)), number]) for rank in ranks]
            found[node_id(site, channel)] = [
                _passage(text, by_node[..., number], rank, place // context, place % context) for rank, place in zip(ranks, at, strict=True)
            ]
    return found


def _passage(text: torch.Tensor, values: torch.Tensor, rank: float, row: int, column: int) -> Passage:
    start, stop = max(0, column - BEFORE), column + AFTER + 1
    return Passage(rank, tuple(text[row, start:stop].tolist()), tuple(values[row, start:stop].tolist()), column - start)
