"""A circuit on pairs of prompts: the values of its nodes, the patterns of its heads, and its answers while nodes have other values.

Ours, by the definition (`circuits.reference`): all else has its mean. Shapes: `extractor.validation.mechanism`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.circuits.prompt_values import head_patterns
from extractor.circuits.reference import masked_logit_diff, masked_residuals
from extractor.circuits.sites import node_id
from extractor.data.prompts import TaskBatch
from extractor.pruning.problem import PruningProblem

Head = tuple[int, int]  # layer, head
PLACES = ("difference", "after", "end")


@dataclass(frozen=True)
class Swapped:
    """What is left of the answers while some nodes have the values of the pair's other prompt.

    moved     part of the way of the mean logit difference to the other prompt's: 0 nothing, 1 all of it
    flipped   fraction of the rightly answered prompts whose answer changes
    """

    moved: float
    flipped: float


class CircuitOnPairs:
    """A circuit on a batch. Values are those that the model goes on with, patterns those of heads with a node q, k or v of the circuit.

    values     {node id: (2P, T)}
    patterns   {head: (2P, T, T)}, rows attend to columns
    real       (2P, T) bool: not padding;  places: {place: (2P, T) bool}
    diff       (2P,) logit differences, calibrated
    """

    def __init__(self, problem: PruningProblem, graph: CircuitMask, calibration: Calibration, batch: TaskBatch):
        self.problem, self.graph, self.calibration, self.batch = problem, graph, calibration, batch
        self.model, rows = problem.model, torch.arange(len(batch.ids), device=batch.ids.device)
        self.pair = rows ^ 1
        self._channels = {site: part.tolist() for site, part in graph.channels().items() if len(part)}
        self._site = {node_id(site, channel): (site, channel) for site, part in self._channels.items() for channel in part}
        self._masks = problem.index.split(graph.nodes.float())
        tokens = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        self.real = tokens <= batch.last[:, None]
        differs = (batch.ids != batch.ids[self.pair]) & self.real
        end = tokens == batch.last[:, None]
        begun = differs.cumsum(1) > 0
        self.places = {"difference": differs, "after": begun & ~differs & ~end & self.real, "end": end}
        self._seen: dict[str, Tensor] = {}
        self.diff = self._run({}, keep=True)
        self.values = {name: self._seen[site][..., channel] for name, (site, channel) in self._site.items()}
        self.patterns = self._patterns()

    @property
    def nodes(self) -> list[str]:
        """Ids in forward order."""
        return list(self._site)

    def of_site(self, place: str) -> list[str]:
        """The nodes of all layers at such a place, for example attn.v."""
        return [name for name, (site, _) in self._site.items() if site.partition(".")[2] == place]

    def head_of(self, node: str) -> Head:
        site, channel = self._site[node]
        return int(site.partition(".")[0]), channel // self.model.config.d_head

    def swapped(self, nodes: Iterable[str]) -> Swapped:
        """While these nodes have their values of the pair's other prompt, at every token."""
        right, other = self.batch.sign * self.diff, self.batch.sign * self._run({node: self.values[node][self.pair] for node in nodes})
        counted = right > 0
        flipped = (other[counted] < 0).double().mean().item() if counted.any() else 0.0
        return Swapped(((right - other).double().mean() / (2 * right.double().mean()).clamp_min(1e-6)).item(), flipped)

    def without(self, nodes: Collection[str]) -> float:
        """Loss, nats, while these nodes have their means; the circuit's own calibration."""
        means = self.problem.ablation_values
        off = {node: means[site][channel].expand_as(self.real) for node, (site, channel) in self._site.items() if node in nodes}
        return self.batch.losses(self._run(off)).double().mean().item()

    @torch.no_grad()
    def _run(self, given: Mapping[str, Tensor], keep: bool = False) -> Tensor:
        def rewrite(site: str, x: Tensor) -> Tensor:
            here = [(self._site[node][1], values) for node, values in given.items() if self._site[node][0] == site]
            if here:
                x = x.clone()
                for channel, values in here:
                    x[..., channel] = values
            if keep:
                self._seen[site] = x
            return x

        means = self.problem.ablation_values
        diff = masked_logit_diff(self.model, self.batch, self._masks, means, self.graph.edges, rewrite)
        return self.calibration.apply(diff)

    @torch.no_grad()
    def _patterns(self) -> dict[Head, Tensor]:
        found: dict[Head, Tensor] = {}
        for layer in range(self.model.config.n_layer):
            sites = [f"{layer}.attn.{name}" for name in "qkv"]
            heads = {channel // self.model.config.d_head for site in sites for channel in self._channels.get(site, ())}
            if heads:
                pattern = head_patterns(self.model, layer, self._seen[sites[0]], self._seen[sites[1]])
                found |= {(layer, head): pattern[:, head] for head in sorted(heads)}
        return found

    @torch.no_grad()
    def written(self) -> dict[str, Tensor]:
        """{write: (2P,)} what each node's write at the last token adds to the logit difference, through the last norm's own scale."""
        final = masked_residuals(self.model, self.batch.ids, self._masks, self.problem.ablation_values, self.graph.edges)[-1]
        rows, norm, head = torch.arange(len(final), device=final.device), self.model.transformer.ln_f, self.model.lm_head.weight
        scale = (final[rows, self.batch.last].square().mean(-1) + norm.eps).rsqrt()
        readout = (head[self.batch.first] - head[self.batch.second]) * norm.weight * scale[:, None]
        writes = [*self.of_site("attn.resid_delta"), *self.of_site("mlp.resid_delta")]
        return {node: self.values[node][rows, self.batch.last] * readout[:, self._site[node][1]] for node in writes}
