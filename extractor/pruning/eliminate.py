"""From a graph to nothing, the cheapest elements first: a path of nested circuits (ours).

Each round, on train pairs drawn for it alone:

1. One backward pass predicts what the loss would rise by, were an element removed (first order, calibrated), corrected by how far off the
   prediction was when that element was last tried. Where a model is sure of itself gradients vanish, and the correction is what is left.
2. The cheapest few are tried one by one, exactly; growing prefixes of the order are tried at once, while there are many.
3. The largest prefix goes that costs no more than its share of the loss that is left to spend; else the single element that costs least.
4. What is on no live path any more goes with it, for free.

Where the circuit would become unnecessary (the model does the task without it) fewer go, then and for a while; an element that cannot go
alone stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extractor.circuits.calibration import calibrate_all
from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.circuits.masks import MaskedModel
from extractor.data.prompts import TaskBatch
from extractor.pruning.elements import ELEMENTS, Edges, Nodes
from extractor.pruning.problem import PruningProblem

SINGLES = 16  # elements tried one by one in a round
LARGEST_SHARE = 0.25  # of the elements, to go at once
SPENT_AT_ONCE = 0.5  # of the loss left to spend, times the share of elements that go
PATIENCE = 32  # elements in a row that cannot go alone, after which none is expected to
_DRAWS = 1 << 20  # numbers of draws, beyond those of mask learning


class EliminationPath(Sequence[CircuitMask]):
    """Circuits that were passed. Each is kept as the flags of the elements it started from: masks of a large model fill memory."""

    def __init__(self) -> None:
        self.edges: list[int] = []  # of every circuit
        self._entries: list[tuple[Nodes | Edges, Tensor, Tensor]] = []

    def append(self, elements: Nodes | Edges, graph: CircuitMask, edges: int) -> None:
        self.edges.append(edges)
        self._entries.append((elements, elements.places(graph), graph.nodes))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        elements, on, nodes = self._entries[index]
        return CircuitMask(elements.whole.model, nodes, elements.graph(on).edges)

    @classmethod
    def joined(cls, paths: Sequence[EliminationPath]) -> EliminationPath:
        """All circuits of some paths, the largest first."""
        every = [(count, entry) for path in paths for count, entry in zip(path.edges, path._entries, strict=True)]
        every.sort(key=lambda one: -one[0])
        found = cls()
        found.edges, found._entries = [count for count, _ in every], [entry for _, entry in every]
        return found


@dataclass
class EliminationRound:
    """One round's view: the elements that are on, and what removing some of them costs on this round's pairs."""

    elements: Nodes | Edges
    network: MaskedModel
    prompts: Any
    batch: TaskBatch
    correction: Tensor  # (E,) nats, what predictions of earlier rounds were short of

    def losses(self, removed: Tensor) -> Tensor:
        """Calibrated losses (P,) without the elements in removed (P, E) bool."""
        with torch.no_grad():
            diffs = self.network.logit_diffs(self.prompts, self.elements.masks((~removed).float()))
        return calibrate_all(diffs, self.batch.sign)[0]

    def predicted(self) -> tuple[float, Tensor]:
        """(loss now, by how much it would rise without each element (E,), to first order, not corrected)."""
        on = torch.ones(1, len(self.elements), device=self.batch.ids.device, requires_grad=True)
        diffs = self.network.logit_diffs(self.prompts, self.elements.masks(on))
        loss, scale, shift = calibrate_all(diffs, self.batch.sign)
        calibrated = Calibration(scale.item(), shift.item()).apply(diffs[0])
        rise = -torch.autograd.grad(self.batch.losses(calibrated).mean(), on)[0][0]
        return loss.item(), rise


def eliminate(
    problem: PruningProblem, kind: str, graph: CircuitMask, most: float, is_necessary: Callable[[CircuitMask], bool]
) -> EliminationPath:
    """Nested circuits, from `graph` on, until the loss on train pairs exceeds `most` nats or nothing is left that may go.

    kind           of the elements that go: 'node', or 'edge' of a graph that names its edges
    is_necessary   whether the model fails without these nodes; asked whenever nodes leave

    Raises Stopped.
    """
    first, path, number = ELEMENTS[kind](graph), EliminationPath(), 0
    path.append(first, graph, graph.edge_count())
    stays = torch.zeros(len(first), dtype=torch.bool, device=graph.nodes.device)
    corrections, at_once, in_vain = torch.zeros(len(first), device=graph.nodes.device), len(first), 0
    while in_vain < PATIENCE:
        elements, number = ELEMENTS[kind](graph), number + 1
        problem.tick(len(first) - len(elements), len(first))
        places = first.places(graph)
        free = ~stays[places]
        if not bool(free.any()):
            return path
        here = _round(problem, elements, graph, number, corrections[places])
        options, loss = _options(here, free, most, at_once)
        corrections[places] = here.correction
        if loss > most:
            return path
        for removed in options:
            smaller = elements.graph(~removed).without_dead()
            if not bool(smaller.nodes.any()):
                return path
            if int(smaller.nodes.sum()) == int(graph.nodes.sum()) or is_necessary(smaller):
                graph = smaller
                path.append(first, graph, graph.edge_count())
                at_once, in_vain = 2 * at_once, 0
                break
            at_once = max(1, int(removed.sum()) // 2)
        else:
            stays |= first.places(elements.graph(options[-1]))
            in_vain += 1
    return path


def _round(problem: PruningProblem, elements: Nodes | Edges, graph: CircuitMask, number: int, correction: Tensor) -> EliminationRound:
    batch = problem.draw(_DRAWS + number, problem.spec.trial_pairs)
    network = problem.network(graph.nodes)
    return EliminationRound(elements, network, network.prepare(batch), batch, correction)


def _options(here: EliminationRound, free: Tensor, most: float, at_once: int) -> tuple[Tensor, float]:
    """(sets of elements that may go (n, E) bool, the largest first and a single one last, the loss without that one).

    at_once   elements of the largest set
    """
    now, rise = here.predicted()
    order = torch.where(free, rise + here.correction, torch.inf).argsort(stable=True)[: int(free.sum())]
    tried, sizes = order[:SINGLES], _sizes(min(at_once, int(LARGEST_SHARE * len(order)))).to(order.device)
    counting = torch.arange(len(order), device=order.device)
    place = torch.full(rise.shape, len(order), device=order.device).scatter(0, order, counting)
    removed = torch.cat([place < sizes[:, None], place == counting[: len(tried), None]])
    losses = here.losses(removed)
    of_prefixes, of_singles = losses[: len(sizes)], losses[len(sizes) :]
    here.correction[tried] = (of_singles - now).to(rise.dtype) - rise[tried]
    budget = SPENT_AT_ONCE * max(0.0, most - now)
    cheap = of_prefixes - now <= budget * sizes / len(rise)
    best = len(sizes) + int(of_singles.argmin())
    return torch.cat([removed[: len(sizes)][cheap], removed[best : best + 1]]), losses[best].item()


def _sizes(most: int) -> Tensor:
    """Powers of two from the largest that is at most `most` down to 2."""
    return torch.tensor([2**power for power in reversed(range(1, most.bit_length()))], dtype=torch.long)
