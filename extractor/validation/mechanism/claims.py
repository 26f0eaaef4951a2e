"""What a circuit does, as a chain of claims: each is chosen on select pairs and measured on held-out ones, where it may fail.

difference   the two prompts of a pair differ in one token
mlp          the answer follows the neurons of a layer
head         a head attends to that token, and the answer follows the values that it brings
node         a node tells the two prompts apart, and the answer follows it
write        writes at the last token make up the logit difference directly
together     the answer follows all nodes that the claims name

`moved` and `flipped` are those of `observe.Swapped`. The page says that no simple story was found if a claim fails on held-out pairs, or if
all nodes that the claims name move less than half of the answer together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.circuits.observed import Head
from extractor.data.prompts import TaskBatch
from extractor.pruning.problem import PruningProblem
from extractor.spec.story import best_place
from extractor.spec.thresholds import SEPARATES
from extractor.validation.mechanism.observe import CircuitOnPairs
from extractor.validation.mechanism.separation import separation

PAIRS = 64  # of each split
MOST_NODES = 300  # of larger circuits nothing is measured
SHOWN_MLPS, SHOWN_HEADS, SHOWN_NODES, SHOWN_WRITES = 1, 2, 2, 3  # claims of each kind, and writes of one claim
ENOUGH = 0.2  # of the answer that an MLP, a head or a node must move, and of the logit difference that writes must make up
STORY = 0.5  # of the answer that all claimed nodes together must move
ONE_TOKEN = 0.9  # least fraction of pairs that differ in one token

Claim = dict[str, Any]


def is_measured(problem: PruningProblem, graph: CircuitMask) -> bool:
    """False for circuits without nodes, of more than MOST_NODES, and under resampling, where an ablated node has no single value."""
    return problem.spec.ablation != "resample" and 0 < graph.node_count() <= MOST_NODES


def mechanism(problem: PruningProblem, graph: CircuitMask, calibration: Calibration, held_out: TaskBatch) -> dict[str, Any] | None:
    """The claims and the numbers of every node; None where it `is_measured` not.

    pairs     held-out pairs used
    loss      of the circuit on these, nats
    nodes     {id: {auc: {place: AUC or None}, moved, flipped, without: loss, nats}} of each node alone; of q, k and v also head: its number
              in the layer; of writes direct: what one adds at the last token to the logit of the first answer less that of the second, at
              the model's own scale: [mean of prompts with the first answer, of those with the second]
    claims    [{kind, nodes, holds, ...}, ...] in forward order; see the functions below
    holds     whether together the claims make a story, and every one of them holds
    """
    if not is_measured(problem, graph):
        return None
    choosing, measured = (
        CircuitOnPairs(problem, graph, calibration, batch.pick(torch.arange(min(PAIRS, batch.pairs))))
        for batch in (problem.select, held_out)
    )
    found: dict[str, Any] = {}
    written = measured.written()
    for node, aucs in separation(measured).items():
        problem.tick(len(found), len(measured.nodes))
        found[node] = _of_node(measured, node, aucs, written.get(node))
    nodes = _nodes(choosing, measured, found)
    told = {node for claim in nodes for node in claim["nodes"]}
    steps = [*_mlps(choosing, measured, found, told), *_heads(choosing, measured), *nodes]
    steps.sort(key=lambda claim: measured.nodes.index(claim["nodes"][0]))
    claims = [_difference(measured), *steps, *_writes(choosing, measured)]
    named = sorted({node for claim in claims for node in claim["nodes"]})
    together = _claim("together", measured, named)
    claims.append(together | {"holds": together["moved"] >= STORY})
    return {
        "pairs": measured.batch.pairs,
        "loss": measured.batch.losses(measured.diff).double().mean().item(),
        "nodes": found,
        "claims": claims,
        "holds": all(claim["holds"] for claim in claims if claim["kind"] != "difference") and bool(steps),
    }


def _of_node(circuit: CircuitOnPairs, node: str, aucs: dict[str, float | None], written: Tensor | None) -> dict[str, Any]:
    """written: (2P,) what a write adds to the logit difference; None: the node is no write."""
    swapped = circuit.swapped([node])
    found = {"auc": aucs, "moved": swapped.moved, "flipped": swapped.flipped, "without": circuit.without([node])}
    if node.split(".")[2] in ("q", "k", "v"):
        found["head"] = circuit.head_of(node)[1]
    if written is not None:
        found["direct"] = [written[rows].double().mean().item() for rows in (circuit.batch.sign > 0, circuit.batch.sign < 0) if rows.any()]
    return found


def _claim(kind: str, circuit: CircuitOnPairs, nodes: Sequence[str], **facts: Any) -> Claim:
    swapped = circuit.swapped(nodes)
    numbers = {"moved": swapped.moved, "flipped": swapped.flipped, "without": circuit.without(nodes)}
    return {"kind": kind, "nodes": list(nodes)} | facts | numbers


def _difference(circuit: CircuitOnPairs) -> Claim:
    """one_token: fraction of pairs; tokens: [[id with the first answer, id with the second, fraction], ...]; before_end: median, tokens."""
    there = circuit.places["difference"]
    single = there.sum(1) == 1
    batch, rows = circuit.batch, torch.arange(len(single), device=single.device)
    place = there.int().argmax(1)
    token = batch.ids[rows, place]
    first = single & (batch.sign > 0) & (batch.sign[circuit.pair] < 0)
    found = Counter(zip(token[first].tolist(), token[circuit.pair][first].tolist(), strict=True))
    share = single.double().mean().item()
    return {
        "kind": "difference",
        "nodes": [],
        "one_token": share,
        "tokens": [[*ids, number / max(1, int(first.sum()))] for ids, number in found.most_common(2)],
        "before_end": (batch.last - place)[single].median().item() if single.any() else None,
        "holds": share >= ONE_TOKEN,
    }


def _mlps(choosing: CircuitOnPairs, measured: CircuitOnPairs, found: dict[str, Any], told: set[str]) -> list[Claim]:
    """layer; nodes: its neurons in the circuit, those first without which the loss is highest. None for layers of `told` ones."""
    neurons: dict[int, list[str]] = {}
    for node in choosing.at("mlp.post_act"):
        neurons.setdefault(int(node.partition(".")[0]), []).append(node)
    moved = {layer: choosing.swapped(nodes).moved for layer, nodes in neurons.items() if not told.issuperset(nodes)}
    best = sorted((layer for layer in moved if moved[layer] >= ENOUGH), key=lambda layer: -moved[layer])[:SHOWN_MLPS]
    claims = []
    for layer in best:
        claim = _claim("mlp", measured, sorted(neurons[layer], key=lambda node: -found[node]["without"]), layer=layer)
        claims.append(claim | {"holds": claim["moved"] >= ENOUGH})
    return claims


def _heads(choosing: CircuitOnPairs, measured: CircuitOnPairs) -> list[Claim]:
    """head: [layer, head]; attention: mean, from the last token and from those before it, to the tokens that differ.

    attention_by_answer   the same in prompts of the first answer and of the second
    """
    values: dict[Head, list[str]] = {}
    for node in choosing.at("attn.v"):
        values.setdefault(choosing.head_of(node), []).append(node)
    moved = {head: choosing.swapped(nodes).moved for head, nodes in values.items()}
    best = sorted((head for head in moved if moved[head] >= ENOUGH), key=lambda head: -moved[head])[:SHOWN_HEADS]
    found = []
    for head in sorted(best):
        facts: Claim = {"head": list(head), "attention": {place: _attention(measured, head, place) for place in ("end", "after")}}
        signs = (measured.batch.sign > 0, measured.batch.sign < 0)
        facts["attention_by_answer"] = {place: [_attention(measured, head, place, rows) for rows in signs] for place in ("end", "after")}
        claim = _claim("head", measured, values[head], **facts)
        found.append(claim | {"holds": claim["moved"] >= ENOUGH})
    return found


def _attention(circuit: CircuitOnPairs, head: Head, place: str, rows: Tensor | None = None) -> float | None:
    """Mean attention of a head from the tokens of a place to those that differ; None where no prompt has such tokens.

    rows   (2P,) bool: the prompts that count; None: all
    """
    begin = circuit.places[place] if rows is None else circuit.places[place] & rows[:, None]
    to = (circuit.patterns[head] * circuit.places["difference"][:, None]).sum(-1)
    return to[begin].double().mean().item() if begin.any() else None


def _nodes(choosing: CircuitOnPairs, measured: CircuitOnPairs, found: dict[str, Any]) -> list[Claim]:
    """place: where the node separates the classes best; auc: there."""
    best = {node: best_place(aucs) for node, aucs in separation(choosing).items()}
    order, moved = choosing.nodes, {}
    for node in order:
        where = best[node]
        if where is not None and abs(where[1] - 0.5) >= SEPARATES - 0.5 and node.split(".")[2] not in ("q", "k"):
            moved[node] = choosing.swapped([node]).moved
    chosen = sorted((node for node in moved if moved[node] >= ENOUGH), key=lambda node: -moved[node])[:SHOWN_NODES]
    claims = []
    for node in sorted(chosen, key=order.index):
        place = best[node][0]  # type: ignore[index]
        auc, own = found[node]["auc"][place], {name: found[node][name] for name in ("moved", "flipped", "without")}
        holds = own["moved"] >= ENOUGH and auc is not None and abs(auc - 0.5) >= SEPARATES - 0.5
        claims.append({"kind": "node", "nodes": [node], "place": place, "auc": auc} | own | {"holds": holds})
    return claims


def _writes(choosing: CircuitOnPairs, measured: CircuitOnPairs) -> list[Claim]:
    """share: of the variance of the logit difference over prompts, that these writes make up directly, without calibration."""
    shares = _shares(choosing)
    best = sorted((node for node in shares if shares[node] >= ENOUGH / 2), key=lambda node: -shares[node])[:SHOWN_WRITES]
    if not best or sum(shares[node] for node in best) < ENOUGH:
        return []
    of_held_out = _shares(measured)
    share = sum(of_held_out[node] for node in best)
    claim = _claim("write", measured, sorted(best, key=choosing.nodes.index), share=share)
    return [claim | {"holds": share >= ENOUGH}]


def _shares(circuit: CircuitOnPairs) -> dict[str, float]:
    """{write: covariance of its part with the logit difference, over the variance of that}."""
    diff = circuit.diff.double() / circuit.calibration.scale
    apart = diff - diff.mean()
    spread = apart.square().mean().clamp_min(1e-12)
    return {node: ((part.double() - part.double().mean()) * apart).mean().div(spread).item() for node, part in circuit.written().items()}
