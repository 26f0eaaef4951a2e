"""A circuit on prompts, by the definition (`circuits.reference`): its answers, its nodes' values and its heads' attention.

Values of nodes may be changed. All other nodes have their ablation values. Shapes: B prompts, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.circuits.prompt_values import head_patterns
from extractor.circuits.reference import Values, masked_residuals, read_out
from extractor.circuits.sites import node_id
from extractor.data.prompts import TaskBatch

Head = tuple[int, int]  # layer, head
Change = Callable[[Tensor], Tensor]  # a node's values (B, T) -> those that the model goes on with


@dataclass(frozen=True, eq=False)
class ObservedRun:
    """What was seen of a circuit.

    diff        (B,): logit differences, not calibrated
    seen        {site: (B, T, width)} what the model went on with
    residuals   (B, T, S) before every sublayer and after the last
    """

    graph: CircuitMask
    diff: Tensor
    seen: Mapping[str, Tensor]
    residuals: Sequence[Tensor]

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """{node id: (B, T)} in forward order."""
        return {name: self.seen[site][..., channel] for name, (site, channel) in places_of(self.graph).items()}

    @cached_property
    def patterns(self) -> dict[Head, Tensor]:
        """{head: (B, T, T)}, rows attend to columns; heads with a node q, k or v of the circuit."""
        found, width = {}, self.graph.model.config.d_head
        parts = [(site.split("."), channel // width) for site, channel in places_of(self.graph).values()]
        heads = {(int(layer), head) for (layer, _, place), head in parts if place in ("q", "k", "v")}
        by_layer = {layer: self._pattern(layer) for layer in {layer for layer, _ in heads}}
        for layer, head in sorted(heads):
            found[layer, head] = by_layer[layer][:, head]
        return found

    @torch.no_grad()
    def _pattern(self, layer: int) -> Tensor:
        return head_patterns(self.graph.model, layer, *(self.seen[f"{layer}.attn.{name}"] for name in "qk"))


@torch.no_grad()
def observe(
    graph: CircuitMask,
    ablation_values: Values,
    batch: TaskBatch,
    changes: Mapping[str, Change] | None = None,
    unchanged: ObservedRun | None = None,
) -> ObservedRun:
    """Run the circuit.

    changes     of nodes by their ids, made where the model computes them, so that later nodes follow
    unchanged   the run of the same circuit on the same batch without changes: what lies before the first change is taken from it
    """
    places, seen = places_of(graph), dict[str, Tensor]()
    by_site: dict[str, list[tuple[int, Change]]] = {}
    for node, change in (changes or {}).items():
        site, channel = places[node]
        by_site.setdefault(site, []).append((channel, change))

    def rewrite(site: str, x: Tensor) -> Tensor:
        x = x.clone() if site in by_site else x
        for channel, change in by_site.get(site, ()):
            x[..., channel] = change(x[..., channel])
        seen[site] = x
        return x

    masks = graph.index.split(graph.nodes.float())
    known: Sequence[Tensor] = ()
    if unchanged is not None:
        first = min((_sublayer(site) for site in by_site), default=2 * len(graph.model.blocks))
        known = unchanged.residuals[: first + 1]
        seen.update((site, x) for site, x in unchanged.seen.items() if _sublayer(site) < first)
    residuals = masked_residuals(graph.model, batch.ids, masks, ablation_values, graph.edges, rewrite, known)
    return ObservedRun(graph, read_out(graph.model, batch, residuals[-1]), seen, residuals)


def _sublayer(site: str) -> int:
    """The number of a site's sublayer in forward order."""
    layer, sublayer, _ = site.split(".")
    return 2 * int(layer) + (sublayer == "mlp")


def places_of(graph: CircuitMask) -> dict[str, tuple[str, int]]:
    """{node id: (site, channel)} of the circuit's nodes, in forward order."""
    return {node_id(site, channel): (site, channel) for site, part in graph.channels().items() for channel in part.tolist()}
