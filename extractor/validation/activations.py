"""What a node does on ordinary text (App. E, F): a node that means one thing is still most of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.circuits.sites import node_id
from extractor.data.corpus import Corpus
from extractor.pruning.problem import PruningProblem

TOKENS = 16_384
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
MOST_NODES = 4096  # larger circuits are nearly the full model; their nodes are not measured
_ROWS = 64


def activations(problem: PruningProblem, graph: CircuitMask, corpus: Corpus, tokens: int = TOKENS) -> dict[str, Any] | None:
    """The distribution of every node's value over pretraining text, in the full model; None for a circuit of more than `MOST_NODES` nodes.

    percentiles   1, 10, 25, 50, 75, 90, 99
    tokens        number of tokens read
    nodes         {id: {values: at these percentiles, nonzero: fraction of tokens at which the value is not zero}}
    """
    if graph.node_count() > MOST_NODES:
        return None
    nodes, count = {}, 0
    for site, (kept, values) in values_on_text(problem, graph, corpus, tokens)[1].items():
        ordered = values.flatten(0, 1).sort(0).values  # (tokens, nodes)
        count = len(ordered)
        places = [round(percent / 100 * (count - 1)) for percent in PERCENTILES]
        nonzero = (ordered != 0).double().mean(0).tolist()
        for channel, at, share in zip(kept.tolist(), ordered[places].T.tolist(), nonzero, strict=True):
            nodes[node_id(site, channel)] = {"values": at, "nonzero": share}
    return {"percentiles": list(PERCENTILES), "tokens": count, "nodes": nodes}


@torch.no_grad()
def values_on_text(
    problem: PruningProblem, graph: CircuitMask, corpus: Corpus, tokens: int = TOKENS
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Rows of text (R, context), and {site: (kept channels (n,), their values in the full model (R, context, n))}."""
    model, context = problem.model, problem.model.config.n_ctx
    channels = {site: part for site, part in graph.channels().items() if len(part)}
    text = corpus.batch(problem.seed, 1 << 41, max(1, tokens // context), context)
    seen: dict[str, list[Tensor]] = {site: [] for site in channels}
    with model.record(list(channels)) as values:
        for ids in text.split(_ROWS):
            model(input_ids=ids.to(model.device), logits_to_keep=1)
            for site, kept in channels.items():
                seen[site].append(values[site][..., kept])
    return text, {site: (kept, torch.cat(seen[site])) for site, kept in channels.items()}
