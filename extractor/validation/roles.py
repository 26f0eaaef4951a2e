"""Has each node the same role in the circuit as in the full model? A node may carry something else once all other nodes are ablated (ours).

unexplained   mean (value in the circuit - value in the full model)^2 over the variance of the latter: 0 the same, 1 no better than its mean
correlation   of the two values
distance      of a head's attention patterns in the two: half the sum of absolute differences, mean over tokens; 0 the same, 1 disjoint

Values at all tokens of held-out prompts; heads are those with a kept v.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.circuits.prompt_values import head_patterns
from extractor.circuits.sites import node_id
from extractor.data.prompts import TaskBatch
from extractor.pruning.problem import PruningProblem
from extractor.spec.thresholds import OTHER_ROLE
from extractor.validation.ablations import Rewrite, reference_logit_diffs

PAIRS = 128
MOST_NODES = 1000  # larger circuits are nearly the full model; their nodes are not compared


def roles(problem: PruningProblem, graph: CircuitMask, held_out: TaskBatch) -> dict[str, Any]:
    """{pairs, nodes: {id: [unexplained, correlation]}, heads: {'0.attn.3': distance}, changed: ids of nodes with another role}.

    None in place of a number of a node that does not vary in the full model; nodes and heads are None above `MOST_NODES` nodes.
    """
    pairs = min(PAIRS, held_out.pairs)
    if graph.node_count() > MOST_NODES:
        return {"pairs": pairs, "nodes": None, "heads": None, "changed": []}
    watch = _Watch(problem, graph)
    reference_logit_diffs(problem, graph, held_out.pick(torch.arange(pairs)), watch.part)
    found = watch.nodes()
    changed = [name for name, (unexplained, _) in found.items() if unexplained is not None and unexplained > OTHER_ROLE]
    return {"pairs": pairs, "nodes": found, "heads": watch.heads(), "changed": changed}


class _Watch:
    """Collects, part by part, the values of kept nodes in the circuit and in the full model."""

    def __init__(self, problem: PruningProblem, graph: CircuitMask):
        self.model = problem.model
        self.channels = {site: part for site, part in graph.channels().items() if len(part)}
        self.here: dict[str, list[Tensor]] = {site: [] for site in self.channels}
        self.full: dict[str, list[Tensor]] = {site: [] for site in self.channels}
        width = self.model.config.d_head
        values = {layer: self.channels.get(f"{layer}.attn.v") for layer in range(len(self.model.blocks))}
        self.watched = {layer: (some // width).unique() for layer, some in values.items() if some is not None}
        self.distances: dict[int, list[Tensor]] = {layer: [] for layer in self.watched}

    def part(self, batch: TaskBatch) -> Rewrite:
        """`rewrite` of `reference.masked_logit_diff` for some prompts: it changes nothing."""
        real = torch.arange(batch.ids.shape[1], device=batch.ids.device) <= batch.last[:, None]
        with self.model.record() as recorded:
            self.model(input_ids=batch.ids, logits_to_keep=1)
        queries: dict[int, Tensor] = {}

        def keep(site: str, values: Tensor) -> Tensor:
            if site in self.channels:
                self.here[site].append(values[real][:, self.channels[site]].double())
                self.full[site].append(recorded[site][real][:, self.channels[site]].double())
            layer, _, place = site.partition(".attn.")
            if place == "q" and int(layer) in self.watched:
                queries[int(layer)] = values
            elif place == "k" and int(layer) in self.watched:
                own = self._pattern(int(layer), queries[int(layer)], values)
                other = self._pattern(int(layer), recorded[f"{layer}.attn.q"], recorded[site])
                self.distances[int(layer)].append(((own - other).abs().sum(-1) / 2).transpose(1, 2)[real].double())
            return values

        return keep

    def _pattern(self, layer: int, q: Tensor, k: Tensor) -> Tensor:
        """(B, watched heads, T, T)."""
        return head_patterns(self.model, layer, q, k)[:, self.watched[layer]]

    def nodes(self) -> dict[str, tuple[float | None, float | None]]:
        found: dict[str, tuple[float | None, float | None]] = {}
        for site, channels in self.channels.items():
            here, full = torch.cat(self.here[site]), torch.cat(self.full[site])
            spread = full.var(0, correction=0)
            unexplained = (here - full).square().mean(0) / spread
            together = ((here - here.mean(0)) * (full - full.mean(0))).mean(0)
            correlation = together / (spread * here.var(0, correction=0)).sqrt()
            for channel, *numbers in zip(channels.tolist(), unexplained.tolist(), correlation.tolist(), strict=True):
                first, second = (round(x, 4) if abs(x) < float("inf") else None for x in numbers)
                found[node_id(site, channel)] = (first, second)
        return found

    def heads(self) -> dict[str, float]:
        return {
            f"{layer}.attn.{head}": round(distance, 4)
            for layer, parts in self.distances.items()
            for head, distance in zip(self.watched[layer].tolist(), torch.cat(parts).mean(0).tolist(), strict=True)
        }
