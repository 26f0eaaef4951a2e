"""Elimination: remove elements (nodes or edges) from a circuit, cheapest first, and keep every circuit on the way (ours).

One round. Losses are measured on train pairs drawn for the round, necessity on select pairs. L(C) is the calibrated task loss (nats) of
circuit C, m_e the mask of element e:

1. Predict the rise of the loss without e, for all elements with one backward pass:   rise_e = -dL/dm_e + correction_e
   (first order, the calibration held fixed). correction_e is the error of this prediction when e was last removed for a trial: where the
   model is certain, gradients vanish and the correction is all there is.
2. Order the elements by rise. Measure L exactly without each of the first `SINGLE_TRIALS`, and without prefixes of 2, 4, 8 ...
   elements, at most `LARGEST_SHARE` of them.
3. Options: the prefixes whose measured rise is within their share of the loss left to spend,
       L(C without prefix) - L(C) <= MOST_SPENT * (most - L(C)) * size / E,
   the largest first, and last the cheapest single element. Of many elements a block, the first `BLOCK_SHARE`, may spend MOST_SPENT of
   all that is left: one by one, thousands that each cost little would take hours.
4. Remove the first option after which the circuit is still necessary; dead nodes go with it. If not even the single element can go, it is
   kept for good. A refusal halves the size of the largest prefix, a removal doubles its limit.

Elimination ends when the cheapest of the single removals leaves more than `most` nats (by the robust standard as a mean over the last
rounds, `problem.SearchPolicy`), when `PATIENCE` rounds in a row remove nothing, or when nothing more can go. E elements, P trials.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.circuits.masks import MaskedModel
from extractor.circuits.standard import Standard
from extractor.data.prompts import TaskBatch
from extractor.pruning.elements import ELEMENTS, Edges, Nodes
from extractor.pruning.problem import PruningProblem

SINGLE_TRIALS = 8  # elements removed one by one in a round
LARGEST_SHARE = 0.25  # fraction of the elements that may go at once
BLOCK_SHARE = 1 / 256  # fraction of the elements that may spend as much as all; of fewer than 512 none does
MOST_SPENT = 0.5  # fraction of the loss left to spend, for a prefix of all elements
PATIENCE = 32  # elements in a row that cannot go alone, after which elimination ends
_FIRST_DRAW = 1 << 20  # draws of train pairs are numbered from here; mask learning uses the numbers below


class EliminationPath(Sequence[CircuitMask]):
    """The circuits on the way, largest first. Each is stored as flags of the start's elements: masks of a large model fill memory."""

    def __init__(self) -> None:
        self.edges: list[int] = []  # number of edges of every circuit
        self._entries: list[tuple[Nodes | Edges, Tensor, Tensor]] = []

    @classmethod
    def of(cls, graph: CircuitMask) -> EliminationPath:
        """The path of a circuit from which nothing was removed."""
        found = cls()
        found.append(Nodes(graph) if graph.edges is None else Edges(graph), graph, graph.edge_count())
        return found

    def append(self, elements: Nodes | Edges, graph: CircuitMask, edges: int) -> None:
        self.edges.append(edges)
        self._entries.append((elements, elements.places(graph), graph.nodes))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        elements, on, nodes = self._entries[index]
        return CircuitMask(elements.circuit.model, nodes, elements.graph(on).edges)

    def cut(self, count: int) -> None:
        """Keep the first `count` circuits."""
        del self.edges[count:], self._entries[count:]

    @classmethod
    def joined(cls, paths: Sequence[EliminationPath]) -> EliminationPath:
        """The circuits of several paths, most edges first; among equals those of the first path."""
        every = [(count, entry) for path in paths for count, entry in zip(path.edges, path._entries, strict=True)]
        every.sort(key=lambda one: -one[0])
        found = cls()
        found.edges, found._entries = [count for count, _ in every], [entry for _, entry in every]
        return found

    @staticmethod
    def order(paths: Sequence[EliminationPath], values: Sequence[Sequence[float]]) -> list[float]:
        """Values of the circuits of several paths, in the order of `joined`."""
        every = [pair for path, of in zip(paths, values, strict=True) for pair in zip(path.edges, of, strict=True)]
        return [value for _, value in sorted(every, key=lambda one: -one[0])]


@dataclass
class EliminationRound:
    """One round: the elements that are on, and losses without some of them on this round's pairs."""

    elements: Nodes | Edges
    standard: Standard
    network: MaskedModel
    prompts: Any
    batch: TaskBatch
    correction: Tensor  # (E,) nats: measured minus predicted rise when the element was last tried; changed by `_options`

    def losses(self, removed: Tensor) -> Tensor:
        """Calibrated losses (P,), nats, without the elements in removed (P, E) bool."""
        with torch.no_grad():
            diffs = self.network.logit_diffs(self.prompts, self.elements.masks((~removed).float()))
        return self.standard.losses(diffs, self.batch.sign).to(removed.device)

    def predicted(self) -> tuple[float, Tensor]:
        """(L(C), -dL/dm (E,)), nats: step 1 without the correction."""
        on = torch.ones(1, len(self.elements), device=self.batch.ids.device, requires_grad=True)
        diffs = self.network.logit_diffs(self.prompts, self.elements.masks(on))
        loss, held = self.standard.held(diffs, self.batch.sign)
        return loss, -torch.autograd.grad(held, on)[0][0]


def eliminate(
    problem: PruningProblem, kind: str, graph: CircuitMask, most: float, is_necessary: Callable[[CircuitMask], bool]
) -> EliminationPath:
    """Nested circuits, starting with `graph`, until the loss on train pairs exceeds `most` nats (see above) or nothing more can go.

    kind           'node', or 'edge' for a circuit that lists its edges
    is_necessary   whether the model fails without this circuit. The smaller a circuit, the less is missing without it: the first descent
                   does not ask, its last necessary circuit is found by bisection, and from there every step that removes nodes is checked

    Raises Stopped.
    """
    descent = _Descent(problem, kind, graph, most)
    descent.run(lambda mask: True)
    last = _last_necessary(descent.path, is_necessary)
    if last < len(descent.path) - 1:
        descent.back_to(last)
        descent.run(is_necessary)
    return descent.path


def _last_necessary(path: EliminationPath, is_necessary: Callable[[CircuitMask], bool]) -> int:
    """The place of the last circuit without which the model fails; 0 where there is none."""
    if is_necessary(path[-1]):
        return len(path) - 1
    low, high = 0, len(path) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_necessary(path[middle]) else (low, middle)
    return low


class _Descent:
    """One elimination: its rounds are numbered, so that each draws other pairs."""

    def __init__(self, problem: PruningProblem, kind: str, graph: CircuitMask, most: float):
        self.problem, self.kind, self.graph, self.most = problem, kind, graph, most
        self.first, self.path, self.number = ELEMENTS[kind](graph), EliminationPath(), 0
        self.path.append(self.first, graph, graph.edge_count())
        self.corrections, self.largest = torch.zeros(len(self.first), device=graph.nodes.device), len(self.first)

    def back_to(self, place: int) -> None:
        """Forget the circuits after this place of the path."""
        self.path.cut(place + 1)
        self.graph, self.largest = self.path[place], 1

    def run(self, is_necessary: Callable[[CircuitMask], bool]) -> None:
        first, problem, refused = self.first, self.problem, 0
        stays = torch.zeros(len(first), dtype=torch.bool, device=self.graph.nodes.device)
        recent: deque[float] = deque(maxlen=problem.policy.averaged)
        while refused < PATIENCE:
            elements, places = ELEMENTS[self.kind](self.graph), first.places(self.graph)
            self.number += 1
            problem.tick(len(first) - len(elements), len(first))
            free = ~stays[places]
            if not bool(free.any()):
                return
            here = _round(problem, elements, self.graph, self.number, self.corrections[places])
            options, loss = _options(here, free, self.most, self.largest)
            self.corrections[places] = here.correction
            recent.append(loss)
            if len(recent) == recent.maxlen and mean(recent) > self.most:
                return
            for removed in options:  # step 4
                smaller = elements.graph(~removed).without_dead()
                if not bool(smaller.nodes.any()):
                    return
                if smaller.node_count() == self.graph.node_count() or is_necessary(smaller):
                    self.graph = smaller
                    self.path.append(first, smaller, smaller.edge_count())
                    self.largest, refused = 2 * self.largest, 0
                    break
                self.largest = max(1, int(removed.sum()) // 2)
            else:
                stays |= first.places(elements.graph(options[-1]))  # options mark what would go: here the single element
                refused += 1


def _round(problem: PruningProblem, elements: Nodes | Edges, graph: CircuitMask, number: int, correction: Tensor) -> EliminationRound:
    batch = problem.draw(_FIRST_DRAW + number, problem.spec.trial_pairs)
    network = problem.network(graph.nodes)
    return EliminationRound(elements, problem.standard, network, network.prepare(batch), batch, correction)


def _options(here: EliminationRound, free: Tensor, most: float, largest: int) -> tuple[Tensor, float]:
    """Steps 1 to 3: (options (n, E) bool, largest first, a single element last; loss without that element, nats).

    free      (E,) bool: elements that may go
    largest   elements of the largest option
    """
    now, rise = here.predicted()  # step 1
    order = torch.where(free, rise + here.correction, torch.inf).argsort(stable=True)[: int(free.sum())]
    block = int(BLOCK_SHARE * len(order))
    tried, sizes = order[:SINGLE_TRIALS], _sizes(min(largest, int(LARGEST_SHARE * len(order))), block).to(order.device)
    counting = torch.arange(len(order), device=order.device)
    place = torch.full(rise.shape, len(order), device=order.device).scatter(0, order, counting)
    removed = torch.cat([place < sizes[:, None], place == counting[: len(tried), None]])
    losses = here.losses(removed)  # step 2
    of_prefixes, of_singles = losses[: len(sizes)], losses[len(sizes) :]
    here.correction[tried] = (of_singles - now).to(rise.dtype) - rise[tried]
    budget = MOST_SPENT * max(0.0, most - now)  # step 3
    allowed = torch.where((sizes == block) & (block > 1), budget, budget * sizes / len(rise))
    cheap = of_prefixes - now <= allowed
    best = len(sizes) + int(of_singles.argmin())
    return torch.cat([removed[: len(sizes)][cheap], removed[best : best + 1]]), losses[best].item()


def _sizes(most: int, block: int) -> Tensor:
    """Powers of two from the largest that is at most `most` down to 2; where a block is more than one element, down to a block."""
    powers = [2**power for power in reversed(range(1, most.bit_length())) if 2**power > block]
    return torch.tensor([*powers, *([block] if block > 1 else [])], dtype=torch.long)
