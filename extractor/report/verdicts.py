"""What a page opens with: the finding in one or two sentences, and the verdicts, each a claim with its number and its condition."""

from __future__ import annotations

import math
from collections.abc import Iterator

from extractor.circuits.circuit import Circuit
from extractor.report.html import count, nats, percent, plain, token
from extractor.report.picture import short_name
from extractor.spec.claims import CONDITION_WORDS, is_foreign, worst_condition
from extractor.spec.schema import CHANCE
from extractor.spec.thresholds import AT_CHANCE, RIGHT_ENOUGH, SAME_ANSWER, THE_SAME_AS_CHANCE

_ABLATED = {"mean": "other nodes at their means", "zero": "other nodes at zero", "resample": "other nodes resampled"}


def headline(circuit: Circuit, result: dict) -> str:
    """The result in one or two sentences of HTML; also states a missed target or a circuit that the model does not need."""
    size = f"{count(len(circuit.nodes), 'node')} and {count(len(circuit.edges), 'edge')}"
    owner = f"{plain(short_name(result['model']))}{'&rsquo;s sparse model' if result.get('bridge') else ''}"
    score = f"{nats(result['loss'].get('circuit'))} nats, {percent(result['accuracy'].get('circuit'))} right"
    if is_foreign(result):
        met = "meet the target" if result["meets_target"] else "do not meet the target"
        what = f"Not the dense model&rsquo;s: {size} of its sparse model, which {met}"
        return f"{what}, choose between {answers_of(circuit)}: {score}. {_without(result)}"
    if result["meets_target"]:
        verb = "chooses" if len(circuit.nodes) == 1 and not circuit.edges else "choose"
        return f"{size} of {owner} {verb} between {answers_of(circuit)}: {score}. {_without(result)}"
    found = f"The best circuit found to choose between {answers_of(circuit)}, {size} of {owner}, reaches {score}"
    return f"Target not met. {found}; the target is {nats(result['target_loss'])} nats. {_without(result)}"


def verdicts(result: dict) -> str:
    """Sufficient, necessary, better than random: three claims, each with its number; a claim without a number is not made."""
    loss, target = result["loss"], result["target_loss"]
    alone, random = (known(loss.get(k)) for k in ("circuit", "random"))
    enough = ("yes", "Sufficient") if result["meets_target"] else ("no", "Not sufficient")
    if random is None or alone is None:
        special = ("part", "Not compared with random")
    else:
        special = ("yes", "Better than random") if random > max(target, alone) else ("no", "Not better than random")
    claims = (
        *_dense_claim(result),
        (*enough, f"circuit alone, {_condition_of(result)}: {nats(alone)} nats; target {nats(target)}"),
        *condition_claim(result),
        *_shifted_claim(result),
        _necessity_claim(result),
        (*special, f"same number of random nodes: {nats(random)} nats"),
    )
    return "".join(f'<li class="card {kind}"><b>{name}</b><span>{numbers}</span></li>' for kind, name, numbers in claims)


def _without_edges(result: dict) -> float | None:
    """Loss of the full model, calibrated, without the circuit's edges alone; None where it was not measured."""
    return known(((result.get("validation") or {}).get("removed") or {}).get("edges"))


def _necessity_claim(result: dict) -> tuple[str, str, str]:
    """What the full model has without the circuit's nodes, and without its edges alone, which asks for more."""
    target, cut = result["target_loss"], _without_edges(result)
    full, without = (known(result["loss"].get(name)) for name in ("full", "without_circuit"))
    if without is None:
        needed = ("part", "Necessity not measured")
    elif full is not None and full >= AT_CHANCE:
        needed = ("no", "Not necessary: the full model fails, too")
    elif without >= AT_CHANCE:
        needed = ("yes", "Necessary")
        if cut is not None and cut < AT_CHANCE:
            needed = ("part", "Nodes necessary, edges only partly" if cut > target else "Only its nodes are necessary")
    elif without > target:
        needed = ("part", "Partly necessary")
    else:
        needed = ("no", "Not necessary")
    if cut is None:
        return (*needed, f"without the circuit: {nats(without)} nats; chance {nats(CHANCE)}")
    beside = f"full model, calibrated {nats(result['validation']['removed'].get('nothing'))}; chance {nats(CHANCE)}"
    return (*needed, f"all nodes kept, its edges cut: {nats(cut)} nats; its nodes ablated: {nats(without)} nats; {beside}")


def _condition_of(result: dict) -> str:
    """The condition under which the circuit's own loss is measured."""
    if result.get("standard") == "robust":
        return f"worst of {len(CONDITION_WORDS)} ablations, without calibration"
    return f"{_ABLATED[result.get('ablation', 'mean')]}, calibrated"


def condition_claim(result: dict) -> Iterator[tuple[str, str, str]]:
    """Whether the circuit meets the target under each condition, at the model's own scale; nothing where that was not measured."""
    worst = worst_condition(result.get("validation"))
    if worst is None:
        return
    name, numbers = worst
    holds = numbers["loss"] <= result["target_loss"]
    kind, claim = ("yes", "Holds under every condition") if holds else ("no", "Not under every condition")
    text = f"without calibration, where other nodes {CONDITION_WORDS[name]} (worst of {len(CONDITION_WORDS)}): {nats(numbers['loss'])} nats"
    adversary = result["validation"].get("adversarial")
    beside = "" if adversary is None else f"; where an adversary sets them: {nats(adversary['loss'])} nats"
    yield kind, claim, f"{text}, {percent(numbers['accuracy'])} right{beside}"


def _shifted_claim(result: dict) -> Iterator[tuple[str, str, str]]:
    """Whether circuit and full model answer alike on prompts from other templates; nothing where that was not measured."""
    found = (result.get("validation") or {}).get("shifted")
    if not found:
        return
    right, same = found["accuracy"], found["same_answer"]
    if same < SAME_ANSWER:
        kind, claim = "no", "Not on shifted prompts"
    elif right["full"] < RIGHT_ENOUGH:
        kind, claim = "part", "Full model fails on shifted prompts"
    else:
        kind, claim = "yes", "Holds on shifted prompts"
    worst = worst_condition(found)
    beyond = "" if worst is None else f"; without calibration at worst {nats(worst[1]['loss'])} nats"
    answers = f"right on {percent(right['circuit'])}, full model {percent(right['full'])}; same answer on {percent(same)}"
    yield kind, claim, f"longer code, other templates: {answers}{beyond}"


def _dense_claim(result: dict) -> Iterator[tuple[str, str, str]]:
    """Whether the task is the dense model's, with its numbers; nothing where that was not measured."""
    prompts = (result.get("bridge") or {}).get("prompts") or {}
    if result.get("holds_for_dense") is None or "agreement" not in prompts:
        return
    low, high = (percent(end) for end in prompts["interval"]["agreement"])
    kind, claim = ("no", "Not the dense model&rsquo;s") if is_foreign(result) else ("yes", "The dense model does it, too")
    numbers = f"same answer as the sparse model on {percent(prompts['agreement'])} of held-out prompts ({low} to {high})"
    yield kind, claim, f"dense model: {nats(prompts['loss']['dense'])} nats; {numbers}"


def answers_of(circuit: Circuit) -> str:
    return " and ".join(map(token, circuit.answers)) or "the two answers of each pair"


def _without(result: dict) -> str:
    loss, right = result["loss"].get("without_circuit"), percent(result["accuracy"].get("without_circuit"))
    who = "sparse model" if result.get("bridge") else "model"
    if loss is None or not math.isfinite(loss):
        return f"The {who} without them was not measured."
    fails = loss >= AT_CHANCE
    if fails or loss > result["target_loss"]:
        cut = _without_edges(result)
        is_told = cut is not None and not (fails and cut >= AT_CHANCE)
        edges = f"; without these edges alone, all nodes kept, it has {nats(cut)} nats" if is_told else ""
        near = "at chance" if loss >= THE_SAME_AS_CHANCE else f"near chance, {nats(loss)} nats"
        what = near if fails else f"still {right} right, above chance"
        return f"Without {'them' if cut is None else 'these nodes'} the {who} is {what}{edges}."
    return f"The {who} does not need them: without them it is still {right} right."


def known(value: float | None) -> float | None:
    """The value; None where it is missing or no number."""
    return value if value is not None and math.isfinite(value) else None
