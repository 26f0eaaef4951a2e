"""Does a circuit's node steer the dense model? The edit of edit.py, measured against random directions (Sec. 3.3).

Each node of the circuit, and all of its nodes at each site together, are tried on a few pairs. The best single node and the best site are
then measured on held-out pairs: each member of a pair is presented, with the other as its counterfactual. Only prompts that the dense model
answers correctly without an edit are counted. Probabilities are those of the counterfactual answer: `probability` against the correct
answer, `vocabulary` among all tokens. Shapes: `extractor.bridges`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

from extractor.bridges.steering.edit import SteeredNode, random_directions, steerable
from extractor.bridges.steering.few_nodes import FewPrompts, few_nodes
from extractor.bridges.steering.ranking import strongest_of_circuit, strongest_of_model
from extractor.bridges.steering.trials import AnswerOdds, SteeringPrompts, SteeringTrial
from extractor.circuits.sites import widths

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair
    from extractor.data.prompts import TaskBatch

STRENGTHS = tuple(step / 10 for step in range(11))
TRIED_PAIRS = 8
MEASURED_PAIRS = 24
RANDOM_DRAWS = 20
Decode = Callable[[list[int]], str]


def steering_report(
    pair: BridgedPair,
    circuit_nodes: Sequence[str],
    select: TaskBatch,
    held_out: TaskBatch,
    seed: int,
    decode: Decode | None = None,
    tick: Callable[[], None] = lambda: None,
    shifted: TaskBatch | None = None,
) -> dict[str, Any]:
    """How edits of the circuit's nodes steer the dense model; {} where no node can be edited or no prompt is answered correctly.

    Of a circuit of more than 256 nodes that can be edited, those with the largest first-order effects are tried alone.

    {node, site, channel}         the best single node; for it:
    way                           'read' or 'stream', see `steering.edit`
    strengths                     0 to 1; for each of them probability, vocabulary, flipped (fraction of prompts whose answer changed),
                                  random, random_worst (probability: mean, and highest, of RANDOM_DRAWS directions of equal norm)
    example                       {prompt, toward, answer, other, before, after}; needs `decode` (token ids to text)
    pairs, prompts                number of held-out pairs, and of counted prompts
    tried                         [[node, probability at strength 1 on select pairs, way], ...], best first
    few                           a set chosen among the circuit's nodes: see `few_nodes.few_nodes`
    few_of_model                  the same, chosen among all nodes of the sparse model
    together                      the circuit's nodes at the best site, edited together: {site, nodes, width (channels of the site),
                                  way, ...} as above; None where no site has two nodes

    tick is called before every trial; what it raises ends the measurement.
    """

    def trials(found: Sequence[SteeredNode]) -> list[SteeringTrial]:
        tick()
        return few.trials(found)

    nodes = steerable(pair, circuit_nodes)
    few, many = SteeringPrompts(pair, select, TRIED_PAIRS), SteeringPrompts(pair, held_out, MEASURED_PAIRS)
    if not nodes or not few.counted.any() or not many.counted.any():
        return {}
    alone = [trials([node]) for node in strongest_of_circuit(pair, nodes, few.batch)]
    single = strongest_first(map(_better, alone))
    by_site = [list(found) for _, found in groupby(sorted(nodes, key=lambda n: n.source), key=lambda n: n.source)]
    groups = strongest_first(_better(trials(found)) for found in by_site if len(found) > 1)
    best = single[0].nodes[0]
    found = {"node": best.id, "site": best.source, "channel": best.channel, "strengths": list(STRENGTHS)}
    found |= {"pairs": many.batch.pairs, "prompts": int(many.counted.sum())} | measured(many, single[0], seed, decode)
    found["tried"] = [[one.nodes[0].id, one.probability, one.way] for one in single]
    prompts = FewPrompts.of(pair, select, held_out, shifted)
    of_model = [few.paper_trial(node) for node in strongest_of_model(pair, few)]
    for name, some in (("few", [ways[0] for ways in alone]), ("few_of_model", of_model)):
        found[name] = few_nodes(prompts, strongest_first(some), circuit_nodes, seed, tick)
    found["together"] = None
    if groups:
        source = groups[0].nodes[0].source
        site = {"site": source, "nodes": [node.id for node in groups[0].nodes], "width": widths(pair.sparse)[source]}
        found["together"] = site | measured(many, groups[0], seed, decode)
    return found


def strongest_first(trials: Iterable[SteeringTrial]) -> list[SteeringTrial]:
    return sorted(trials, key=lambda one: (-one.probability, one.nodes[0].id))


def _better(ways: Sequence[SteeringTrial]) -> SteeringTrial:
    return max(ways, key=lambda one: one.probability)


def measured(steered: SteeringPrompts, trial: SteeringTrial, seed: int, decode: Decode | None) -> dict[str, Any]:
    """A trial's results for STRENGTHS, with those of random directions; see `steering_report`."""
    edit = steered.run.edit(trial.nodes, trial.way)
    odds = [steered.odds(edit, strength) for strength in STRENGTHS]
    drawn = [
        [steered.mean(steered.odds(other, strength).between) for other in random_directions(edit, RANDOM_DRAWS, seed)]
        for strength in STRENGTHS
    ]
    found: dict[str, Any] = {
        "way": trial.way,
        "probability": [steered.mean(o.between) for o in odds],
        "vocabulary": [steered.mean(o.among_all) for o in odds],
        "flipped": [steered.mean(o.between > 0.5) for o in odds],
        "random": [fmean(values) for values in drawn],
        "random_worst": [max(values) for values in drawn],
    }
    return found | ({"example": _example(steered, odds[-1], decode)} if decode else {})


def _example(steered: SteeringPrompts, after: AnswerOdds, decode: Decode) -> dict[str, Any]:
    """The first counted prompt, and the probability of the counterfactual answer without and with the edit."""
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
