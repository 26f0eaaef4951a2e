"""The last steps of a search: which candidate is chosen, and which of its edges can still go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.circuits.masks import Masks
from extractor.circuits.scorer import CircuitScorer
from extractor.pruning.criteria import CircuitCriteria, PrunedCircuit
from extractor.pruning.elements import Edges
from extractor.pruning.eliminate import EliminationPath
from extractor.pruning.problem import PruningProblem

FRESH_PAIRS = 256  # train pairs on which single edges are removed at the end
MOST_ROUNDS = 4  # of that, each on other pairs
MOST_SINGLE_EDGES = 1000  # a larger circuit's edges are not removed one by one at the end
_LAST_DRAW = 1 << 24  # draws of train pairs at the end are numbered from here; elimination uses smaller numbers


def chosen(
    problem: PruningProblem, path: EliminationPath, losses: Sequence[float], criteria: CircuitCriteria, target: float
) -> PrunedCircuit:
    """The smallest candidate that holds; `path` has the largest first. Else the one with the lowest loss.

    losses   of the candidates, on all select pairs, or on a part of them where `holds` measures all; only low ones are tried
    """
    limit = target if problem.spec.confident else problem.select_target(target)
    tried = (i for i in reversed(range(len(path))) if losses[i] <= limit)
    which = next((i for i in tried if criteria.holds(path[i], target)), None)
    mask = path[which] if which is not None else path[min(range(len(path)), key=losses.__getitem__)]
    return _measured(problem, mask, criteria, target, met=which is not None)


def _measured(problem: PruningProblem, mask: CircuitMask, criteria: CircuitCriteria, target: float, met: bool) -> PrunedCircuit:
    found, calibration = criteria.measured(mask)
    return PrunedCircuit(mask, mask.edge_count(), found.loss, calibration, target, met, problem.standard.name)


def without_each(
    scorer: CircuitScorer, elements: Edges, which: Tensor | None = None, tick: Callable[[int, int], None] = lambda done, of: None
) -> Tensor:
    """Losses (E',) of the circuit without each of its edges, or of those at `which` (E',); few circuits are in memory at once."""
    which = torch.arange(len(elements), device=elements.circuit.nodes.device) if which is None else which
    done = 0

    def masks(start: int, stop: int) -> Masks:
        nonlocal done
        done = max(done, stop)  # a network of prompts asks for the same masks again, group by group
        tick(done, len(which))
        every = torch.ones(stop - start, len(elements), device=which.device)
        return elements.masks(every.scatter(1, which[start:stop, None], 0.0))

    network = scorer.standard.network(elements.circuit.nodes)
    return scorer.standard.losses(scorer.of_masks(network, len(which), masks), scorer.batch.sign)


def minimal(problem: PruningProblem, found: PrunedCircuit, criteria: CircuitCriteria) -> PrunedCircuit:
    """A circuit that holds, without the edges whose removal alone does not raise the loss on fresh pairs, while it holds."""
    mask, standard = found.graph, problem.standard
    for number in range(MOST_ROUNDS):
        if not found.met or mask.edges is None or not 1 < mask.edge_count() <= MOST_SINGLE_EDGES:
            break
        elements, fresh = Edges(mask), problem.draw(_LAST_DRAW + number, max(1, FRESH_PAIRS // standard.copies))
        scorer, on = CircuitScorer(standard, fresh), torch.ones(len(elements), dtype=torch.bool, device=mask.nodes.device)
        now, losses = scorer.loss(mask), without_each(scorer, elements, tick=problem.tick)
        for edge in losses.argsort(stable=True).tolist():
            if losses[edge] > now:
                break
            on[edge] = False
            on[edge] = not criteria.holds(elements.graph(on).without_dead(), found.target)
        if bool(on.all()):
            break
        mask = elements.graph(on).without_dead()
    return found if mask is found.graph else _measured(problem, mask, criteria, found.target, met=True)
