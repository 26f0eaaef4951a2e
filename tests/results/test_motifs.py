"""Motifs: hand-made circuits with known counts, every subgraph by brute force, shuffles that keep the degrees, planted motifs."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from motif_circuits import SMALL, WIDTH, Ends, circuit_of, folder_of, planted, random_edges
from worlds import ROOT, python

import extractor
from extractor.errors import BrokenArtifact, UsageError
from extractor.results import motif_counts
from extractor.results import motifs as counting
from extractor.results.motif_counts import counts
from extractor.results.motif_forms import MEETS, RESIDUAL, SHAPES, Motif, motif_of
from extractor.results.motif_graph import MotifGraph, head_width
from extractor.results.motif_shuffles import PooledEdges, moved, shuffled
from extractor.results.result import Result, load
from worker.cli import group

motifs = partial(counting.motifs, signs="each")

FOLDER = ROOT / "tests" / "frozen" / "result"  # of the last release


def graph_of(edges: Ends, alone: Sequence[str] = (), positions: Sequence[str] = ()) -> MotifGraph:
    return MotifGraph.of(circuit_of(edges, alone, positions), WIDTH, Path("circuit.json"))


def total(graph: MotifGraph) -> Counter[Motif]:
    found: Counter[Motif] = Counter()
    for motif, number, _ in graph.instances():
        found[motif] += number
    return found


def test_a_small_circuit_has_the_counts_that_one_counts_by_hand():
    graph = graph_of(SMALL, alone=["1.attn.act_in.3", "0.attn.act_in.3", "1.attn.act_in.4"])
    assert sorted(graph.links) == [
        ("0.attn.q.1", "0.attn.k.1", MEETS),
        ("0.attn.resid_delta.3", "0.mlp.act_in.3", RESIDUAL),
        ("0.attn.resid_delta.3", "1.attn.act_in.3", RESIDUAL),
    ], "every later read of the channel, and no earlier one"
    assert {str(motif): number for motif, number in total(graph).items()} == {
        "triangle: attn.act_in -> attn.q (+) ~ attn.k (-); one head": 1,
        "chain: attn.act_in -> attn.q (+) ~ attn.k; one head": 1,
        "chain: attn.act_in -> attn.k (-) ~ attn.q; one head": 1,
        "fan-out: attn.act_in -> attn.q (+), attn.v (+); one head": 1,
        "fan-out: attn.act_in -> attn.k (-), attn.v (+); one head": 1,
        "chain: attn.act_in -> attn.v (+) -> attn.resid_delta (+)": 1,
        "fan-in: attn.v, attn.v -> attn.resid_delta (+ -); two heads": 1,
        "chain: attn.v -> attn.resid_delta (+) -> mlp.act_in (residual)": 1,
        "chain: attn.v -> attn.resid_delta (-) -> mlp.act_in (residual)": 1,
        "chain: attn.v -> attn.resid_delta (+) -> attn.act_in (residual)": 1,
        "chain: attn.v -> attn.resid_delta (-) -> attn.act_in (residual)": 1,
        "fan-out: attn.resid_delta -> attn.act_in (residual), mlp.act_in (residual)": 1,
        "chain: attn.resid_delta -> mlp.act_in (residual) -> mlp.post_act (-)": 1,
    }


def test_motifs_of_four_nodes_are_bi_fans_and_diamonds():
    edges = [(f"0.mlp.act_in.{i}", f"0.mlp.post_act.{j}", 1.0 if i else -1.0) for i in range(3) for j in range(2)]
    edges += [("0.mlp.post_act.0", "0.mlp.resid_delta.7", 1.0), ("0.mlp.post_act.1", "0.mlp.resid_delta.7", -1.0)]
    found = {str(motif): number for motif, number in total(graph_of(edges)).items() if len(motif.kinds) == 4}
    assert found == {
        "bi-fan: mlp.act_in, mlp.act_in -> mlp.post_act (+ +), mlp.post_act (+ +)": 1,
        "bi-fan: mlp.act_in, mlp.act_in -> mlp.post_act (+ -), mlp.post_act (+ -)": 2,
        "diamond: mlp.act_in -> mlp.post_act (+), mlp.post_act (+) -> mlp.resid_delta (+ -)": 2,
        "diamond: mlp.act_in -> mlp.post_act (-), mlp.post_act (-) -> mlp.resid_delta (+ -)": 1,
    }
    balanced = Counter(str(motif.without_signs()).rpartition("; ")[2] for motif in total(graph_of(edges)) if len(motif.kinds) == 4)
    assert balanced == {"balanced": 2, "unbalanced": 2}


def by_force(graph: MotifGraph) -> Counter[Motif]:
    """Every set of three or four nodes, looked at alone."""
    found: Counter[Motif] = Counter()
    weights = {(a, b): sign for a, b, sign in graph.edges}
    arrows = weights | {(a, b): kind for a, b, kind in graph.links}
    for size in (3, 4):
        for ids in combinations(graph.nodes, size):
            here = [(i, j, arrows[ids[i], ids[j]]) for i, j in permutations(range(size), 2) if (ids[i], ids[j]) in arrows]
            nodes = [graph.nodes[one] for one in ids]
            kinds, heads = [node.kind for node in nodes], [node.head for node in nodes]
            if size == 4:
                strong = [arrow for arrow in here if arrow[2] in "+-"]
                if len(strong) == 4 and RESIDUAL not in {kind for *_, kind in here}:
                    try:
                        found[motif_of(kinds, heads, here)[0]] += 1
                    except ValueError:
                        continue
                continue
            for pair in combinations(here, 2):
                if len({end for arrow in pair for end in arrow[:2]}) < 3:
                    continue
                begins = {arrow[0] for arrow in pair}
                if len(begins) == 1 and MEETS in {kind for *_, kind in here} and all(arrow[2] in "+-" for arrow in pair):
                    found[motif_of(kinds, heads, here)[0]] += 1
                else:
                    found[motif_of(kinds, heads, pair)[0]] += 1
    return found


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_looking_at_every_set_of_nodes(seed: int):
    graph = graph_of(random_edges(seed, 40, layers=1, channels=5))
    found = by_force(graph)
    assert total(graph) == found
    assert {motif.shape for motif in found} >= {*SHAPES} - {"joined bi-fan"}


def test_a_bi_fan_onto_a_query_and_a_key_that_meet_is_of_its_own_kind():
    edges = [(f"0.attn.act_in.{i}", f"0.attn.{name}.2", 1.0) for i in range(2) for name in "qk"]
    found = {str(motif): number for motif, number in total(graph_of(edges)).items() if len(motif.kinds) == 4}
    assert found == {"joined bi-fan: attn.act_in, attn.act_in -> attn.q (+ +) ~ attn.k (+ +); one head": 1}


def test_a_motif_is_the_same_in_whatever_order_its_nodes_come():
    graph = graph_of(random_edges(5, 90))
    draw = random.Random(0)
    seen = {motif: example for motif, _, example in graph.instances()}
    assert len(seen) > 60
    for motif, example in seen.items():
        order = draw.sample(range(len(example)), len(example))
        arrows = [(order.index(a), order.index(b), kind) for a, b, kind in motif.arrows]
        arrows = [(b, a, kind) if kind == MEETS and draw.random() < 0.5 else (a, b, kind) for a, b, kind in arrows]
        nodes = [graph.nodes[example[i]] for i in order]
        again, places = motif_of([node.kind for node in nodes], [node.head for node in nodes], draw.sample(arrows, len(arrows)))
        assert again == motif
        assert [nodes[i].kind for i in places] == [*motif.kinds]
        parts = motif.parts()
        assert [node["kind"] for node in parts["nodes"]] == [graph.nodes[one].kind for one in example]
        ends = {(a, b): kind for a, b, kind in [*graph.edges, *graph.links]}
        for edge in parts["edges"]:
            a, b = example[edge["source"]], example[edge["target"]]
            assert edge["kind"] == (ends.get((a, b)) or ends[b, a])
    with pytest.raises(ValueError, match="none of the shapes"):
        motif_of(["attn.v", "attn.v", "attn.v"], [None] * 3, [(0, 1, "+")])


def shuffled_graphs(graphs: Sequence[MotifGraph], shuffles: int, seed: int = 0) -> list[list[MotifGraph]]:
    """For each circuit its shuffles as graphs."""
    pool = PooledEdges.of(graphs)
    ids, targets = shuffled(pool, shuffles, np.random.default_rng(seed))
    found = []
    for i, graph in enumerate(graphs):
        own = pool.of_circuit(i)
        rows = [
            [(pool.ends[edge][0], ids[target], pool.ends[edge][2]) for edge, target in zip(own, row[own], strict=True)] for row in targets
        ]
        found.append([MotifGraph(graph.nodes, edges, graph.links) for edges in rows])
    return found


def degrees(graph: MotifGraph) -> Counter:
    """Of every node, by site of the other end and sign."""
    site = lambda node: node.rpartition(".")[0]  # noqa: E731
    out = Counter(("out", source, site(target), sign) for source, target, sign in graph.edges)
    return out + Counter(("in", target, site(source), sign) for source, target, sign in graph.edges)


def test_shuffles_keep_degrees_and_classes_and_what_circuits_share():
    edges = random_edges(1, 150)
    graphs = [graph_of(edges[:110]), graph_of(edges[60:])]
    shared = {*graphs[0].edges} & {*graphs[1].edges}
    assert len(shared) == 50
    made = shuffled_graphs(graphs, 120)  # more than there are chains
    for graph, found in zip(graphs, made, strict=True):
        for one in found:
            assert degrees(one) == degrees(graph)
            assert len({edge[:2] for edge in one.edges}) == len(graph.edges), "no edge twice"
        assert len({frozenset(one.edges) for one in found}) > 100
    for first, second in zip(*made, strict=True):
        both = {*first.edges} & {*second.edges}
        assert len(both) == len(shared)
        assert degrees(MotifGraph(graphs[0].nodes, [*both])) == degrees(MotifGraph(graphs[0].nodes, [*shared]))
        assert len({edge[:2] for one in (first, second) for edge in one.edges}) == len(edges)
    pool = PooledEdges.of(graphs)
    ids, targets = shuffled(pool, 120, np.random.default_rng(0))
    now = [{(source, ids[target]) for (source, _, _), target in zip(pool.ends, row, strict=True)} for row in targets]
    kept = [len(one & {edge[:2] for edge in pool.ends}) for one in now]
    assert moved(pool, targets) == pytest.approx(len(edges) - np.mean(kept))
    assert 0.2 < moved(pool, targets) / len(edges) < 0.9


def test_all_graphs_that_can_be_reached_are_equally_frequent():
    """Three edges that join three nodes to three have six; around two edges of the other sign, which they lock, they have three."""
    one = [(f"0.mlp.act_in.{i}", f"0.mlp.post_act.{i}", 1.0) for i in range(3)]
    other = [("0.mlp.act_in.0", "0.mlp.post_act.1", -1.0), ("0.mlp.act_in.1", "0.mlp.post_act.2", -1.0)]
    for edges, states in ((one, 6), (one + other, 3)):
        (found,) = shuffled_graphs([graph_of(edges)], 3000)
        seen = Counter(frozenset(graph.edges) for graph in found)
        assert len(seen) == states
        expected = 3000 / states
        assert all(abs(number - expected) < 5 * math.sqrt(expected) for number in seen.values()), sorted(seen.values())


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_shuffles_are_those_of_the_shuffled_graphs_and_the_degrees_decide_the_rest(seed: int):
    graph = graph_of(random_edges(seed, 130, channels=8))
    (made,) = shuffled_graphs([graph], 6, seed)
    pool = PooledEdges.of([graph])
    ids, targets = shuffled(pool, 6, np.random.default_rng(seed))
    found = counts(graph, pool.ends, ids, targets)
    own = total(graph)
    assert all(motif.varies for motif in found)
    for i, one in enumerate(made):
        there = total(one)
        assert {motif: number for motif, number in there.items() if motif.varies} == {
            motif: int(numbers[i]) for motif, numbers in found.items() if numbers[i]
        }
        assert {motif: number for motif, number in there.items() if not motif.varies} == {
            motif: number for motif, number in own.items() if not motif.varies
        }
    assert {motif.shape for motif in found} >= {"fan-out", "fan-in", "triangle", "bi-fan", "diamond"}


def test_counts_do_not_depend_on_how_many_shuffles_are_counted_at_once(monkeypatch: pytest.MonkeyPatch):
    graph = graph_of(random_edges(4, 130))
    pool = PooledEdges.of([graph])
    ids, targets = shuffled(pool, 7, np.random.default_rng(0))
    at_once = counts(graph, pool.ends, ids, targets)
    for name, value in (("_CELLS", 1), ("_EXACT", 1)):
        monkeypatch.setattr(motif_counts, name, value)
        again = counts(graph, pool.ends, ids, targets)
        assert {motif: numbers.tolist() for motif, numbers in again.items()} == {
            motif: numbers.tolist() for motif, numbers in at_once.items()
        }


def test_a_planted_motif_is_found_and_its_examples_are_in_the_circuit(tmp_path: Path):
    result = load(folder_of(tmp_path / "out", {"t": circuit_of(planted())}))
    for signs in ("each", "product"):
        found = motifs(result, 1000, signs=signs)
        (best, *others) = [row for row in found["motifs"] if row["significant"]]
        assert best["parts"]["shape"] == "triangle"
        assert (best["count"], best["circuits"]) == (12, 1)
        assert best["p"] == pytest.approx(1 / 1001)
        assert best["expected"] == pytest.approx(1, abs=0.5)
        assert {row["parts"]["shape"] for row in others} <= {"fan-out"}, "its mirror: a read of q and k of one head"
        for example in best["examples"]:
            read, query, key = example["nodes"]
            assert (example["folder"], example["task"]) == (str(tmp_path / "out"), "t")
            assert {(read, query), (read, key)} <= {(edge.source, edge.target) for edge in result.circuit.edges}
            assert query.replace(".q.", ".k.") == key


@pytest.mark.parametrize("seed", range(5))
def test_random_circuits_have_no_significant_motif(seed: int, tmp_path: Path):
    made = [folder_of(tmp_path / str(i), {"t": circuit_of(random_edges(10 * seed + i, 80))}, model=str(i)) for i in range(2)]
    found = motifs([load(one) for one in made], 500, seed)
    assert (found["circuits"], found["models"]) == (2, 2)
    assert found["tested"] > 30
    assert [row["motif"] for row in found["motifs"] if row["significant"] or row["rare"]] == []
    shares = [row["p"] for row in found["motifs"] if row["tested"]]
    assert min(shares) >= 1 / 501


def test_motifs_that_the_degrees_decide_are_counted_and_not_tested(tmp_path: Path):
    found = motifs(load(folder_of(tmp_path / "out", {"t": circuit_of(SMALL)})), 20)
    assert len(found["motifs"]) == 10
    for row in found["motifs"]:
        if row["motif"].startswith(("chain", "fan-out: attn.resid_delta")):
            assert (row["expected"], row["sd"], row["p"], row["q"], row["tested"]) == (row["count"], 0, 1, None, False)
    assert motifs([], 5) | {"seed": 0} == {
        **{"circuits": 0, "models": 0, "shuffles": 5, "seed": 0, "signs": "each", "moved": None, "tested": 0, "tested_rare": 0},
        **{"least_q": None, "motifs": [], "left_out": []},
    }
    empty = motifs(load(folder_of(tmp_path / "empty", {"t": circuit_of([], alone=["0.attn.v.1"])})), 5)
    assert (empty["circuits"], empty["moved"], empty["motifs"]) == (1, None, [])


def test_p_is_the_share_of_graphs_with_at_least_or_at_most_the_count(tmp_path: Path):
    edges = random_edges(3, 150)
    result = load(folder_of(tmp_path / "out", {"t": circuit_of(edges)}))
    graph = graph_of(edges)
    pool = PooledEdges.of([graph])
    ids, targets = shuffled(pool, 300, np.random.default_rng([7, 0]))
    there = {str(motif): numbers.tolist() for motif, numbers in counts(graph, pool.ends, ids, targets).items()}
    seen = 0
    for row in motifs(result, 300, 7)["motifs"]:
        numbers = [*there.get(row["motif"], [row["count"]] * 300), row["count"]]
        assert row["expected"] == pytest.approx(np.mean(numbers[:-1]))
        for q, p, share in (
            ("q", "p", sum(number >= row["count"] for number in numbers)),
            ("q_rare", "p_rare", sum(number <= row["count"] for number in numbers)),
        ):
            least = numbers.count(max(numbers) if q == "q" else min(numbers)) / 301
            assert (row[q] is not None) == (least <= 0.05)
            assert row[p] == (pytest.approx(share / 301) if row[q] is not None else 1)
            seen += row[q] is not None
    assert seen > 20


def test_q_is_the_correction_of_benjamini_and_hochberg(tmp_path: Path):
    found = motifs(load(folder_of(tmp_path / "out", {"t": circuit_of(planted())})), 400)
    for p, q, significant, tested in (("p", "q", "significant", "tested"), ("p_rare", "q_rare", "rare", "tested_rare")):
        rows = [row for row in found["motifs"] if row[q] is not None]
        shares = sorted(row[p] for row in rows)
        assert 0 < len(rows) <= found[tested]
        for row in rows:
            above = [share * found[tested] / (rank + 1) for rank, share in enumerate(shares) if share >= row[p]]
            assert row[q] <= min(above) + 1e-12
            assert row[significant] == (row[q] <= 0.05)
        assert min(row[q] for row in rows) >= min(shares)
    assert found["least_q"] == pytest.approx(found["tested"] / 401)


def test_the_same_seed_gives_the_same_result_and_a_circuit_counts_once(tmp_path: Path):
    place = folder_of(tmp_path / "out", {"a": circuit_of(random_edges(0, 60)), "b": circuit_of(random_edges(1, 60))})
    first, again = motifs(load(place), 200, 3), motifs([*load(place), *load(place)], 200, 3)
    assert first == again
    assert first["circuits"] == 2
    other = motifs(load(place), 200, 4)
    assert [row["expected"] for row in other["motifs"]] != [row["expected"] for row in first["motifs"]]
    assert sum(row["count"] for row in other["motifs"]) == sum(row["count"] for row in first["motifs"])
    one = motifs([load(place, "a")], 200, 3)
    assert {example["task"] for row in one["motifs"] for example in row["examples"]} == {"a"}
    both = next(row for row in first["motifs"] if row["circuits"] == 2)
    assert {example["task"] for example in both["examples"][:2]} == {"a", "b"}


def test_a_copy_of_a_circuit_is_no_further_evidence(tmp_path: Path):
    """Circuits of one model are shuffled together; those of two models are not."""
    circuit = circuit_of(random_edges(7, 100))
    alone = motifs(load(folder_of(tmp_path / "a", {"t": circuit})), 400)
    twice = motifs(load(folder_of(tmp_path / "b", {"t": circuit, "u": circuit})), 400)
    assert (alone["models"], twice["models"]) == (1, 1)
    numbers = {row["motif"]: row for row in twice["motifs"]}
    for row in alone["motifs"]:
        assert numbers[row["motif"]]["count"] == 2 * row["count"]
        assert numbers[row["motif"]]["expected"] == pytest.approx(2 * row["expected"])
        assert numbers[row["motif"]]["p"] == row["p"]


def test_circuits_of_more_than_2000_edges_are_left_out(tmp_path: Path):
    many = [(f"0.mlp.act_in.{i}", f"0.mlp.post_act.{j}", 1.0) for i in range(50) for j in range(41)]
    place = folder_of(tmp_path / "out", {"large": circuit_of(many), "small": circuit_of(SMALL)})
    found = motifs(load(place), 10)
    assert found["circuits"] == 1
    assert found["left_out"] == [{"folder": str(place), "task": "large", "why": "it has 2,050 edges, more than 2,000"}]


def test_a_read_has_every_earlier_write_of_its_channel():
    nodes = ["1.attn.act_in.3", "0.attn.resid_delta.3", "0.mlp.act_in.3", "0.mlp.resid_delta.3", "0.attn.act_in.3", "1.attn.act_in.4"]
    first, second = "0.attn.resid_delta.3", "0.mlp.resid_delta.3"
    reads = [(first, "0.mlp.act_in.3"), (first, "1.attn.act_in.3"), (second, "1.attn.act_in.3")]
    assert sorted(graph_of([], alone=nodes).links) == [(*ends, RESIDUAL) for ends in reads]


def test_position_channels_are_not_part_of_the_stream():
    assert graph_of(SMALL, positions=["0.mlp.act_in.3"]).links == [("0.attn.q.1", "0.attn.k.1", MEETS)]


@pytest.mark.parametrize(
    ("config", "width"), [({"d_head": 16}, 16), ({"n_embd": 64, "n_head": 4}, 16), ({"hidden_size": 64, "num_attention_heads": 8}, 8)]
)
def test_the_width_of_a_head_is_in_the_settings_of_the_model(config: dict, width: int, tmp_path: Path):
    assert head_width(folder_of(tmp_path / "out", {}, config=config)) == width


@pytest.mark.parametrize("config", [[], {}, {"d_head": 0}, {"d_head": True}, {"d_head": "8"}, {"n_embd": 7, "n_head": 2}, {"n_head": 0}])
def test_settings_without_it_are_one_clear_line(config: object, tmp_path: Path):
    place = folder_of(tmp_path / "out", {"t": circuit_of(SMALL)}, config=config)
    with pytest.raises(BrokenArtifact, match="does not say how many channels an attention head has"):
        motifs(load(place))


def damage(circuit: dict, how: str) -> None:
    edge, node = circuit["edges"][0], circuit["nodes"][0]
    changes = {
        "no node": (edge, "target", "0.attn.q.77"),
        "no id": (edge, "source", ["0.attn.act_in.9"]),
        "zero": (edge, "weight", 0.0),
        "nan": (edge, "weight", math.nan),
        "text": (edge, "weight", "1"),
        "site": (node, "site", "0.attn.x"),
        "layer": (node, "site", "\u0663.attn.act_in"),
        "site as list": (node, "site", ["0.attn.act_in"]),
        "channel": (node, "channel", 10),
        "channel as text": (node, "channel", "9"),
    }
    if how == "node twice":
        circuit["nodes"].append(dict(node))
    elif how == "edge twice":
        circuit["edges"].append(dict(edge))
    elif how == "other layer":
        circuit["nodes"].append(dict(node, id="1.attn.q.1", site="1.attn.q", channel=1))
        edge["target"] = "1.attn.q.1"
    elif how == "backwards":
        edge["source"], edge["target"] = edge["target"], edge["source"]
    else:
        place, key, value = changes[how]
        place[key] = value


DAMAGES = ("no node", "no id", "zero", "nan", "text", "site", "layer", "site as list", "channel", "channel as text")


@pytest.mark.parametrize("how", [*DAMAGES, "node twice", "edge twice", "other layer", "backwards"])
def test_a_damaged_circuit_is_one_clear_line(how: str, tmp_path: Path):
    place = folder_of(tmp_path / "out", {"t": circuit_of(SMALL)})
    path = place / "circuits" / "t" / "circuit.json"
    circuit = json.loads(path.read_text(encoding="utf-8"))
    damage(circuit, how)
    path.write_text(json.dumps(circuit), encoding="utf-8")
    with pytest.raises(BrokenArtifact, match=r"circuit\.json is damaged: (the edge|node) [^\n]*$"):
        motifs(load(place))


@pytest.mark.parametrize("manifest", ["[]", '{"files": 3}', '{"files": {"model/model.safetensors": null}}', "{"])
def test_a_damaged_manifest_is_one_clear_line(manifest: str, tmp_path: Path):
    place = folder_of(tmp_path / "out", {"t": circuit_of(SMALL)})
    (place / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(BrokenArtifact, match=r"manifest\.json"):
        motifs(load(place))


@pytest.mark.parametrize("wrong", [{"shuffles": 0}, {"shuffles": 20_001}, {"shuffles": True}, {"seed": -1}, {"seed": 1.0}, {"signs": "no"}])
def test_what_cannot_be_asked_is_said(wrong: dict):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        motifs([], **wrong)


def test_it_needs_no_torch():
    code = "import sys, extractor.results.motifs, extractor.report.motifs_page; print('torch' in sys.modules)"
    assert python(code).strip() == "False"


def run(*arguments: object):
    return CliRunner().invoke(group, ["motifs", *map(str, arguments)])


def test_the_command_prints_a_table_and_writes_the_page(tmp_path: Path):
    place = folder_of(tmp_path / "out", {"t": circuit_of(planted())})
    told = run(place, "--signs", "each", "--shuffles", 500, "--out", place / "motifs.html")
    assert told.exit_code == 0
    rows = told.stdout.splitlines()
    assert rows[0].split() == ["motif", "count", "expected", "sd", "p", "q", "circuits"]
    assert rows[1].startswith("triangle: attn.act_in -> attn.q (+) ~ attn.k (+); one head")
    assert rows[1].rstrip().endswith("more frequent")
    assert len([row for row in rows if "; " in row and ": " in row and " -> " in row]) <= 12
    assert "1 circuit of 1 sparse model, 500 shuffles, which move" in told.stdout
    assert f"page: {place / 'motifs.html'}" in told.stderr
    page = (place / "motifs.html").read_text(encoding="utf-8")
    assert 'href="circuits/t/report.html#node=0.attn.act_in.' in page
    beside = tmp_path / "pages" / "all.html"
    beside.parent.mkdir()
    assert run(place, "--shuffles", 5, "--out", beside).exit_code == 0
    assert 'href="../out/circuits/t/report.html#node=0.attn.act_in.' in beside.read_text(encoding="utf-8")


def test_the_command_gives_all_as_json_and_takes_a_task(tmp_path: Path):
    place = folder_of(tmp_path / "out", {"a": circuit_of(planted()), "b": circuit_of(SMALL)})
    facts = json.loads(run(place, "--signs", "each", "--shuffles", 40, "--seed", 2, "--json").stdout)
    assert facts == json.loads(json.dumps(motifs(load(place), 40, 2)))
    assert json.loads(run(f"{place}:b", "--shuffles", 5, "--json").stdout)["circuits"] == 1
    both = json.loads(run(f"{place}:b", FOLDER, "--shuffles", 5, "--json").stdout)
    assert (both["circuits"], both["models"], both["signs"]) == (2, 2, "product")


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        (["/nosuch/place"], "NotFound", "there is no folder /nosuch/place"),
        ([""], "UsageError", "empty text"),
        ([f"{FOLDER}:nosuch"], "UsageError", "no circuit of 'nosuch'"),
        ([FOLDER, "--shuffles", 5, "--out", "/nosuch/page.html"], "OutputError", "/nosuch/page.html cannot be written"),
    ],
)
def test_the_command_names_what_is_not_there(names: list, kind: str, words: str):
    error = run(*names).exception
    assert type(error).__name__ == kind
    assert words in str(error)


def test_a_result_of_the_last_release_has_motifs(tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(FOLDER, copy)
    result: Result = extractor.load(copy)
    found = motifs(result, 50)
    assert found["circuits"] == 1
    assert sum(row["count"] for row in found["motifs"]) == sum(total(MotifGraph.of(result.circuit, head_width(copy), copy)).values())
