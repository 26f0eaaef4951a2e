"""Does a circuit's node steer the dense model? The edit of `contrast`, measured against random directions (Sec. 3.3).

Every node of the circuit, and all of the circuit's nodes at each site together, are tried on a few pairs; the best of either kind is then
measured on held-out pairs, both members of each presented and steered toward the other. Only prompts count that the dense model answers
rightly by itself. Probabilities are those of the other prompt's answer: `probability` against the right answer, `vocabulary` among all
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor.bridges.steering.edit import CounterfactualRun, ResidualEdit, SteeredNode, Way, random_directions, steerable
from extractor.circuits.sites import widths

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair
    from extractor.data.prompts import TaskBatch

STRENGTHS = tuple(step / 10 for step in range(11))
TRIED_PAIRS = 8
MEASURED_PAIRS = 24
RANDOM_DRAWS = 20
WAYS: tuple[Way, ...] = ("read", "stream")
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class AnswerOdds:
    """Of the other answer after each prompt, (B,): its probability against the right answer, and among all tokens."""

    between: Tensor
    among_all: Tensor


@dataclass(frozen=True)
class SteeringTrial:
    """Nodes of one site, the way they went, and the mean probability of the other answer at strength 1."""

    nodes: tuple[SteeredNode, ...]
    way: Way
    probability: float


class SteeringPrompts:
    """The prompts of some pairs, each steered toward the other of its pair. `counted` (B,) marks those answered rightly by themselves."""

    def __init__(self, pair: BridgedPair, batch: TaskBatch, pairs: int):
        self.batch = batch.pick(torch.arange(min(pairs, batch.pairs)))
        self.rows = torch.arange(len(self.batch.ids), device=self.batch.ids.device)
        self.contrast = CounterfactualRun(pair, self.batch.ids, self.batch.ids[self.rows ^ 1], self.batch.last)
        self.plain = self._odds(self.contrast.plain_logits())
        self.counted = self.plain.between < 0.5

    def odds(self, change: ResidualEdit, strength: float) -> AnswerOdds:
        return self.plain if strength == 0 else self._odds(self.contrast.logits(change, strength))

    def mean(self, values: Tensor) -> float:
        """Over the prompts that count."""
        return values[self.counted].double().mean().item()

    def trial(self, nodes: Sequence[SteeredNode]) -> SteeringTrial:
        """The better of the ways that the nodes can go."""
        ways = WAYS if nodes[0].reads else WAYS[1:]
        found = [SteeringTrial(tuple(nodes), way, self.mean(self.odds(self.contrast.change(nodes, way), 1.0).between)) for way in ways]
        return max(found, key=lambda trial: trial.probability)

    def _odds(self, logits: Tensor) -> AnswerOdds:
        right, other = logits[self.rows, self.batch.correct], logits[self.rows, self.batch.wrong]
        return AnswerOdds((other - right).double().sigmoid(), logits.softmax(-1)[self.rows, self.batch.wrong])


def steering_report(
    pair: BridgedPair, circuit_nodes: Sequence[str], select: TaskBatch, held_out: TaskBatch, seed: int, decode: Decode | None = None
) -> dict[str, Any]:
    """What steering with the circuit's nodes does; {} where none can be steered, or the dense model answers nothing rightly.

    {node, site, channel}         the best single node, and with it:
    way                           'read' or 'stream', see `contrast`
    strengths                     0 to 1; parallel to it probability, vocabulary, flipped (share of prompts whose answer changed),
                                  random, random_worst (probability: mean, and highest, of RANDOM_DRAWS directions of equal norm)
    example                       {prompt, toward, answer, other, before, after}; needs `decode` (token ids to text)
    pairs, prompts                held-out pairs, and how many of their prompts count
    tried                         [[node, probability at strength 1 on select pairs, way], ...], best first
    together                      the circuit's nodes at the best site, all at once: {site, nodes, width (how many channels the site has),
                                  way, ...} as above; None where no site has two
    """
    nodes = steerable(pair, circuit_nodes)
    few, many = SteeringPrompts(pair, select, TRIED_PAIRS), SteeringPrompts(pair, held_out, MEASURED_PAIRS)
    if not nodes or not few.counted.any() or not many.counted.any():
        return {}
    single = sorted((few.trial([node]) for node in nodes), key=lambda trial: (-trial.probability, trial.nodes[0].id))
    by_site = [list(found) for _, found in groupby(sorted(nodes, key=lambda n: n.source), key=lambda n: n.source)]
    groups = sorted((few.trial(found) for found in by_site if len(found) > 1), key=lambda trial: -trial.probability)
    best = single[0].nodes[0]
    found = {"node": best.id, "site": best.source, "channel": best.channel, "strengths": list(STRENGTHS)}
    found |= {"pairs": many.batch.pairs, "prompts": int(many.counted.sum())} | measured(many, single[0], seed, decode)
    found["tried"] = [[trial.nodes[0].id, trial.probability, trial.way] for trial in single]
    found["together"] = None
    if groups:
        source = groups[0].nodes[0].source
        site = {"site": source, "nodes": [node.id for node in groups[0].nodes], "width": widths(pair.sparse)[source]}
        found["together"] = site | measured(many, groups[0], seed, decode)
    return found


def measured(steered: SteeringPrompts, trial: SteeringTrial, seed: int, decode: Decode | None) -> dict[str, Any]:
    """A trial's curves along STRENGTHS, beside those of random directions; see `steering_report`."""
    change = steered.contrast.change(trial.nodes, trial.way)
    odds = [steered.odds(change, strength) for strength in STRENGTHS]
    drawn = [
        [steered.mean(steered.odds(other, strength).between) for other in random_directions(change, RANDOM_DRAWS, seed)]
        for strength in STRENGTHS
    ]
    found: dict[str, Any] = {
        "way": trial.way,
        "probability": [steered.mean(o.between) for o in odds],
        "vocabulary": [steered.mean(o.among_all) for o in odds],
        "flipped": [steered.mean(o.between > 0.5) for o in odds],
        "random": [sum(values) / len(values) for values in drawn],
        "random_worst": [max(values) for values in drawn],
    }
    return found | ({"example": _example(steered, odds[-1], decode)} if decode else {})


def _example(steered: SteeringPrompts, after: AnswerOdds, decode: Decode) -> dict[str, Any]:
    """The first prompt that counts, and the probability of the other answer before and after."""
    row, batch = int(steered.counted.nonzero()[0]), steered.batch
    stop = int(batch.last[row]) + 1
    return {
        "prompt": decode(batch.ids[row, :stop].tolist()),
        "toward": decode(batch.ids[row ^ 1, :stop].tolist()),
        "answer": decode([int(batch.correct[row])]),
        "other": decode([int(batch.wrong[row])]),
        "before": steered.plain.between[row].item(),
        "after": after.between[row].item(),
    }
