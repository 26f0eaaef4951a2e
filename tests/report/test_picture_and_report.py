"""The picture and the report: same circuit, same bytes; nothing left out; nothing a token says can break the page."""

import math
import random
import re
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from extractor.circuits.circuit import Calibration, Circuit, Edge, Node
from extractor.circuits.sites import GATED_PLACES, PLACES
from extractor.report.drawings import CORE, LARGE
from extractor.report.page import Example, write_report
from extractor.report.picture import NEGATIVE, POSITIVE, drawing, layout, part, to_svg, visible, write_png
from extractor.report.plots import effects_plot
from extractor.report.verdicts import condition_claim, headline
from extractor.spec.claims import CONDITION_WORDS

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = ("</title><script>alert(1)</script>", "\x00", "&", '" onload="x', "\ud800", "\u202e", "]]>", "\ufffe", "é漢")
LINKS = (("attn.act_in", "attn.q"), ("attn.act_in", "attn.v"), ("attn.v", "attn.resid_delta"))
LINKS += (("mlp.act_in", "mlp.post_act"), ("mlp.post_act", "mlp.resid_delta"))


def make(nodes=(), edges=(), model="python-tiny-sparse", task="quote_close", answers=('")', "')")) -> Circuit:
    return Circuit(model, task, answers, (1, 2), tuple(nodes), tuple(edges), Calibration(1.5, -0.2))


def node(site: str, channel: int, reads=(), writes=()) -> Node:
    return Node(f"{site}.{channel}", site, channel, 0.25, tuple(reads), tuple(writes))


def tiny() -> Circuit:
    """The smallest MLP circuit: one edge of each sign."""
    read, neuron, write = node("0.mlp.act_in", 7, ['("']), node("0.mlp.post_act", 300, [" in"], ['")']), node("0.mlp.resid_delta", 9)
    return make([read, neuron, write], [Edge(read.id, neuron.id, 1.25), Edge(neuron.id, write.id, -0.5)])


def grid(layers: int, per_site: int, most_edges: int, channels: int = 0) -> Circuit:
    """`per_site` nodes at every site of every layer, and edges between neighbouring sites, signs and sizes mixed.

    Every site has the same channels, or with `channels` its own of so many: then streams are long.
    """
    sites, chance = [f"{layer}.{place}" for layer in range(layers) for place in PLACES if place not in GATED_PLACES], random.Random(5)
    spread = {s: sorted(chance.sample(range(channels), per_site)) if channels else range(0, 3 * per_site, 3) for s in sites}
    nodes = [node(site, c, ["print", " in"], [" not"]) for site, found in spread.items() for c in found]
    ways = [(f"{layer}.{low}", f"{layer}.{high}") for layer in range(layers) for low, high in LINKS]
    size = range(per_site)
    pairs = [(f"{low}.{spread[low][a]}", f"{high}.{spread[high][b]}") for a in size for b in size for low, high in ways]
    return make(nodes, [Edge(s, t, math.sin(i) + 0.01) for i, (s, t) in enumerate(pairs[:most_edges])])


def found_in_training() -> Circuit:
    """A circuit that pruning found: most of its streams pass rows of other nodes."""
    reads = {
        ("0.mlp.act_in", "0.mlp.post_act"): {186: (15, 87)},
        ("0.mlp.post_act", "0.mlp.resid_delta"): {14: (186,)},
        ("1.attn.act_in", "1.attn.k"): {67: (15, 22), 79: (11, 14, 15, 22)},
        ("1.attn.act_in", "1.attn.v"): {65: (14, 32, 89, 111, 112), 69: (89, 111, 112), 76: (11, 32, 89, 106, 112)},
        ("1.attn.v", "1.attn.resid_delta"): {35: (65, 69), 48: (65, 69), 76: (65, 69, 76), 98: (69, 76), 124: (65, 69, 76)},
        ("1.mlp.post_act", "1.mlp.resid_delta"): {114: (247, 424)},
    }
    pairs = [((low, a), (high, b)) for (low, high), found in reads.items() for b, sources in found.items() for a in sources]
    nodes = [node(site, c, ["(", " word"], [" video", "]"] if "delta" in site else []) for site, c in sorted({n for p in pairs for n in p})]
    return make(nodes, [Edge(f"{s}.{a}", f"{t}.{b}", math.sin(i) + 0.01) for i, ((s, a), (t, b)) in enumerate(pairs)])


def drawn(circuit: Circuit) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(layout(circuit)))


def of_class(tree: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [e for e in tree.iter() if name in e.get("class", "").split()]


def along(path: ElementTree.Element) -> list[tuple[float, float]]:
    """Points along a path of cubic curves."""
    numbers = [float(x) for x in re.findall(r"-?[\d.]+", path.get("d"))]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    curves = [points[start : start + 4] for start in range(0, len(points) - 1, 3)]
    steps = [(k / 60, 1 - k / 60) for k in range(61)]
    weights = [(u**3, 3 * u * u * t, 3 * u * t * t, t**3) for t, u in steps]
    return [tuple(sum(w * p[i] for w, p in zip(ws, curve, strict=True)) for i in (0, 1)) for curve in curves for ws in weights]


def chips_hit(circuit: Circuit) -> set[tuple[str, str, str]]:
    """Streams that pass through, or almost touch, a chip that is not their end: (source, target, the chip)."""
    boxes = [(chip.node.id, chip.box) for chip in layout(circuit).chips]
    hit = set()
    for wire in of_class(drawn(circuit), "stream"):
        ends = wire.get("data-source"), wire.get("data-target")
        for x, y in along(wire):
            level = [(name, b) for name, b in boxes if b.y - 1 < y < b.y + b.height + 1]
            hit |= {(*ends, name) for name, b in level if b.x - 3 < x < b.x + b.width + 3 and name not in ends}
    return hit


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def result_of(circuit: Circuit, **changes) -> dict:
    return {
        "model": circuit.model,
        "task": circuit.task,
        "target_loss": 0.15,
        "seed": 11,
        "circuit": {"nodes": len(circuit.nodes), "edges": len(circuit.edges)},
        "loss": {"full": 0.0123, "circuit": 0.1312, "without_circuit": 0.6904, "random": 0.6921},
        "accuracy": {"full": 0.998, "circuit": 0.9688, "without_circuit": 0.517, "random": 0.503},
        "meets_target": True,
        "held_out_pairs": 257,
        "seconds": {"prune": 88.14, "validate": 4.2},
    } | changes


def written(folder: Path, circuit: Circuit, examples=(), **changes) -> str:
    write_report(folder, circuit, result_of(circuit, **changes), list(examples))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_same_circuit_same_bytes_even_in_another_process(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_picture_and_report as t;"
        "c = t.grid(2, 4, 90); t.write_report(Path(sys.argv[2]), c, t.result_of(c), []); assert 'torch' not in sys.modules"
    )
    (tmp_path / "other").mkdir()
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "other")], check=True, timeout=60)
    written(tmp_path, grid(2, 4, 90))
    for name in ("circuit.svg", "circuit.png", "report.html"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_the_order_in_which_nodes_and_edges_are_listed_does_not_change_the_picture():
    circuit = grid(2, 4, 90)
    assert to_svg(layout(make(circuit.nodes[::-1], circuit.edges[::-1]))) == to_svg(layout(circuit))


def test_every_node_and_edge_is_in_the_svg_once():
    circuit = grid(2, 5, 120)
    tree = drawn(circuit)
    assert sorted(e.get("data-id") for e in of_class(tree, "node")) == sorted(n.id for n in circuit.nodes)
    found = sorted((e.get("data-source"), e.get("data-target")) for e in of_class(tree, "edge"))
    assert found == sorted((e.source, e.target) for e in circuit.edges)
    assert len(found) == 120


def test_edges_are_coloured_by_sign_and_wider_when_larger():
    large, small = of_class(drawn(tiny()), "edge")[::-1]
    assert (large.get("data-weight"), large.get("stroke")) == ("1.25", POSITIVE)
    assert (small.get("data-weight"), small.get("stroke")) == ("-0.5", NEGATIVE)
    assert float(large.get("stroke-width")) > float(small.get("stroke-width"))
    assert float(large.get("stroke-opacity")) > float(small.get("stroke-opacity"))


def test_a_channel_written_and_read_later_is_joined_by_a_line_that_is_no_edge():
    write, read = node("0.mlp.resid_delta", 9), node("1.attn.act_in", 9)
    tree = drawn(make([write, read, node("1.attn.act_in", 8)]))
    joined = [(e.get("data-source"), e.get("data-target")) for e in of_class(tree, "stream")]
    assert (write.id, read.id) in joined
    assert ("", "1.attn.act_in.8") in joined  # never written inside the circuit: it comes from the input
    assert not of_class(tree, "edge")


def test_the_signal_runs_upwards_and_nodes_do_not_overlap():
    for circuit in (grid(2, 5, 120), grid(1, 60, 300)):
        scene = layout(circuit)
        boxes = {chip.node.id: chip.box for chip in scene.chips}
        for edge in circuit.edges:
            assert boxes[edge.source].y > boxes[edge.target].y + boxes[edge.target].height
        placed = sorted(boxes.values(), key=lambda b: (b.y, b.x))
        for i, a in enumerate(placed):
            assert a.x >= 0
            assert a.x + a.width <= scene.width
            for b in placed[i + 1 :]:
                assert b.y >= a.y + a.height or b.x >= a.x + a.width or a.x >= b.x + b.width


@pytest.mark.parametrize("circuit", [found_in_training(), grid(2, 4, 90, 100), grid(12, 2, 150, 40)], ids=["real", "64 nodes", "12 layers"])
def test_no_stream_passes_through_a_chip_that_is_not_its_end(circuit):
    """Else it looks like a link of that chip."""
    assert any(len(wire.points) > 4 for wire in layout(circuit).wires if wire.kind == "stream")  # some have to go round
    assert not chips_hit(circuit)
    assert to_svg(layout(make(circuit.nodes[::-1], circuit.edges[::-1]))) == to_svg(layout(circuit))


def test_streams_run_upwards_from_chip_to_chip_in_the_png_as_in_the_svg(tmp_path):
    from PIL import Image

    circuit = make(found_in_training().nodes)
    scene = layout(circuit)
    write_png(scene, tmp_path / "c.png", scale=2)
    image = Image.open(tmp_path / "c.png").convert("RGB")
    boxes = {chip.node.id: chip.box for chip in scene.chips}
    wires = of_class(drawn(circuit), "stream")
    assert len(wires) == 17
    for wire in wires:
        points = along(wire)
        assert all(low[1] > high[1] - 1e-6 for low, high in pairwise(points))
        for name, point, side in ((wire.get("data-source"), points[0], 0), (wire.get("data-target"), points[-1], 1)):
            if box := boxes.get(name):
                assert point == pytest.approx((box.x + box.width / 2, box.y + side * box.height), abs=0.02)
        for x, y in points[10:-10:7]:
            near = [image.getpixel((round(2 * x) + dx, round(2 * y) + dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
            assert min(map(sum, near)) < 3 * 215, (x, y)  # the paper and the bands are lighter


@pytest.mark.parametrize("parallel", [True, False])
def test_in_a_parallel_block_the_mlp_does_not_read_what_attention_writes(parallel: bool):
    value, written, read, later = node("0.attn.v", 1), node("0.attn.resid_delta", 5), node("0.mlp.act_in", 5), node("1.attn.act_in", 5)
    circuit = replace(make([value, written, read, later], [Edge(value.id, written.id, 1.0)]), parallel=parallel)
    joined = {(wire.source, wire.target) for wire in layout(circuit).wires if wire.kind == "stream"}
    assert ((written.id, read.id) in joined) is not parallel
    assert (written.id, later.id) in joined
    assert Circuit.from_json(circuit.to_json()) == circuit
    assert ("parallel" in circuit.to_json()) is parallel


def test_gates_and_ups_are_joined_to_the_neuron_of_their_number():
    read, write = node("0.mlp.act_in", 7), node("0.mlp.resid_delta", 9)
    gate, up, neuron = (node(f"0.mlp.{place}", 3) for place in ("gate", "up", "post_act"))
    other = node("1.mlp.gate", 3)  # whose neuron is not in the circuit
    edges = [Edge(read.id, gate.id, 1.0), Edge(read.id, up.id, -1.0), Edge(neuron.id, write.id, 1.0)]
    scene = layout(make([read, gate, up, neuron, write, other], edges))
    joined = {(wire.source, wire.target) for wire in scene.wires if wire.kind == "stream"}
    assert {(gate.id, neuron.id), (up.id, neuron.id)} <= joined
    assert other.id not in {name for both in joined for name in both}


def test_hundreds_of_streams_share_lanes_and_keep_to_the_page():
    circuit = grid(3, 17, 2000, 256)
    scene = layout(circuit)
    assert len(circuit.nodes) > 400
    assert sum(w.kind == "stream" for w in scene.wires) > 170
    assert scene.width < 1600
    rows = {n.id: n.site.replace("attn.q", "attn.k").replace("attn.v", "attn.k") for n in circuit.nodes} | {"": ""}
    assert all(rows[hit] in (rows[source], rows[target]) for source, target, hit in chips_hit(circuit))  # staggered lines of its own row


def test_tooltips_say_what_a_node_reads_and_writes_and_what_an_edge_weighs():
    tree = drawn(tiny())
    tips = [e.find(f"{SVG}title").text for e in of_class(tree, "node")]
    assert '0.mlp.post_act.300\nmean 0.25\nreads ·in\nwrites ")' in tips
    assert of_class(tree, "edge")[-1].find(f"{SVG}title").text == "0.mlp.act_in.7 to 0.mlp.post_act.300: +1.25"


def test_hostile_tokens_stay_text(tmp_path):
    nodes = [node("0.mlp.act_in", i, [token, token], [token]) for i, token in enumerate(HOSTILE)]
    nodes += [node("0.mlp.post_act", 1), node("</svg><script>", 1)]
    circuit = make(nodes, [Edge(nodes[0].id, "0.mlp.post_act.1", 1.0)], model=HOSTILE[0], task=HOSTILE[3], answers=HOSTILE[:2])
    tree = drawn(circuit)
    assert len(of_class(tree, "node")) == len(nodes)
    assert not list(tree.iter(f"{SVG}script"))
    examples = [Example(token, token, token, 0.9, 0.8, 0.5) for token in HOSTILE]
    html = written(tmp_path, circuit, examples, description=HOSTILE[0])
    assert html.count("<script") == 1  # our own
    assert "&lt;script&gt;alert(1)" in html
    assert "\x00" not in html
    assert 'onload="x' not in html


def test_what_does_not_print_is_shown_as_its_escape():
    assert visible(" in\n\t\x00é") == "·in\\n\\t\\x00é"


@pytest.mark.parametrize(
    "circuit",
    [
        make(),
        make([node("0.attn.q", 5)]),
        make([node("0.mlp.act_in", 1), node("0.mlp.post_act", 2)]),
        make(
            [node("somewhere", 1), node("x.y.z", 10**9)], [Edge("somewhere.1", "x.y.z.1000000000", math.nan), Edge("absent", "gone", 1.0)]
        ),
        make([node("0.mlp.act_in", 1), node("0.mlp.post_act", 2)], [Edge("0.mlp.act_in.1", "0.mlp.post_act.2", 0.0)]),
        make([node("0.mlp.act_in", 1, ["x" * 999])], model="m" * 999),
        grid(12, 1, 60),
        make([node("0.mlp.post_act", 3 * i, ["print"]) for i in range(300)]),
    ],
    ids=["empty", "one node", "no edges", "unknown sites", "zero weight", "endless names", "12 layers", "300 nodes in a row"],
)
def test_odd_circuits_are_drawn_and_reported(tmp_path, circuit, monkeypatch):
    monkeypatch.setattr(drawing, "_MAX_PIXELS", 1e6)
    html = written(tmp_path, circuit)
    assert len(of_class(drawn(circuit), "node")) == len(circuit.nodes)
    is_large = len(circuit.nodes) > LARGE  # the page begins with its core, and holds the picture of all as data
    assert html.count('class="node"') == (CORE if is_large else len(circuit.nodes))
    assert html.count(r"class=\"node\"") == (len(circuit.nodes) if is_large else 0)
    assert min(png_size(tmp_path / "circuit.png")) > 300


def test_a_label_stands_in_place_of_the_tokens_that_a_node_reads():
    circuit = make([node("0.mlp.post_act", i, ["print"]) for i in range(3)])
    first = circuit.nodes[0]
    scene = layout(circuit, labels={first.id: "')@last", "9.x.1": "stray"})
    below = {chip.node.id: [label.text for label in chip.labels] for chip in scene.chips}
    assert "')@last" in below[first.id]
    assert "print" in below[circuit.nodes[1].id]
    assert all("print" in chip.tip for chip in scene.chips)  # the tip keeps what the circuit says
    assert scene.note == ""


def test_a_large_circuit_keeps_its_numbers_and_a_page_width():
    scene = layout(grid(2, 25, 2000))
    assert len(scene.chips) == 400
    assert sum(w.kind == "edge" for w in scene.wires) == 2000
    assert scene.width < 1500
    assert all(str(chip.node.channel) in [label.text for label in chip.labels] for chip in scene.chips)


def test_png_has_the_scene_in_it_at_the_scale_asked(tmp_path):
    from PIL import Image

    scene = layout(tiny())
    for scale in (1, 2):
        write_png(scene, tmp_path / f"{scale}.png", scale)
        assert png_size(tmp_path / f"{scale}.png") == (round(scene.width * scale), round(scene.height * scale))
    colors = {tuple(c) for _, c in Image.open(tmp_path / "2.png").convert("RGB").getcolors(1 << 24)}
    assert any(b > r + 80 for r, _, b in colors)
    assert any(r > b + 80 for r, _, b in colors)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.png", "2.png"]


def test_a_png_of_an_enormous_scene_is_scaled_down(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "_MAX_PIXELS", 1e6)
    write_png(layout(tiny()), tmp_path / "c.png", scale=1000)
    width, height = png_size(tmp_path / "c.png")
    assert 0.99e6 < width * height < 1.01e6


def test_the_report_states_the_finding_and_every_number(tmp_path):
    html = written(tmp_path, tiny(), [Example('print("a b', '")', "')", 0.998, 0.912, 0.487)], description="close a string")
    sentence = re.sub(r"<[^>]+>", "", headline(tiny(), result_of(tiny()))).replace("&nbsp;", " ")
    assert sentence.startswith("3 nodes and 2 edges of python-tiny-sparse choose between &quot;) and &#x27;): 0.131 nats, 96.9 % right.")
    assert sentence.endswith("Without them the model is at chance.")
    for text in ("0.012", "0.131", "0.690", "0.692", "99.8&nbsp;%", "51.7&nbsp;%", "50.3&nbsp;%", "target 0.150", "chance 0.693", "257"):
        assert text in html, text
    for text in ("seed 11", "1 min 28 s", "+1.250", "-0.500", "91.2&nbsp;%", "48.7&nbsp;%", "close a string", "1.5 and -0.2"):
        assert text in html, text
    assert "Not sufficient" not in html
    assert html.count("Not measured: there is no dense model beside the one that was pruned.") == 2


def test_a_loss_below_chance_is_said_with_its_number():
    losses = {"full": 0.01, "circuit": 0.11, "without_circuit": 0.679, "random": 0.69}
    sentence = headline(tiny(), result_of(tiny(), loss=losses)).replace("&nbsp;", " ")
    assert sentence.endswith("Without them the model is near chance, 0.679 nats.")


def test_the_card_on_conditions_names_the_adversary():
    validation = {"conditions": {"zero": {"loss": 0.1, "accuracy": 0.9, "interval": [0.05, 0.15]}}, "adversarial": {"loss": 3.25}}
    claims = {claim[1]: claim[2] for claim in condition_claim(result_of(tiny()) | {"validation": validation})}
    assert "where an adversary sets them: 3.250 nats" in claims["Holds under every condition"]
    (claim,) = condition_claim(result_of(tiny()) | {"validation": validation | {"adversarial": None}})
    assert "adversary" not in claim[2]


def test_a_missed_target_is_said_first():
    losses = {"full": 0.01, "circuit": 0.21, "without_circuit": 0.4, "random": 0.69}
    right = {"full": 0.99, "circuit": 0.91, "without_circuit": 0.8, "random": 0.5}
    sentence = headline(tiny(), result_of(tiny(), meets_target=False, loss=losses, accuracy=right)).replace("&nbsp;", " ")
    assert sentence.startswith("Target not met.")
    assert "reaches 0.210 nats, 91 % right; the target is 0.150 nats" in sentence
    assert "Without them the model is still 80 % right, above chance." in sentence
    assert "at chance" not in sentence


def test_a_circuit_whose_answers_vary_is_drawn_and_reported_without_them(tmp_path):
    circuit = replace(tiny(), task="class_init", answers=(), answer_ids=())
    labels = [label.text for label in layout(circuit).labels]
    assert {"first answer", "or", "second answer"} <= set(labels)
    page = written(tmp_path, circuit, [Example("self.name =", " name", " size", 0.9, 0.8, 0.5)])
    assert headline(circuit, result_of(circuit)).startswith(
        "3 nodes and 2 edges of python-tiny-sparse choose between the two answers of each"
    )
    assert "every pair has its own answers" in page
    assert "·</span>name</mark>" in page


def test_a_circuit_the_model_does_not_need_is_said_so(tmp_path):
    losses = {"full": 0.01, "circuit": 0.1, "without_circuit": 0.02, "random": 0.09}
    html = written(tmp_path, tiny(), loss=losses)
    assert "The model does not need them" in html
    assert "Not necessary" in html
    assert "Not better than random" in html


def bridge_of(**changes) -> dict:
    """What a bridged model's faithfulness.json and its circuit's measurements say, for two layers."""
    return {
        "dense_loss": 2.19,
        "sparse_loss": 2.66,
        "bigram_loss": 4.19,
        "kl_dense_to_sparse": 0.65,
        "agreement": 0.62,
        "nmse": {"encoder": [0.11, 0.12, 0.13, 0.14, 0.15], "decoder": [0.21, 0.22, 0.23, 0.24, 0.25], "decoder_by_channel": [0.31] * 5},
        "path_kl": {"to_sparse": [0.511, 0.42, 0.33, 0.24, 0.151], "to_dense": [0.61, 0.52, 0.43, 0.34, 0.252]},
        "path_loss": {"to_sparse": [2.7, 2.6, 2.5, 2.4, 2.3], "to_dense": [2.8, 2.7, 2.6, 2.5, 2.4]},
        "recovered": {"sparse": 0.765, "to_sparse": [0.745, 0.795, 0.845, 0.895, 0.945], "to_dense": [0.695] * 5, "mean": 0.771},
        "prompts": {"agreement": 0.968, "loss": {"dense": 0.016, "sparse": 0.155}, "accuracy": {"dense": 0.995, "sparse": 0.951}},
        "circuit": {"loss": [0.64, 0.24, 0.13, 0.12, 0.118], "raw_loss": [1] * 5, "accuracy": [0.612, 0.93, 0.94, 0.95, 0.961]},
    } | changes


def words(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", html).replace("&nbsp;", " ")


def plots(html: str) -> list[ElementTree.Element]:
    figures = re.findall(r'<figure class="card plot">.*?(<svg.*?</svg>)', html.replace("&nbsp;", " "), flags=re.S)
    return [ElementTree.fromstring(svg) for svg in figures]


def test_the_bridge_section_says_how_much_of_the_dense_model_is_there(tmp_path):
    html = written(tmp_path, tiny(), bridge=bridge_of())
    text = re.sub(r"\s+", " ", words(html))
    assert "The sparse model recovers 76.5 % of the gain of python-tiny-sparse over a bigram model; the weakest hybrid pass 69.5 %" in text
    assert "(sparse, then dense; layer 0, before attention)" in text
    assert "both models prefer the same answer 96.8 % of the time" in text
    assert "the task loss is 0.118 to 0.240 nats; at 3 of 4 crossings" in text
    assert "Without them the sparse model is at chance" in text
    for number in ("62 %", "2.190", "2.660", "4.190", "0.650", "0.016", "99.5 %", "0.155", "95.1 %", "77.1 %"):
        assert number in text, number


def test_the_bridge_section_says_which_layers_are_sparse(tmp_path):
    """The second of two: no passes cross before the layer, and nodes may come before its first crossing."""

    def beside(values: list) -> list:
        return [None, None, *values[2:]]

    bridge = bridge_of(sparse_layers=[1, 1])
    for name in ("nmse", "path_kl", "path_loss", "circuit"):
        bridge[name] = {key: beside(values) for key, values in bridge[name].items()}
    bridge["recovered"] |= {key: beside(bridge["recovered"][key]) for key in ("to_sparse", "to_dense")}
    text = re.sub(r"\s+", " ", words(written(tmp_path, tiny(), bridge=bridge)))
    assert "layer 1 is sparse, the others the dense model" in text
    assert "at 3 of 3 crossings" in text
    assert "The first crossing is not counted" not in text
    assert "None" not in text


def test_the_bridge_table_has_every_number_of_every_crossing(tmp_path):
    html = written(tmp_path, tiny(), bridge=bridge_of())
    (table,) = re.findall(r'<div class="card scroll crossings"[^>]*>(.*?)</div>', html, flags=re.S)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table.replace("&nbsp;", " "))]
    assert rows[0] == ["crossing", "NMSE of the bridge", "dense, then sparse", "sparse, then dense", "circuit, then dense"]
    assert rows[1] == ["encoder", "decoder", "by channel", "KL", "recovered", "KL", "recovered", "nats", "right"]
    assert rows[2] == ["layer 0, before attention", "0.110", "0.210", "0.310", "0.511", "74.5 %", "0.610", "69.5 %", "0.640", "61.2 %"]
    assert rows[5][0] == "layer 1, before the MLP"
    assert rows[6] == ["before the final norm", "0.150", "0.250", "0.310", "0.151", "94.5 %", "0.252", "69.5 %", "0.118", "96.1 %"]
    assert len(rows) == 7


def test_the_bridge_plots_have_a_point_for_every_crossing_at_its_height(tmp_path):
    shares, circuit = plots(written(tmp_path, tiny(), bridge=bridge_of()))
    heights = [float(e.get("cy")) for e in shares.iter("circle")]
    assert heights == sorted(heights, reverse=True)
    assert len({*heights}) == 5
    squares = [e for e in shares.iter("rect") if e.get("class") == "point"]
    assert len({e.get("y") for e in squares}) == 1
    steps = [b - a for a, b in pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 4, abs=0.11)  # equal steps of the values
    assert [e.find("title").text for e in shares.iter("circle")][1] == "layer 0, before the MLP: dense, then sparse 79.5 %"
    level = float(re.match(r"M\d+ ([\d.]+)H", shares.find("path[@class='level own']").get("d"))[1])
    assert heights[1] < level < heights[0]
    target, chance = (
        float(re.match(r"M\d+ ([\d.]+)H", circuit.find(f"path[@class='level {k}']").get("d"))[1]) for k in ("target", "chance")
    )
    losses = [float(e.get("cy")) for e in circuit.iter("circle")]
    assert chance < losses[0] < losses[1] < target < losses[2] < losses[4]
    assert "from 74.5 % to 94.5 %" in shares.get("aria-label")
    assert "0.118 to 0.640" in circuit.get("aria-label")


@pytest.mark.parametrize("layers", [1, 12, 48])
def test_bridge_plots_of_deep_models_keep_their_points_apart_and_inside(tmp_path, layers):
    sites = 2 * layers + 1
    recovered = {"sparse": -0.1, "to_sparse": [-3.0, *[0.5] * (sites - 1)], "to_dense": [1.02] * sites, "mean": 0.4}
    html = written(tmp_path, tiny(), bridge={"recovered": recovered})
    (tree,) = plots(html)
    _, _, width, height = map(float, tree.get("viewBox").split())
    found = [(float(e.get("cx")), float(e.get("cy"))) for e in tree.iter("circle")]
    assert all(b[0] - a[0] > 10 for a, b in pairwise(found))
    assert all(0 < x < width and 0 < y < height for x, y in found)
    assert [e.get("class") for e in tree.iter("circle")][:2] == ["point beyond", "point"]
    names = sorted((float(e.get("x")), e.text) for e in tree.iter("text") if e.get("text-anchor") == "middle")
    assert names[0][1] in ("layer 0", "0")
    assert names[-1][1] == "end"
    assert all(b[0] - a[0] > 20 for a, b in pairwise(names))
    assert "recovers nothing of the gain" in html
    assert "the weakest hybrid pass recovers nothing" in html


def test_results_from_before_the_paths_were_scored_are_still_reported(tmp_path):
    kept = ("dense_loss", "sparse_loss", "kl_dense_to_sparse", "agreement", "path_kl")
    html = written(tmp_path, tiny(), bridge={key: value for key, value in bridge_of().items() if key in kept})
    for text in (
        "sparse model",
        "62&nbsp;%",
        "2.190",
        "2.660",
        "0.650",
        "0.511",
        "0.252",
        "layer 1, before the MLP",
        "before the final norm",
    ):
        assert text in html, text
    assert not plots(html)
    assert "NMSE" not in html
    assert "recovered is not known: the version that made this result did not record why" in html


@pytest.mark.parametrize("absent", ["recovered", "circuit", "prompts", "nmse", "agreement"])
def test_what_a_bridge_result_lacks_is_left_out(tmp_path, absent):
    html = written(tmp_path, tiny(), bridge=bridge_of(**{absent: None}) if absent != "agreement" else {"circuit": bridge_of()["circuit"]})
    assert "Faithfulness to the dense model" in html
    assert "None" not in html
    assert ("over a bigram model; the weakest" in html) == (absent not in ("recovered", "agreement"))
    assert len(plots(html)) == (1 if absent in ("recovered", "circuit", "agreement") else 2)


def test_a_hostile_model_name_stays_text_in_the_bridge_section(tmp_path):
    html = written(tmp_path, make(model="a</b><script>&"), bridge=bridge_of())
    assert html.count("<script") == 1
    assert "the gain of a&lt;/b&gt;&lt;script&gt;&amp; over a bigram model" in html


def validation_of(circuit: Circuit, **changes) -> dict:
    """What validation says of the smallest circuit."""
    names = ("full", "circuit", "without_circuit", "random", "attribution", "uncalibrated", "mean", "zero", "resample", "binarised")
    spread = {"values": [-1.25, -0.5, 0.0, 0.0, 0.25, 1.0, 3.75], "nonzero": 0.375}
    return {
        "necessity": 0.678,
        "attribution": {"loss": 0.611, "accuracy": 0.625, "nodes": 3, "edges": 1},
        "uncalibrated": 0.222,
        "ablation": {"mean": 0.1312, "zero": 0.333, "resample": 0.444},
        "binarised": {"loss": 0.155, "accuracy": 0.95, "nodes": {n.id: 0.1312 + 0.03 * i for i, n in enumerate(circuit.nodes)}},
        "interval": {name: [0.101 + 0.01 * i, 0.161 + 0.01 * i] for i, name in enumerate(names)},
        "edge_effects": {
            "edges": [[e.source, e.target, 0.25 * i - 0.01] for i, e in enumerate(circuit.edges)],
            "of": len(circuit.edges),
            "raising": 0.5,
            "pairs": 257,
        },
        "activations": {"percentiles": [1, 10, 25, 50, 75, 90, 99], "tokens": 16384, "nodes": {circuit.nodes[0].id: spread}},
        "seeds": None,
    } | changes


CURVE = [
    {"target": 0.05, "nodes": 60, "edges": 80, "loss": 0.045, "accuracy": 0.99, "met": True},
    {"target": 0.15, "nodes": 30, "edges": 40, "loss": 0.131, "accuracy": 0.97, "met": True},
    {"target": 0.3, "nodes": 16, "edges": 20, "loss": 0.335, "accuracy": 0.9, "met": False},
]


def test_validation_is_left_out_where_there_is_none(tmp_path):
    html = written(tmp_path, tiny())
    assert 'id="validation"' not in html
    assert "loss if removed" not in re.sub(r"<dl.*?</dl>", "", html, flags=re.S).split('id="edges"')[1].split('id="nodes"')[0]
    assert '<th scope="col">values on text' not in html
    assert "3 nodes; their values on text were not measured" in html


def test_losses_have_their_intervals_as_whiskers_and_as_numbers(tmp_path):
    circuit = tiny()
    html = written(tmp_path, circuit, validation=validation_of(circuit))
    text = words(html)
    losses = html.split('id="losses"')[1].split("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>.*?<b style="left:([\d.]+)%;width:([\d.]+)%"></b>', losses)
    assert [row[0] for row in rows] == [
        "Full model",
        "Circuit alone",
        "Without the circuit",
        "Same number of random nodes",
        "Top 3 nodes by attribution",
    ]
    top = 1.08 * math.log(2)
    assert [float(row[1]) for row in rows] == pytest.approx([100 * (0.101 + 0.01 * i) / top for i in range(5)], abs=0.06)
    assert {row[2] for row in rows} == {f"{100 * 0.06 / top:.1f}"}
    assert "0.111&ndash;0.171" in losses
    assert "0.611" in losses
    assert "loss: 0.111 to 0.171 nats; only a part of it meets the target of 0.150" in text


def test_the_circuit_under_other_conditions(tmp_path):
    circuit = tiny()
    html = written(tmp_path, circuit, validation=validation_of(circuit), ablation="zero")
    table = html.split('id="validation"')[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>.*?<td class="number">([\d.]+)</td>', table)
    assert rows == [
        ("<strong>All other nodes at zero</strong> (as in the search)", "0.333"),
        ("All other nodes at their means", "0.131"),
        ("Everything else resampled", "0.444"),
        ("Every node binarised", "0.155"),
        ("Without calibration", "0.222"),
    ]
    text = re.sub(r"\s+", " ", words(html))
    assert "Binarised one at a time, 1 of 3 nodes cost at most 0.01 nats." in text
    assert "The others: 0.mlp.resid_delta.9 +0.060, 0.mlp.post_act.300 +0.030." in text
    assert "Removing a single edge raises the loss by 0.001 nats or more for 1 of 2 edges." in text


def test_edges_stand_by_what_they_cost_and_nodes_with_their_values(tmp_path):
    circuit = tiny()  # the edge with the larger weight costs nothing
    html = written(tmp_path, circuit, validation=validation_of(circuit))
    edges = re.findall(r"<tr>(.*?)</tr>", html.split('id="edges"')[1].split("</table>")[0])[1:]
    cells = [[words(cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in edges]
    assert [(row[0], row[4], row[5]) for row in cells] == [
        ("0.mlp.post_act.300", "-0.500", "+0.240"),
        ("0.mlp.act_in.7", "+1.250", "-0.010"),
    ]
    nodes = re.findall(r"<tr>(.*?)</tr>", html.split('id="nodes"')[1].split("</table>")[0])
    (svg,) = re.findall(r"<svg.*?</svg>", nodes[1])
    tree = ElementTree.fromstring(svg)
    assert tree.get("aria-label") == "percentiles 1: -1.25, 10: -0.5, 25: 0, 50: 0, 75: 0.25, 90: 1, 99: 3.75"
    most, middle = tree.iter("rect")
    assert (float(most.get("x")), float(most.get("width"))) == pytest.approx((15, 30))  # -0.5 to 1 of -1.25 to 3.75
    assert (float(middle.get("x")), float(middle.get("width"))) == pytest.approx((25, 5))
    assert "37.5&nbsp;%" in nodes[1]
    assert "&ndash;" in nodes[2]  # not measured


def test_a_node_that_never_changes_is_shown_in_words(tmp_path):
    circuit, still = tiny(), {"values": [0.0] * 7, "nonzero": 0.001}
    found = validation_of(circuit)
    found["activations"]["nodes"] = {circuit.nodes[0].id: still}
    assert "nearly always 0<" in written(tmp_path, circuit, validation=found)


def test_the_curve_has_a_point_for_every_target_and_a_hollow_one_where_it_was_missed(tmp_path):
    html = written(tmp_path, tiny(), curve=CURVE)
    (tree,) = plots(html)
    points = [(float(e.get("cx")), float(e.get("cy")), e.get("class"), float(e.get("r"))) for e in tree.iter("circle")]
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)  # 20, 40, 80: even in logs
    assert [p[1] for p in points] == sorted(p[1] for p in points)
    assert [p[2] for p in points] == ["point beyond", "point", "point"]
    assert points[1][3] > points[0][3]  # the job's own target
    assert "target 0.150: 40 edges, 30 nodes, 0.131 nats, 97 % right" in [e.find("title").text for e in tree.iter("circle")]
    _, _, width, height = map(float, tree.get("viewBox").split())
    assert all(0 < x < width and 0 < y < height for x, y, *_ in points)
    assert "0.300 | 16 | 20 | 0.335 | 90 % | no" in re.sub(r"(\s*\|\s*)+", " | ", re.sub(r"<[^>]+>", "|", html).replace("&nbsp;", " "))
    assert not plots(written(tmp_path, tiny(), curve=CURVE[:1]))


def test_every_measured_edge_has_a_bar_by_its_effect(tmp_path):
    circuit = tiny()
    (tree,) = plots(written(tmp_path, circuit, validation=validation_of(circuit)))
    first, second = tree.iter("rect")
    assert [e.get("class") for e in (first, second)] == ["helps", "harms"]
    assert float(first.get("height")) > 10 * float(second.get("height"))
    assert float(first.get("y")) + float(first.get("height")) == pytest.approx(float(second.get("y")), abs=0.6)  # they meet at zero
    assert first.find("title").text == "0.mlp.post_act.300 to 0.mlp.resid_delta.9: +0.240"


def test_two_thousand_effects_fit_the_plot():
    tree = ElementTree.fromstring(effects_plot([[f"0.mlp.act_in.{i}", "0.mlp.post_act.1", math.sin(i)] for i in range(2000)]))
    bars = [(float(e.get("x")), float(e.get("width"))) for e in tree.iter("rect")]
    assert len(bars) == 2000
    assert all(x >= 0 and width > 0 and x + width <= 420 for x, width in bars)
    assert not list(tree.iter("title"))


def test_other_seeds_are_reported(tmp_path):
    circuit = tiny()
    rows = [{"seed": s, "nodes": 3 + s, "edges": 2 + s, "loss": 0.13, "met": s == 11} for s in (11, 12)]
    seeds = {"circuits": rows, "node_overlap": 0.6, "edge_overlap": 0.25, "shared": [circuit.nodes[0].id]}
    text = re.sub(r"\s+", " ", words(written(tmp_path, circuit, validation=validation_of(circuit, seeds=seeds))))
    assert "from 2 seeds. Mean overlap of two circuits (intersection over union): 60 % of nodes, 25 % of edges." in text
    assert "1 node is in every circuit" in text
    assert "12 15 14 0.130 no" in text


@pytest.mark.parametrize("absent", ["ablation", "binarised", "interval", "edge_effects", "activations", "attribution", "uncalibrated"])
def test_what_validation_lacks_is_left_out(tmp_path, absent):
    circuit = tiny()
    html = written(tmp_path, circuit, validation=validation_of(circuit, **{absent: None}), curve=CURVE)
    assert 'id="validation"' in html
    assert "None" not in html


def test_why_a_target_was_missed_is_said_and_stays_text(tmp_path):
    html = written(tmp_path, tiny(), meets_target=False, why="best loss <b>0.61</b> nats")
    assert "Why: best loss &lt;b&gt;0.61&lt;/b&gt; nats." in html
    assert "Why:" not in written(tmp_path, tiny(), why=None)


def test_a_circuit_of_a_model_that_fails_is_not_called_necessary(tmp_path):
    losses = result_of(tiny())["loss"] | {"full": 0.6936, "without_circuit": 0.6931}
    html = written(tmp_path, tiny(), loss=losses, meets_target=False)
    assert "<b>Not necessary: the full model fails, too</b>" in html
    assert "<b>Necessary</b>" not in html


@pytest.mark.parametrize(("loss", "claim"), [(0.12, "Holds under every condition"), (0.98, "Not under every condition")])
def test_the_worst_condition_stands_on_a_card_and_all_of_them_in_the_table(tmp_path, loss, claim):
    found = {name: {"loss": 0.1, "accuracy": 0.99, "interval": [0.09, 0.11]} for name in CONDITION_WORDS}
    found["other"] = {"loss": loss, "accuracy": 0.034, "interval": [loss - 0.01, loss + 0.01]}
    circuit = tiny()
    html = written(tmp_path, circuit, validation=validation_of(circuit, conditions=found))
    cards = html.split('class="verdicts"')[1].split("</ul>")[0]
    assert re.findall(r"<b>(.*?)</b>", cards)[:2] == ["Sufficient", claim]
    assert f"have the values of a prompt with the other answer (worst of 5): {loss:.3f} nats, 3.4&nbsp;% right" in cards
    assert html.count("Without calibration, ") == 4
    assert claim not in written(tmp_path, circuit, validation=validation_of(circuit))


def test_what_circuit_and_model_answer_on_shifted_prompts_is_said(tmp_path):
    found = {"prompts": 256, "same_answer": 0.742, "interval": [0.7, 0.78], "accuracy": {"full": 0.98, "circuit": 0.758}}
    html = written(tmp_path, tiny(), validation=validation_of(tiny(), shifted=found))
    assert "prefer the same answer on 74.2&nbsp;% (70&nbsp;% to 78&nbsp;%); the circuit is right on 75.8&nbsp;%, the full model on" in html
    assert "nats there" not in html, "as in results of earlier versions"
    found["conditions"] = {name: {"loss": number / 10} for number, name in enumerate(CONDITION_WORDS)}
    html = written(tmp_path, tiny(), validation=validation_of(tiny(), shifted=found))
    assert f"Without calibration, where other nodes {[*CONDITION_WORDS.values()][-1]}: 0.400 nats there." in html


def test_nodes_that_have_another_role_are_named(tmp_path):
    nodes = {"0.mlp.act_in.1": [0.02, 0.99], "0.mlp.post_act.2": [0.9, 0.2], "1.attn.q.3": [None, None]}
    found = {"pairs": 9, "nodes": nodes, "changed": ["0.mlp.post_act.2"]}
    circuit = tiny()
    html = written(tmp_path, circuit, validation=validation_of(circuit, roles=found | {"heads": {"0.attn.1": 0.25, "1.attn.0": 0.5}}))
    assert "median unexplained variance of a node&rsquo;s value is 0.90; 1 of 2 nodes has another role (above 0.5): " in html
    assert "differs most: distance 0.50 of 1." in html
    for nothing in ({"heads": None, "nodes": None, "pairs": 9, "changed": []}, None):
        assert "another role" not in written(tmp_path, circuit, validation=validation_of(circuit, roles=nothing))


def test_steering_is_reported_where_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("extractor.report.page.steering_section", lambda result: f"<p>steered {result['steering']}</p>")
    assert "<p>steered 7</p>" in written(tmp_path, tiny(), steering=7)


def test_the_page_has_the_same_sections_and_claims_whatever_could_be_measured(tmp_path):
    full = written(tmp_path, tiny(), bridge=bridge_of())
    gone = {"bridge": "no bridges", "steering": "no <dense> model"}
    bare = written(tmp_path, tiny(), loss={}, accuracy={}, not_measured=gone, meets_target=False, seconds=None)
    for name in ("picture", "losses", "edges", "nodes", "bridge", "steering", "reading"):
        assert f'id="{name}"' in full, name
        assert f'id="{name}"' in bare, name
    claims = [re.findall(r"<b>(.*?)</b>", html.split('class="verdicts"')[1].split("</ul>")[0]) for html in (full, bare)]
    assert claims[0] == ["Sufficient", "Necessary", "Better than random"]
    assert claims[1] == ["Not sufficient", "Necessity not measured", "Not compared with random"]
    assert "Not measured: no bridges." in bare
    assert "Not measured: no &lt;dense&gt; model." in bare
    assert "above the target" not in bare
    assert "None" not in bare


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("network", ["without_circuit", "random", "full"])
def test_a_claim_without_a_number_is_not_made(tmp_path, network, value):
    losses = result_of(tiny())["loss"] | {network: value}
    html = written(tmp_path, tiny(), loss=losses)
    missing = {"without_circuit": "Necessity not measured", "random": "Not compared with random"}
    for name, claim in missing.items():
        assert (claim in html) == (name == network)
    assert "above the target" not in html


def test_a_dense_model_that_gains_nothing_over_bigrams_is_said_to_with_both_losses(tmp_path):
    html = written(tmp_path, tiny(), bridge=bridge_of(recovered=None, dense_loss=0.02, bigram_loss=0.01))
    assert "the dense model (0.020 nats per token) is no better than a bigram model (0.010); choose another text" in html


def test_nodes_that_cannot_be_steered_are_counted():
    from extractor.report.steering import _nodes as table

    tried = {"tried": [["0.mlp.post_act.1", 0.5, "read"]]}
    assert "best 1 of 1 nodes. 2 nodes of the circuit cannot be edited" in table(tried, {"circuit": {"nodes": 3}})
    assert "cannot be edited" not in table(tried, {"circuit": {"nodes": 1}})


def everything(width: int) -> Circuit:
    """A circuit of all weights between `width` nodes at each of two neighbouring sites."""
    low, high = ([node(site, c) for c in range(width)] for site in ("0.mlp.act_in", "0.mlp.post_act"))
    return make([*low, *high], [Edge(a.id, b.id, math.sin(7 * i + k)) for i, a in enumerate(low) for k, b in enumerate(high)])


def test_a_huge_circuit_shows_its_largest_weights_in_bounded_time_and_size_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "MAX_EDGES", 200)
    monkeypatch.setattr(part, "MAX_NODES", 60)
    circuit = everything(80)
    html = written(tmp_path, circuit)
    assert "160 nodes, 6400 edges; shown: the 200 edges of largest weight, 60 nodes" in (tmp_path / "circuit.svg").read_text()
    assert "Of this circuit is shown: the 200 edges of largest weight, 60 nodes." in html
    assert "160 nodes; the 60 of the picture are listed" in html
    assert html.split("<h1>")[1].startswith("160 nodes and 6,400 edges")
    tree = drawn(circuit)
    assert len(of_class(tree, "edge")) <= 200
    assert len(of_class(tree, "node")) == 60
    assert len(html) < 400_000
    assert part.shown_part(tiny()) == tiny()


def test_a_circuit_of_many_nodes_and_no_edges_shows_some_of_its_nodes(monkeypatch):
    monkeypatch.setattr(part, "MAX_NODES", 7)
    few = part.shown_part(make([node("0.mlp.act_in", c) for c in range(30)]))
    assert [n.channel for n in few.nodes] == list(range(7))
    odd = make([node("0.mlp.act_in", c) for c in range(30)], [Edge("nowhere", "0.mlp.act_in.3", math.nan)])
    assert len(part.shown_part(odd).nodes) == 7


def test_writing_a_report_can_be_stopped_between_its_parts(tmp_path):
    class Enough(Exception):
        pass

    begun = []

    def stop() -> None:
        begun.append(len(begun))
        if len(begun) == 3:
            raise Enough

    with pytest.raises(Enough):
        write_report(tmp_path, tiny(), result_of(tiny()), [], stop)
    assert [path.name for path in tmp_path.iterdir()] == ["circuit.svg"], "in the midst of the PNG"


def test_the_report_loads_nothing_from_anywhere(tmp_path):
    circuit = tiny()
    found = {"bridge": bridge_of(), "validation": validation_of(circuit), "curve": CURVE}
    html = written(tmp_path, circuit, [Example("x", "y", "z", 0.5, 0.5, 0.5)], **found)
    assert set(re.findall(r"https?://[^\"' <]+", html)) == {"http://www.w3.org/2000/svg"}
    assert sorted(set(re.findall(r'(?:src|href)="([^#"][^"]*)"', html))) == ["circuit.json", "circuit.png", "circuit.svg", "result.json"]
    assert not re.search(r"<link|<script\s|<iframe|@import|url\(", html)
    assert "$" not in re.sub(r"<script>.*?</script>|<style>.*?</style>", "", html, flags=re.S)


def test_numbers_that_are_missing_do_not_stop_the_report(tmp_path):
    html = written(tmp_path, tiny(), loss={"circuit": math.nan}, accuracy={}, meets_target=False, seconds={})
    assert "&ndash;" in html
    assert "nan" not in re.sub(r"<script>.*?</script>", "", html, flags=re.S)


def test_nodes_with_another_role_are_outlined_and_say_so(tmp_path):
    circuit = grid(2, 4, 20)
    changed = [circuit.nodes[0].id, circuit.nodes[3].id]
    page = written(tmp_path, circuit, validation={"roles": {"pairs": 2, "nodes": {}, "heads": {}, "changed": changed}})
    assert page.count("another role than in the full model</title>") == 2
    assert "outlined: another role than in the full model" in page
    assert "another role" not in to_svg(layout(circuit))


def test_the_controls_are_shown_with_their_numbers(tmp_path):
    found = {
        "null_searches": {"paper": {"task": SEARCH, "inverted": SEARCH | {"met": False, "loss": 0.693}}},
        "random_circuits": {
            "draws": 200,
            "sufficiency": {"p": 0.005, "loss": 0.1, "best": 0.6},
            "necessity": {"p": 0.01, "loss": 0.69, "best": 0.2},
            "minimality": {"p": 0.005, "edges": 3, "needed": 2},
        },
        "adversarial": {"steps": 20, "before": 0.1, "loss": 3.01, "accuracy": 0.5},
        "interchange": [[0.0, 0.1], [1.0, 0.02]],
        "faithfulness": {"paper": {"edge": {"cpr": {"linear": 1.9, "log": 1.52}, "cmd": {"linear": 0.9, "log": 0.64}}}},
    }
    page = text_of(written(tmp_path, grid(2, 4, 20), validation=found))
    assert "The right answers exchanged paper 3 2 0.693 no circuit" in page
    assert "p = 0.005 that one alone is as good" in page
    assert "2 of 3 edges cost more when removed than a random edge does" in page
    assert "the circuit has 3.010 nats after 20 steps and is right on 50" in page
    assert "edges CPR 1.52, CMD 0.64" in page


SEARCH = {"nodes": 3, "edges": 2, "loss": 0.05, "met": True}
STANDARDS = {
    name: {
        "nodes": nodes,
        "edges": edges,
        "loss": 0.1,
        "met": True,
        "found": True,
        "edges_of_model": 23592,
        "conditions": {"other": {"loss": worst, "accuracy": 0.5}},
    }
    for name, nodes, edges, worst in (("paper", 14, 10, 3.2), ("robust", 45, 52, 0.14))
}


def test_both_standards_stand_beside_each_other(tmp_path):
    page = text_of(written(tmp_path, grid(2, 4, 20), standard="robust", standards=STANDARDS))
    assert "paper 14 10 0.100 yes 3.200 (other) 50" in page
    assert "robust (shown here) 45 52 0.100 yes 0.140 (other) 50" in page
    assert "The model has 23,592 edges" in page
    assert "circuit alone, worst of 5 ablations, without calibration" in page


def text_of(page: str) -> str:
    """The text of a page, white space collapsed."""
    import re
    from html import unescape

    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


@pytest.mark.parametrize(
    ("cut", "claim"),
    [(0.69, "Necessary"), (0.4, "Nodes necessary, edges only partly"), (0.02, "Only its nodes are necessary")],
)
def test_necessity_by_edges_stands_beside_that_by_nodes_and_the_lower_one_decides(tmp_path, cut: float, claim: str):
    removed = {"nothing": 0.001, "edges": cut, "random_nodes": 0.01}
    html = written(tmp_path, tiny(), validation=validation_of(tiny(), removed=removed))
    cards = html.split('class="verdicts"')[1].split("</ul>")[0]
    assert f"<b>{claim}</b>" in cards
    assert f"all nodes kept, its edges cut: {cut:.3f} nats; its nodes ablated: " in cards
    assert "full model, calibrated 0.001 nats" in cards or "full model, calibrated 0.001" in cards
    sentence = headline(tiny(), result_of(tiny()) | {"validation": {"removed": removed}})
    assert "Without these nodes the" in sentence
    assert ("without these edges alone, all nodes kept, it has" in sentence) == (cut < 0.6)
