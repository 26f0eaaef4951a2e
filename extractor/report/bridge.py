"""The report's section on faithfulness: how much of the dense model the sparse one carries, at every crossing.

Reads result["bridge"]: the numbers of `bridges.faithfulness`, with `prompts` and `circuit` where those were measured. Results of older
versions hold less; the section leaves out their missing parts and says that the recovered share is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from extractor.report.html import nats, percent, plain, scroll, section
from extractor.report.picture import short_name
from extractor.report.plots import Level, Line, crossing, crossings_plot, known
from extractor.spec.claims import loss_shares, which_layers
from extractor.spec.schema import CHANCE
from extractor.spec.unmeasured import why_no_share

_LOWEST = -0.5  # lower shares are drawn on the plot's lower edge
_BOTTOMS = (0.9, 0.75, 0.5, 0.0, -0.25, _LOWEST)  # lower ends of the plot of shares; the highest that is below all values is taken
_TO_SPARSE, _TO_DENSE = "dense, then sparse", "sparse, then dense"
_BRIDGES = (("encoder", "encoder"), ("decoder", "decoder"), ("by channel", "decoder_by_channel"))
_MEANINGS = (
    ("KL", "KL: divergence from the dense model, nats per token."),
    ("explained", "Explained: one minus that divergence over the one of a bigram model."),
    ("recovered", "Recovered: share of the dense model's gain over a bigram model."),
    (
        "encoder",
        "NMSE: squared error of the bridge over the variance of its target; by channel: mean over the decoded channels of each one's NMSE.",
    ),
    ("right", "Circuit: all other nodes are mean-ablated; the residual then crosses to the dense model, which chooses the answer."),
)


def bridge_section(result: dict) -> str:
    """The section as HTML; says why where there is nothing to show."""
    bridge = result.get("bridge")
    if not bridge:
        return section("bridge", "Faithfulness to the dense model", f"<p>Not measured: {plain(why_no_share(result))}.</p>")
    name = plain(short_name(result["model"]))
    texts = [
        _layers(bridge) + (_explained(name, bridge) or _carried(name, bridge, why_no_share(result))),
        _text(name, bridge),
        _prompts(name, bridge) + _circuit(name, bridge, result["target_loss"]),
    ]
    paragraphs = "".join(f"<p>{text}</p>" for text in texts if text)
    plots = [_plot_shares(bridge), _plot_circuit(bridge, result["target_loss"])]
    figures = f'<div class="plots">{"".join(plots)}</div>' if any(plots) else ""
    return section("bridge", "Faithfulness to the dense model", paragraphs + figures + _table(bridge))


def _layers(bridge: dict) -> str:
    """Which layers are sparse; '' where all are."""
    some = which_layers(bridge)
    return f"<strong>Of this model {plain(some)}</strong>: numbers by crossing are those beside the sparse layers. " if some else ""


def _explained(name: str, bridge: dict) -> str:
    """The share of KL that the sparse model and the worst hybrid pass explain on the worst source; '' in results of older versions."""
    found = bridge.get("explained")
    if not found:
        return ""
    worst, at, way = _worst_pass(found)
    where = crossing(at, len(found["to_sparse"]), _per_layer(bridge))
    return (
        f"The circuit is part of a sparse model that was trained together with bridges to {name}. <strong>On {plain(found['source'])}, its "
        f"worst source of text, the worst hybrid pass explains {_share(worst)} of how {name} differs from a bigram model, the sparse model "
        f"{_share(found['sparse'])}</strong> ({way}; {where}; shares of KL divergence). The mean over the "
        f"sparse model and the hybrid passes is {percent(found['mean'])}.{_other_sources(bridge, found['source'])}"
    )


def _other_sources(bridge: dict, worst: str) -> str:
    rest = {source: facts for source, facts in (bridge.get("sources") or {}).items() if source != worst and facts.get("explained")}
    if not rest:
        return ""
    return " On " + "; on ".join(f"{plain(source)} it is {percent(facts['explained']['mean'])}" for source, facts in rest.items()) + "."


def _worst_pass(shares: dict) -> tuple[float, int, str]:
    """The least share of a hybrid pass, the site where it crosses, and its direction."""
    ways = ((_TO_SPARSE, "to_sparse"), (_TO_DENSE, "to_dense"))
    return min((v, i, way) for way, key in ways for i, v in enumerate(shares[key]) if v is not None)


def _per_layer(bridge: dict) -> int:
    """Crossings of a layer."""
    return int(bridge.get("sites_per_layer", 2))


def _share(value: float) -> str:
    return percent(value) if value > 0 else "nothing"


def _carried(name: str, bridge: dict, why: str | None) -> str:
    """The share of the dense model's gain over bigrams that the sparse model and the weakest hybrid pass recover; `why` there is none."""
    intro = f"The circuit is part of a sparse model that was trained together with bridges to {name}."
    shares = loss_shares(bridge)
    if not shares:
        return f"{intro} The share of its gain over a bigram model that is recovered is not known: {plain(why)}."
    worst, at, way = _worst_pass(dict(shares))
    where = crossing(at, len(shares["to_sparse"]), _per_layer(bridge))
    weakest = percent(worst) if worst > 0 else "recovers nothing"
    return (
        f"{intro} <strong>The sparse model recovers {_share(shares['sparse'])} of the gain of {name} over a bigram model; the weakest "
        f"hybrid pass {weakest}</strong> ({way}; {where}). The mean over the sparse model and the hybrid "
        f"passes is {percent(shares['mean'])}."
    )


def _text(name: str, bridge: dict) -> str:
    if "agreement" not in bridge:
        return ""
    bigram = f", a bigram model {nats(bridge['bigram_loss'])}" if "bigram_loss" in bridge else ""
    return (
        f"Both models predict the same next token {percent(bridge.get('agreement'))} of the time. Loss on text: {name} "
        f"{nats(bridge.get('dense_loss'))}, sparse model {nats(bridge.get('sparse_loss'))}{bigram} nats per token; KL divergence "
        f"of the sparse model from {name}: {nats(bridge.get('kl_dense_to_sparse'))} nats. "
        f"The closer to zero, the more the circuit explains {name} itself."
    )


def _prompts(name: str, bridge: dict) -> str:
    prompts = bridge.get("prompts")
    if not prompts:
        return ""
    dense, sparse = ((nats(prompts["loss"][who]), percent(prompts["accuracy"][who])) for who in ("dense", "sparse"))
    return (
        f"On the task's prompts both models prefer the same answer {percent(prompts['agreement'])} of the time: {name} at {dense[0]} nats "
        f"and {dense[1]} right, the sparse model at {sparse[0]} nats and {sparse[1]} right. {_answer_kl(name, prompts.get('kl'))}"
        f"{_shifted(name, prompts.get('shifted'))}"
    )


def _shifted(name: str, shifted: dict | None) -> str:
    """The same on shifted prompts: longer code in other templates; '' without them."""
    if not shifted:
        return ""
    low, high = (percent(end) for end in shifted["interval"]["agreement"])
    dense, sparse = (percent(shifted["accuracy"][who]) for who in ("dense", "sparse"))
    return (
        "On all shifted prompts, longer and from other templates (the validation takes the first of them), they prefer the same answer "
        f"{percent(shifted['agreement'])} of the time ({low} to {high}); {name} is right {dense}, the sparse model {sparse} of the time. "
    )


def _answer_kl(name: str, kl: dict | None) -> str:
    """How far the predictions at the end of the prompts are apart; '' in results of older versions."""
    if not kl:
        return ""
    worst = max(known(kl["to_sparse"] + kl["to_dense"]))
    return (
        f"At the answer the sparse model's prediction diverges from that of {name} by {nats(kl['sparse'])} nats (KL), that of the worst "
        f"hybrid pass by {nats(worst)}. "
    )


def _circuit(name: str, bridge: dict, target: float) -> str:
    """The loss of the dense model when it continues from the residual stream of the circuit."""
    found = (bridge.get("circuit") or {}).get("loss") or []
    starts = bool(found) and found[0] is not None  # no node comes before the first site
    losses = known(found[1:] if starts else found)
    if not losses:
        return ""
    span = dict.fromkeys((nats(min(losses)), nats(max(losses))))
    met = sum(loss <= target for loss in losses)
    return (
        f"When {name} continues from the circuit's residual stream, passed through a bridge, the task loss is {' to '.join(span)} nats; at "
        f"{met} of {len(losses)} crossings it meets the target of {nats(target)}."
        + (" The first crossing is not counted: no node is before it." if starts else "")
    )


def _plot_shares(bridge: dict) -> str:
    shares = bridge.get("explained") or loss_shares(bridge)
    if not shares:
        return ""
    of = f"KL on {plain(shares['source'])} that is explained" if "source" in shares else "the dense model's gain that is recovered"
    lines = [Line("to-sparse", _TO_SPARSE, shares["to_sparse"]), Line("to-dense", _TO_DENSE, shares["to_dense"], square=True)]
    values = known([*shares["to_sparse"], *shares["to_dense"], shares["sparse"]])
    low = next((b for b in _BOTTOMS if b <= min(values, default=0.0)), _LOWEST)
    legend = (("to-sparse", _TO_SPARSE), ("to-dense", _TO_DENSE), ("level own", f"the sparse model itself, {percent(shares['sparse'])}"))
    drawn = crossings_plot(
        f"Share of {of}, by crossing. {_range(_TO_SPARSE, shares['to_sparse'], percent)}; "
        f"{_range(_TO_DENSE, shares['to_dense'], percent)}; the sparse model itself {percent(shares['sparse'])}.",
        lines,
        [Level("own", shares["sparse"])],
        (low, max(1.0, *values)),
        lambda v: percent(round(v, 3)),
        _per_layer(bridge),
    )
    return _figure(f"Share of {of}, by crossing: 0 % is a bigram model, 100 % the dense model", legend, drawn)


def _plot_circuit(bridge: dict, target: float) -> str:
    losses = (bridge.get("circuit") or {}).get("loss") or []
    if not known(losses):
        return ""
    legend = (("circuit-alone", "circuit alone"), ("level target", f"target {nats(target)}"), ("level chance", f"chance {nats(CHANCE)}"))
    drawn = crossings_plot(
        f"Task loss of the circuit, continued by the dense model, by crossing. {_range('Nats', losses, nats)}; target {nats(target)}.",
        [Line("circuit-alone", "circuit alone", losses)],
        [Level("target", target), Level("chance", CHANCE)],
        (0.0, 1.05 * max(CHANCE, target, *known(losses))),
        lambda v: f"{v:.3g}",
        _per_layer(bridge),
    )
    return _figure("The circuit continued by the dense model, by crossing: task loss in nats, lower is better", legend, drawn)


def _range(name: str, values: Sequence[float | None], show: Callable[[Any], str]) -> str:
    numbers = known(values)
    return f"{name} from {show(min(numbers, default=None))} to {show(max(numbers, default=None))}"


def _figure(caption: str, legend: Sequence[tuple[str, str]], drawn: str) -> str:
    keys = "".join(f'<li class="{kind}"><span>{text}</span></li>' for kind, text in legend)
    head = f'<figcaption>{caption}</figcaption><ul class="legend">{keys}</ul>'
    return f'<figure class="card plot">{head}{scroll(drawn, caption, "scroll")}</figure>'


@dataclass(frozen=True)
class _Column:
    group: str
    name: str
    values: Sequence[Any]
    show: Callable[[Any], str]


def _columns(bridge: dict) -> list[_Column]:
    """The columns that have values."""
    nmse, kl, circuit = (bridge.get(key) or {} for key in ("nmse", "path_kl", "circuit"))
    name, shares = ("explained", bridge["explained"]) if bridge.get("explained") else ("recovered", loss_shares(bridge) or {})
    paths = ((_TO_SPARSE, "to_sparse"), (_TO_DENSE, "to_dense"))
    named = [("NMSE of the bridge", name, nmse.get(key), nats) for name, key in _BRIDGES]
    for group, key in paths:
        named += [(group, "KL", kl.get(key), nats), (group, name, shares.get(key), percent)]
    named += [
        ("circuit, then dense", "nats", circuit.get("loss"), nats),
        ("circuit, then dense", "right", circuit.get("accuracy"), percent),
    ]
    return [_Column(group, name, values, show) for group, name, values, show in named if values]


def _table(bridge: dict) -> str:
    """A row for each crossing, with grouped columns."""
    columns = _columns(bridge)
    if not columns:
        return ""
    sites = max(len(column.values) for column in columns)
    groups = [(group, len(list(found))) for group, found in groupby(columns, lambda c: c.group)]
    top = "".join(f'<th scope="colgroup" colspan="{size}" class="group">{group}</th>' for group, size in groups)
    under = "".join(f'<th scope="col" class="number">{column.name}</th>' for column in columns)
    head = f'<tr><th scope="col" rowspan="2">crossing</th>{top}</tr><tr>{under}</tr>'
    body = "".join(
        f'<tr><th scope="row">{crossing(site, sites, _per_layer(bridge))}</th>{_cells(columns, site)}</tr>' for site in range(sites)
    )
    meanings = [text for name, text in _MEANINGS if name in {column.name for column in columns}]
    note = " ".join(["A hybrid pass starts in one model and crosses to the other at one site.", *meanings])
    drawn = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<p class="note">{note}</p>{scroll(drawn, "Crossings", "card scroll crossings")}'


def _cells(columns: Sequence[_Column], site: int) -> str:
    cells = (column.show(column.values[site]) if site < len(column.values) else column.show(None) for column in columns)
    return "".join(f'<td class="number">{cell}</td>' for cell in cells)
