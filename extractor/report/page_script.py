"""The data and the script of report.html. The script is built from extractor/report/web, the data are the numbers that its parts show."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from extractor.circuits.circuit import Circuit, Node
from extractor.report import picture
from extractor.report.picture import residual_streams, visible


def page_json(
    circuit: Circuit,
    result: Mapping[str, Any],
    tokens: Mapping[str, Any] | None,
    drawn: Sequence[str],
    live: Mapping[str, Any] | None = None,
    drawings: Mapping[str, Any] | None = None,
) -> str:
    """The data as JSON that may stand in a script, as an expression.

    answers   the circuit's two answers; [] where they vary
    nodes     those that are drawn: {id, site (in words), mean, reads, writes, changed, and what is known of: auc, moved, flipped, without,
              head, direct, percentiles, nonzero, steering, unexplained}
    edges     [[source, target, weight, rise of the loss without it or null]] between drawn nodes
    loss      of the circuit on the pairs of `moved` and `flipped`, nats
    tokens    see `jobs.page_data`, passages as `_packed` has them; null where there is none
    key       of this circuit: under it the browser keeps the reader's notes
    drawings  see `report.drawings`; null where there is one picture only
    streams   [[source, target]]: nodes that are joined without a weight, by the residual stream; '' for the input and the answers
    calibration, live   the circuit itself, see `jobs.live_data`; null where the page does not run it
    """
    checked = result.get("validation") or {}
    shown = set(drawn)
    listed = [node for node in circuit.nodes if node.id in shown]
    steering = result.get("steering")
    steered = {one[0]: one[1] for one in steering.get("tried", ())} if isinstance(steering, Mapping) else {}
    effects = {(source, target): rise for source, target, rise in (checked.get("edge_effects") or {}).get("edges", ())}
    found: dict[str, Any] = {
        "answers": list(circuit.answers),
        "nodes": [_node(node, checked, steered) for node in listed],
        "edges": [
            [e.source, e.target, _short(e.weight), _short(effects.get((e.source, e.target)))]
            for e in circuit.edges
            if {e.source, e.target} <= shown
        ],
        "loss": (checked.get("mechanism") or {}).get("loss"),
        "percentiles": (checked.get("activations") or {}).get("percentiles"),
        "tokens": _of_drawn(tokens, shown, live is not None),
        "calibration": [circuit.calibration.scale, circuit.calibration.shift],
        "live": live,
        "drawings": drawings,
        "streams": [[*map(_end, (one.source, one.target))] for one in residual_streams(listed, circuit.parallel)],
        "key": hashlib.sha256(json.dumps(circuit.to_json(), sort_keys=True).encode()).hexdigest()[:16],
    }
    return json.dumps(found, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


def page_script() -> str:
    return resources.files("extractor.report").joinpath("web/page.js").read_text(encoding="utf-8")


def _end(node: Node | None) -> str:
    return "" if node is None else visible(node.id)


def _node(node: Any, checked: Mapping[str, Any], steered: Mapping[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": visible(node.id),
        "site": picture.site_words(node.site),
        "mean": _short(node.mean),
        "reads": [visible(text) for text in node.reads],
        "writes": [visible(text) for text in node.writes],
    }
    own = ((checked.get("mechanism") or {}).get("nodes") or {}).get(node.id) or {}
    found |= {name: own[name] for name in ("auc", "moved", "flipped", "without", "head", "direct") if name in own}
    if "head" in own:
        found["site"] += f", head {own['head']}"
    text = ((checked.get("activations") or {}).get("nodes") or {}).get(node.id)
    if text:
        found |= {"percentiles": [_short(value) for value in text["values"]], "nonzero": text["nonzero"]}
    role = ((checked.get("roles") or {}).get("nodes") or {}).get(node.id)
    if role:
        found |= {"unexplained": role[0], "changed": node.id in (checked["roles"].get("changed") or ())}
    return found | ({"steering": steered[node.id]} if node.id in steered else {})


def _of_drawn(tokens: Mapping[str, Any] | None, drawn: set[str], runs: bool) -> dict[str, Any] | None:
    """The token data of the drawn nodes; where the circuit runs in the page, without values and attention: it computes them."""
    if tokens is None:
        return None
    if runs:
        scales = {node: {"scale": one["scale"], "values": []} for node, one in tokens["nodes"].items()}
        tokens = {**tokens, "nodes": scales, "heads": {}}
    parts = ("nodes", "passages", "histograms")  # earlier versions stored no histograms
    kept = {part: {node: one for node, one in tokens.get(part, {}).items() if node in drawn} for part in parts}
    kept["passages"] = {node: _packed(one) for node, one in kept["passages"].items()}
    stored = {name: part for name, part in tokens.items() if name != "ids"}
    return {**stored, **kept, "texts": [visible(text) for text in tokens["texts"]]}


def _packed(passages: Mapping[str, Any]) -> dict[str, Any]:
    """Passages of one node in half the bytes.

    rank, at, length   of each passage
    tokens, values     of all passages one after the other: base64 of little-endian 16-bit places of texts, and of signed bytes
    """
    texts = passages["texts"]
    tokens = b"".join(place.to_bytes(2, "little") for one in texts for place in one["tokens"])
    values = b"".join(value.to_bytes(1, "little", signed=True) for one in texts for value in one["values"])
    found: dict[str, Any] = {name: [one[name] for one in texts] for name in ("rank", "at")}
    found |= {"length": [len(one["tokens"]) for one in texts], "scale": passages["scale"]}
    return found | {"tokens": base64.b64encode(tokens).decode("ascii"), "values": base64.b64encode(values).decode("ascii")}


def _short(value: float | None) -> float | None:
    return None if value is None or value != value or abs(value) == float("inf") else float(f"{value:.4g}")
