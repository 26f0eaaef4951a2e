"""The comparison of two circuits as a page: sizes and losses, both in one picture or side by side, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from extractor.circuits.circuit import Circuit
from extractor.report import picture
from extractor.report.html import ABSENT, count, nats, percent, plain, scroll, section, table
from extractor.report.picture import Scene, short_name
from extractor.report.plain_page import node_link, plain_page

SHARED, FIRST, SECOND = "#57606a", "#007a5e", "#a8458a"  # colours of nodes and edges that both have, and that one has
LISTED = 200  # rows of a table
# Of both circuits: from a node, or '' for the report, to an address; to '' where there is none.
Addresses = tuple[Callable[[str], str], Callable[[str], str]]


def compare_page(found: Mapping[str, Any], circuits: tuple[Circuit, Circuit], addresses: Addresses) -> str:
    """The text of the page. found: what `results.compare.compare` returns."""
    facts = found["circuits"]
    first, second = (f"{one['task']} in {short_name(str(one['model']))}" for one in facts)
    return plain_page(
        f"{first} and {second}",
        "Two circuits compared",
        _headline(found),
        f"First: {_report(facts[0], first, addresses[0])} · second: {_report(facts[1], second, addresses[1])}",
        "".join([_facts(facts), _curves(facts), _pictures(found, circuits), _similar(found, addresses), _names(found, addresses)]),
    )


def _headline(found: Mapping[str, Any]) -> str:
    sizes = " and ".join(count(one["nodes"], "node") for one in found["circuits"])
    if found["by_name"]:
        nodes, edges = (len(found["by_name"][kind]["shared"]) for kind in ("nodes", "edges"))
        return f"Circuits of {sizes} of one sparse model share {count(nodes, 'node')} and {count(edges, 'edge')}."
    if found["by_values"] is None:
        return f"Circuits of {sizes} of two sparse models; {plain(found['why_no_values'])}, so that their values are not compared."
    matched = len(found["by_values"]["matched"])
    return f"Circuits of {sizes} of two sparse models: {count(matched, 'node')} of each {'has' if matched == 1 else 'have'} similar values."


def _report(facts: Mapping[str, Any], name: str, address: Callable[[str], str]) -> str:
    where = address("")
    what = f"{plain(name)}, seed {plain(facts['seed'])}"
    return f'<a href="{plain(where)}">{what}</a>' if where else what


def _facts(facts: Sequence[Mapping[str, Any]]) -> str:
    def row(name: str, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return [name, *(cell(one) for one in facts)]

    rows = [
        row("model", lambda one: plain(one["model"])),
        row("standard", lambda one: plain(one["standard"] or "not said")),
        row("target", lambda one: f"{nats(one['target_loss'])} nats, {'met' if one['meets_target'] else 'missed'}"),
        row("nodes", lambda one: f"{one['nodes']:,}"),
        row("edges", lambda one: f"{one['edges']:,}"),
    ]
    networks = {"circuit": "circuit alone", "full": "full model", "without_circuit": "without the circuit", "random": "random nodes"}
    for key, words in networks.items():
        rows.append(row(f"{words}: loss in nats, right", lambda one, key=key: _loss(one, key)))  # type: ignore[misc]
    return section("sizes", "Sizes and losses", scroll(table(("what", "first", "second"), rows, {1, 2}), "Sizes and losses"))


def _loss(facts: Mapping[str, Any], network: str) -> str:
    return f"{nats(facts['loss'][network])}, {percent(facts['accuracy'][network])}"


def _curves(facts: Sequence[Mapping[str, Any]]) -> str:
    """Edges for each target; both circuits' targets."""
    curves = [{row["target"]: row for row in one["curve"] or ()} for one in facts]
    targets = sorted({target for curve in curves for target in curve}, reverse=True)
    if not targets:
        return ""

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ABSENT
        return f"{row['nodes']:,} nodes, {row['edges']:,} edges{'' if row.get('met', True) else ', missed'}"

    rows = [[f"{target:g}", *(cell(curve.get(target)) for curve in curves)] for target in targets]
    return section("targets", "For each target", scroll(table(("target, nats", "first", "second"), rows, {1, 2}), "For each target"))


def _pictures(found: Mapping[str, Any], circuits: tuple[Circuit, Circuit]) -> str:
    keys = f"{_swatch(FIRST, 'the first only')}, {_swatch(SECOND, 'the second only')}, grey: both"
    if found["by_name"]:
        note = f"Nodes and edges of one sparse model: {keys}. Hover an edge for its weight."
        return section("picture", "Both in one picture", f'<p class="note">{note}</p><div class="picture">{_one_picture(circuits)}</div>')
    matched = (found["by_values"] or {"matched": []})["matched"]
    shared = [{row[place] for row in matched} for place in (0, 1)]
    colours = (FIRST, SECOND)
    drawn = [picture.to_svg(_coloured(picture.layout(one), there, own)) for one, there, own in zip(circuits, shared, colours, strict=True)]
    note = f"{keys.replace('both', 'nodes with similar values in the other')}. The colours of edges are their signs."
    body = "".join(f'<div class="picture">{svg}</div>' for svg in drawn)
    return section("picture", "Both pictures", f'<p class="note">{note}</p><div class="plots">{body}</div>')


def _swatch(colour: str, words: str) -> str:
    return f'<b style="border-bottom:4px solid {colour}">{words}</b>'


def _coloured(scene: Scene, shared: set[str], own: str) -> Scene:
    """The scene with the outlines of shared nodes in one colour, of the others in their own."""
    return _outlined(scene, lambda name: SHARED if name in shared else own)


def _outlined(scene: Scene, colour: Callable[[str], str]) -> Scene:
    chips = tuple(replace(chip, box=replace(chip.box, stroke=colour(chip.node.id))) for chip in scene.chips)
    return replace(scene, chips=chips)


def _one_picture(circuits: tuple[Circuit, Circuit]) -> str:
    """Both circuits in one layout, every node and edge in the colour of those that have it. The colours of edges say no sign."""
    first, second = circuits
    nodes = {node.id: node for one in (second, first) for node in one.nodes}
    edges = {(edge.source, edge.target): edge for one in (second, first) for edge in one.edges}
    union = replace(first, nodes=tuple(nodes.values()), edges=tuple(edges.values()))
    scene = picture.layout(union, note="of two circuits together")
    names = [{node.id for node in one.nodes} for one in circuits]
    links = [{(edge.source, edge.target) for edge in one.edges} for one in circuits]

    def colour(name: Any, members: Sequence[set[Any]]) -> str:
        return SHARED if all(name in one for one in members) else FIRST if name in members[0] else SECOND

    kept = (wire for wire in scene.wires if wire.kind != "sample")
    wires = tuple(replace(wire, color=colour((wire.source, wire.target), links)) if wire.kind == "edge" else wire for wire in kept)
    labels = tuple(label for label in scene.labels if "weight" not in label.text and label.text != scene.title)
    return picture.to_svg(_outlined(replace(scene, wires=wires, labels=labels), lambda name: colour(name, names)))


def _similar(found: Mapping[str, Any], addresses: Addresses) -> str:
    values = found["by_values"]
    if values is None:
        return ""
    rows = [
        [node_link(addresses[0](a), a), node_link(addresses[1](b), b), f"{correlation:+.2f}", f"{at_end:+.2f}"]
        for a, b, correlation, at_end in values["matched"][:LISTED]
    ]
    note = (
        f"Each other&rsquo;s best partner of their kind of site, with a correlation of at least {values['least']} in size over all "
        f"tokens of {values['pairs']} held-out pairs of the first. Similar values are no proof of one function: what two nodes do to the "
        "answer is not compared."
    )
    heads = ("first", "second", "correlation", "at the last tokens")
    only = "".join(
        f"<h3>Nodes of the {which} without such a partner</h3>{_ids(names, address)}"
        for which, names, address in zip(("first", "second"), values["only"], addresses, strict=True)
    )
    body = scroll(table(heads, rows, {2, 3}), "Nodes with similar values") if rows else "<p>None.</p>"
    return section("values", "Nodes with similar values", f'<p class="note">{note}</p>{body}{only}')


def _names(found: Mapping[str, Any], addresses: Addresses) -> str:
    if found["by_name"] is None:
        note = "The circuits are of two sparse models, in which one name is two nodes: names are not compared."
        return section("names", "Nodes by name", f'<p class="note">{note}</p>')
    nodes, edges = found["by_name"]["nodes"], found["by_name"]["edges"]
    parts = [
        f"<h3>In both: {count(len(nodes['shared']), 'node')}, overlap {nodes['overlap']:.2f}</h3>{_ids(nodes['shared'], addresses[0])}",
        f"<h3>In the first only: {count(len(nodes['only'][0]), 'node')}</h3>{_ids(nodes['only'][0], addresses[0])}",
        f"<h3>In the second only: {count(len(nodes['only'][1]), 'node')}</h3>{_ids(nodes['only'][1], addresses[1])}",
        f"<h3>Edges in both: {len(edges['shared']):,}, overlap {edges['overlap']:.2f}</h3>",
    ]
    return section("names", "Nodes and edges by name", "".join(parts))


def _ids(names: Sequence[str], address: Callable[[str], str]) -> str:
    links = "".join(f"{node_link(address(name), name)} " for name in names[:LISTED])
    more = f'<span class="note">and {len(names) - LISTED} more</span>' if len(names) > LISTED else ""
    return f'<p class="ids">{links}{more}</p>' if names else '<p class="note">none</p>'
