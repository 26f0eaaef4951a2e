"""How few nodes change the dense model's answer: a set chosen on the select split, and what it does on prompts that chose nothing.

The set grows by the node that raises the mean probability of the counterfactual answer most, until ENOUGH of the answers change or MOST
nodes are in it. Nodes that read are edited in the paper's way: added to the stream at the first site, any change disturbs all
that follows, so that random ones flip half of the answers as well. A change that passes through several nodes of the set is added once
(`CounterfactualRun.edits`). The control are rotations of the same edits: RANDOM_DRAWS of them, of which the strongest is chosen on the
select split as well. Shapes: `extractor.bridges`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor.bridges.steering.edit import ResidualEdit, SteeredNode, Way, random_directions
from extractor.bridges.steering.trials import SteeringPrompts, SteeringTrial
from extractor.data.bootstrap import share_interval
from extractor.data.prompts import TaskBatch

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair

MOST = 5  # nodes of the set
CANDIDATES = 12  # nodes that may be added: those whose own edits are strongest
CHOSEN_ON, MEASURED_ON = 32, 128  # pairs of the select split, and of the held-out and of the shifted prompts
RANDOM_DRAWS = 100
ENOUGH = 0.6  # fraction of answers changed at which the set grows no more


def few_nodes(
    pair: BridgedPair,
    single: Sequence[SteeringTrial],
    select: TaskBatch,
    held_out: TaskBatch,
    shifted: TaskBatch | None,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """What the chosen set of at most MOST nodes does at full strength; None where the select split has no prompt to choose on.

    nodes      [[node, way], ...] in the order in which they were chosen
    held_out   {flipped, interval, probability, random_flipped, random_probability, prompts}: fraction of the dense model's right answers
               that change to the other, with its 95 % interval; mean probability of the other answer; the same of the strongest random
               edits; number of prompts that the dense model answers rightly without an edit
    shifted    the same on shifted prompts; None without them, or where it answers none rightly

    single   edits of the circuit's nodes, each in the paper's way, strongest first; tick is called before every trial
    """
    choosing = SteeringPrompts(pair, select, CHOSEN_ON)
    if not choosing.counted.any():
        return None
    candidates = [(one.nodes[0], one.way) for one in single[:CANDIDATES]]
    chosen: list[tuple[SteeredNode, Way]] = []
    between, reached = choosing.plain.between, -1.0
    while candidates and len(chosen) < MOST and choosing.mean(between > 0.5) < ENOUGH:
        trials = []
        for extra in candidates:
            tick()
            trials.append(_between(choosing, [*chosen, extra]))
        strengths = [choosing.mean(trial) for trial in trials]
        best = strengths.index(max(strengths))
        if strengths[best] <= reached:
            break  # no node helps
        between, reached = trials[best], strengths[best]
        chosen.append(candidates.pop(best))
    draw = _strongest_draw(choosing, chosen, seed, tick)

    def on(batch: TaskBatch | None) -> dict[str, Any] | None:
        prompts = None if batch is None else SteeringPrompts(pair, batch, MEASURED_ON)
        return None if prompts is None or not prompts.counted.any() else _measured(prompts, chosen, draw, seed)

    return {"nodes": [[node.id, way] for node, way in chosen], "held_out": on(held_out), "shifted": on(shifted)}


def _measured(prompts: SteeringPrompts, chosen: Sequence[tuple[SteeredNode, Way]], draw: int, seed: int) -> dict[str, Any]:
    between, random = _between(prompts, chosen), _odds(prompts, _drawn(prompts, chosen, seed)[draw])
    hits = ((between > 0.5) & prompts.counted).double()
    return {
        "flipped": prompts.mean(between > 0.5),
        "interval": share_interval(hits, prompts.counted.double(), seed),
        "probability": prompts.mean(between),
        "random_flipped": prompts.mean(random > 0.5),
        "random_probability": prompts.mean(random),
        "prompts": int(prompts.counted.sum()),
    }


def _between(prompts: SteeringPrompts, chosen: Sequence[tuple[SteeredNode, Way]]) -> Tensor:
    return _odds(prompts, prompts.run.edits(chosen))


def _odds(prompts: SteeringPrompts, edits: Sequence[ResidualEdit]) -> Tensor:
    """Probability (B,) of the counterfactual answer against the right one."""
    return prompts.odds(edits, 1.0).between


def _drawn(prompts: SteeringPrompts, chosen: Sequence[tuple[SteeredNode, Way]], seed: int) -> list[list[ResidualEdit]]:
    """RANDOM_DRAWS times the edits of the set, each rotated at random: the same rotations for every batch of prompts."""
    turned = [random_directions(edit, RANDOM_DRAWS, seed + number) for number, edit in enumerate(prompts.run.edits(chosen))]
    return [list(edits) for edits in zip(*turned, strict=True)]


def _strongest_draw(prompts: SteeringPrompts, chosen: Sequence[tuple[SteeredNode, Way]], seed: int, tick: Callable[[], None]) -> int:
    found = []
    for edits in _drawn(prompts, chosen, seed):
        tick()
        found.append(prompts.mean(_odds(prompts, edits)))
    return int(torch.tensor(found).argmax())
