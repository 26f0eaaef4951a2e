"""Is the circuit better than random circuits that could succeed? Tests against random *live* circuits, with p-values (Shi et al. 2024,
arXiv 2410.13032; ours: circuits of weights).

A random live circuit grows by random paths that carry something from the input to the logits, until it has as many edges. A random choice
of nodes is mostly dead: it cannot succeed, and says nothing.

sufficiency   p = share of random circuits, the circuit itself counted with them, whose loss alone is at most the circuit's
necessity     the same with the loss of the model without them, at least that without the circuit
minimality    of every edge: the share of random additions whose removal costs at least what that of the edge costs. An addition is an
              edge of a random path that is added to the circuit
All losses are by the paper's standard, calibrated on the held-out pairs used. A p-value is at least 1 / (draws + 1).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask, Link, NodeIndex, links
from extractor.circuits.scorer import CIRCUITS_AT_ONCE, CircuitScorer
from extractor.circuits.sites import GATED_PLACES
from extractor.data.prompts import TaskBatch
from extractor.pruning.choose import without_each
from extractor.pruning.elements import Edges
from extractor.pruning.problem import PruningProblem

DRAWS = 200
PAIRS = 64
MOST_EDGES = 1000  # a larger circuit is not compared: random ones of its size are most of the model
_MOST_PATHS = 20_000  # tries to reach a number of edges
SIGNIFICANT = 0.05


def random_circuits(problem: PruningProblem, graph: CircuitMask, held_out: TaskBatch, draws: int = DRAWS) -> dict[str, Any] | None:
    """{draws, pairs, sufficiency: {p, loss, best}, necessity: {p, loss, best}, minimality: {p, edges, needed}}; None without edges or
    with more than MOST_EDGES.

    problem      by the paper's standard
    loss, best   nats: the circuit's, and the best of the random ones
    p            of minimality: the median over edges;  needed: edges with p of at most SIGNIFICANT
    Raises Stopped.
    """
    graph = graph if graph.edges is not None else graph.with_edges()
    size = graph.edge_count()
    if not 0 < size <= MOST_EDGES:
        return None
    generator = torch.Generator().manual_seed(problem.seed)
    paths = RandomPaths(graph, generator)
    scorer = problem.scorer(held_out.pick(torch.arange(min(PAIRS, held_out.pairs))))
    own, without, found = scorer.loss(graph), scorer.loss(graph.complement()), []
    for done in range(0, draws, CIRCUITS_AT_ONCE):  # few circuits in memory at once
        problem.tick(done, draws)
        others = [paths.circuit(size) for _ in range(min(CIRCUITS_AT_ONCE, draws - done))]
        found.append(torch.stack([scorer.losses(others), scorer.losses([one.complement() for one in others])]))
    alone, left = torch.cat(found, dim=1)
    return {
        "draws": draws,
        "pairs": scorer.batch.pairs,
        "sufficiency": {"p": _p(alone <= own), "loss": own, "best": alone.min().item()},
        "necessity": {"p": _p(left >= without), "loss": without, "best": left.max().item()},
        "minimality": _minimality(problem, graph, paths, scorer, own, draws),
    }


def _p(at_least_as_good: Tensor) -> float:
    return (1 + int(at_least_as_good.sum())) / (1 + len(at_least_as_good))


def _minimality(
    problem: PruningProblem, graph: CircuitMask, paths: RandomPaths, scorer: CircuitScorer, own: float, draws: int
) -> dict[str, Any]:
    without, differences = without_each(scorer, Edges(graph), tick=problem.tick), []
    for done in range(0, draws, CIRCUITS_AT_ONCE):
        inflated, reduced = zip(*(paths.added() for _ in range(min(CIRCUITS_AT_ONCE, draws - done))), strict=True)
        differences.append(scorer.losses(reduced) - scorer.losses(inflated))
    null = torch.cat(differences)
    p = torch.tensor([_p(null >= rise) for rise in (without - own).tolist()])
    return {"p": p.median().item(), "edges": len(p), "needed": int((p <= SIGNIFICANT).sum())}


class RandomPaths:
    """Random live circuits of the model of `graph`, and random additions to it."""

    def __init__(self, graph: CircuitMask, generator: torch.Generator):
        self.graph, self.generator = graph, generator
        self.index = NodeIndex.of(graph.model)
        self.full = CircuitMask.full(graph.model).without_dead().present_edges()
        self.into: dict[str, list[Link]] = {}
        for source, target, _ in links(graph.model):
            middle = target.rpartition(".")[0] + ".post_act" if target.endswith(GATED_PLACES) else target  # both factors of a gated neuron
            self.into.setdefault(middle, []).append((source, target))
        self.last = [link for link in self.full if link[1].endswith("resid_delta")]

    def circuit(self, size: int) -> CircuitMask:
        """A random circuit of at least `size` edges, by less than a path's."""
        edges = {link: torch.zeros_like(on) for link, on in self.full.items()}
        for _ in range(_MOST_PATHS):
            if sum(int(on.sum()) for on in edges.values()) >= size:
                break
            for link, row, column in self._path():
                edges[link][row, column] = True
        return self._of(edges)

    def added(self) -> tuple[CircuitMask, CircuitMask]:
        """(the circuit with a random path added, the same without one edge of that path that the circuit lacks)."""
        own = self.graph.present_edges()
        for _ in range(_MOST_PATHS):
            path = [one for one in self._path() if not bool(own[one[0]][one[1], one[2]])]
            if path:
                break
        else:
            return self.graph, self.graph
        edges = {link: on.clone() for link, on in own.items()}
        for link, row, column in path:
            edges[link][row, column] = True
        inflated = self._of(edges)
        link, row, column = path[self._below(len(path))]
        fewer = dict(edges) | {link: edges[link].clone()}
        fewer[link][row, column] = False
        return inflated, replace(inflated, edges=fewer)

    def _of(self, edges: dict[Link, Tensor]) -> CircuitMask:
        on = {site: torch.zeros(width, dtype=torch.bool, device=self.graph.nodes.device) for site, width in self.index.widths.items()}
        for (source, target), mask in edges.items():
            on[source] |= mask.any(0)
            on[target] |= mask.any(1)
        return CircuitMask(self.graph.model, self.index.join(on), edges)

    def _path(self) -> list[tuple[Link, int, int]]:
        """Edges (link, target, source) from a read to a write.

        A head's value comes with a query and a key of that head, if it has them, a gated neuron's gate with its up.
        """
        link = self.last[self._below(len(self.last))]
        edge = self._edge(link)
        if edge is None:
            return []
        found, middle = [edge], edge[2]
        for into in self.into[link[0]]:
            before = self._edge(into, row=middle)
            found += [before] if before is not None else []
        if link[0].endswith("attn.v"):
            width = self.graph.model.config.d_head
            head = slice(middle // width * width, middle // width * width + width)
            for name in "qk":
                one = self._edge((into[0], into[1][:-1] + name), rows=head)
                found += [one] if one is not None else []
        return found

    def _edge(self, link: Link, row: int | None = None, rows: slice | None = None) -> tuple[Link, int, int] | None:
        """A random edge of a link, of one target or of some; None where there is none."""
        on = self.full[link]
        start = row if row is not None else (rows.start if rows is not None else 0)
        part = on[row : row + 1] if row is not None else on[rows] if rows is not None else on
        there = part.nonzero()
        if not len(there):
            return None
        target, source = there[self._below(len(there))].tolist()
        return link, start + target, source

    def _below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))
