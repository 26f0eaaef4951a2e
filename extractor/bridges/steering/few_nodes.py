"""How few nodes change the dense model's answer: a set chosen on the select split, and what it does on prompts that chose nothing.

The set grows by the node that raises the *margin* most, until no node raises it or MOST are in it. The margin is the mean probability of
the counterfactual answer less that of the strongest of MARGIN_DRAWS random rotations of the same edits: nodes are preferred whose direction
matters, not their length. Nodes that read are edited in the paper's way: added to the stream at the first site, any change disturbs all
that follows, so that random ones flip half of the answers as well. A change that passes through several nodes of the set is added once
(`CounterfactualRun.edits`). The control are RANDOM_DRAWS further rotations of the finished set, of which the strongest is chosen on the
select split as well. Shapes: `extractor.bridges`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from extractor.bridges.steering.edit import ResidualEdit, SteeredNode, Way, random_directions
from extractor.bridges.steering.trials import SteeringPrompts, SteeringTrial
from extractor.data.bootstrap import share_interval

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair
    from extractor.data.prompts import TaskBatch

MOST = 5  # nodes of the set
CANDIDATES = 16  # nodes that may be added: those whose own edits are strongest
COMPARED = 6  # of them whose margin is measured at every step: those that raise the probability most
CHOSEN_ON, MEASURED_ON = 32, 128  # pairs of the select split, and of the held-out and of the shifted prompts
MARGIN_DRAWS = 6
RANDOM_DRAWS = 100
_MARGIN_SEED = 10_000  # added to the seed, so that the set is not chosen against the rotations that it is compared with


@dataclass(frozen=True)
class FewPrompts:
    """Prompts that choose a set, and those on which it is measured: held-out ones, and shifted ones or None."""

    choosing: SteeringPrompts
    held_out: SteeringPrompts
    shifted: SteeringPrompts | None

    @classmethod
    def of(cls, pair: BridgedPair, select: TaskBatch, held_out: TaskBatch, shifted: TaskBatch | None) -> FewPrompts:
        moved = None if shifted is None else SteeringPrompts(pair, shifted, MEASURED_ON)
        return cls(SteeringPrompts(pair, select, CHOSEN_ON), SteeringPrompts(pair, held_out, MEASURED_ON), moved)


def few_nodes(
    prompts: FewPrompts,
    single: Sequence[SteeringTrial],
    circuit: Collection[str],
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """What the chosen set of at most MOST nodes does at full strength; None where the select split has no prompt to choose on.

    nodes      [[node, way], ...] in the order in which they were chosen
    in_circuit number of them that the circuit holds
    held_out   {flipped, interval, probability, random_flipped, random_probability, prompts, by_size}: fraction of the dense model's right
               answers that change to the other, with its 95 % interval; mean probability of the other answer; the same of the strongest
               random edits; number of prompts that the dense model answers rightly without an edit; flipped by the first 1, 2, ... nodes
    shifted    the same on shifted prompts; None without them, or where it answers none rightly

    single   edits of the nodes to choose from, each in the paper's way, strongest first; tick is called before every trial
    """
    choosing = prompts.choosing
    if not choosing.counted.any():
        return None
    candidates = [(one.nodes[0], one.way) for one in single[:CANDIDATES]]
    chosen: list[tuple[SteeredNode, Way]] = []
    reached = 0.0
    while candidates and len(chosen) < MOST:
        margins = _margins(choosing, chosen, candidates, seed, tick)
        best = max(margins, key=lambda index: margins[index])
        if chosen and margins[best] <= reached:
            break  # no node helps
        reached = margins[best]
        chosen.append(candidates.pop(best))
    draw = _strongest_draw(choosing, chosen, seed, tick)

    def on(some: SteeringPrompts | None) -> dict[str, Any] | None:
        return None if some is None or not some.counted.any() else _measured(some, chosen, draw, seed, tick)

    found = {"nodes": [[node.id, way] for node, way in chosen], "in_circuit": sum(node.id in circuit for node, _ in chosen)}
    return found | {"held_out": on(prompts.held_out), "shifted": on(prompts.shifted)}


def _margins(
    choosing: SteeringPrompts,
    chosen: Sequence[tuple[SteeredNode, Way]],
    candidates: Sequence[tuple[SteeredNode, Way]],
    seed: int,
    tick: Callable[[], None],
) -> dict[int, float]:
    """The margin of the set with each of the COMPARED candidates, by their index."""
    edits = [choosing.run.edits([*chosen, extra]) for extra in candidates]
    strengths = _strengths(choosing, edits, tick)
    order = sorted(range(len(candidates)), key=lambda index: (-strengths[index], index))[:COMPARED]
    found = {}
    for index in order:
        drawn = _drawn(edits[index], seed + _MARGIN_SEED, MARGIN_DRAWS)
        found[index] = strengths[index] - max(_strengths(choosing, drawn, tick))
    return found


def _measured(
    prompts: SteeringPrompts, chosen: Sequence[tuple[SteeredNode, Way]], draw: int, seed: int, tick: Callable[[], None]
) -> dict[str, Any]:
    random = _odds(prompts, _drawn(prompts.run.edits(chosen), seed, RANDOM_DRAWS)[draw])
    by_size = []
    for size in range(1, len(chosen) + 1):
        tick()
        between = _odds(prompts, prompts.run.edits(chosen[:size]))
        by_size.append(prompts.mean(between > 0.5))
    hits = ((between > 0.5) & prompts.counted).double()
    return {
        "flipped": by_size[-1],
        "interval": share_interval(hits, prompts.counted.double(), seed),
        "probability": prompts.mean(between),
        "random_flipped": prompts.mean(random > 0.5),
        "random_probability": prompts.mean(random),
        "prompts": int(prompts.counted.sum()),
        "by_size": by_size,
    }


def _odds(prompts: SteeringPrompts, edits: Sequence[ResidualEdit]) -> Tensor:
    """Probability (B,) of the counterfactual answer against the right one."""
    return prompts.odds(edits, 1.0).between


def _drawn(edits: Sequence[ResidualEdit], seed: int, draws: int) -> list[list[ResidualEdit]]:
    """`draws` times the edits of a set, each rotated at random: the same rotations for every batch of prompts."""
    turned = [random_directions(edit, draws, seed + number) for number, edit in enumerate(edits)]
    return [list(edits) for edits in zip(*turned, strict=True)]


def _strengths(prompts: SteeringPrompts, drawn: Sequence[Sequence[ResidualEdit]], tick: Callable[[], None]) -> list[float]:
    """Mean probabilities of the counterfactual answer with each of these sets of edits."""
    found = []
    for edits in drawn:
        tick()
        found.append(prompts.mean(_odds(prompts, edits)))
    return found


def _strongest_draw(prompts: SteeringPrompts, chosen: Sequence[tuple[SteeredNode, Way]], seed: int, tick: Callable[[], None]) -> int:
    found = _strengths(prompts, _drawn(prompts.run.edits(chosen), seed, RANDOM_DRAWS), tick)
    return max(range(len(found)), key=lambda index: found[index])
