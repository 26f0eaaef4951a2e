"""Sweeps without a service: the grid as jobs, the facts of results, what they show, and the page that shows it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from extractor.errors import BrokenArtifact, SpecError, UnknownTask, UsageError
from extractor.files import write_json
from extractor.spec.schema import TrainSpec
from extractor.spec.sizes import kept_in_blocks
from worker.sweeps.claims import compare
from worker.sweeps.frontier import write_frontier
from worker.sweeps.grid import Facts, Sweep, SweepRequest, facts_of, parse_grid, plan, weight_frac

TASKS = ("quote_close", "for_while")
ORDER = SweepRequest(tasks=TASKS)


def trains(order: SweepRequest, *grid: str) -> list[TrainSpec]:
    return [point.spec.train for point in plan(order, parse_grid(grid)).points if point.spec.train is not None]


@pytest.mark.parametrize(
    "texts", [("width=64,128", "l0=16k,1.5M"), ("width=64,128,l0=16k,1.5M",), (" width = 64, 128 ", "l0=16k,1.5M,16k")]
)
def test_a_grid_is_axes_in_either_writing(texts: tuple[str, ...]):
    assert parse_grid(texts) == {"width": ["64", "128"], "l0": ["16k", "1.5M"]}


@pytest.mark.parametrize("texts", [(), ("64,128",), ("width=",), ("width=64", "model.d_model=32"), ("width=64,,128",)])
def test_what_is_no_grid_is_refused(texts: tuple[str, ...]):
    with pytest.raises(UsageError, match="grid"):
        parse_grid(texts)


def test_every_point_of_the_grid_is_one_train_job_with_the_tasks():
    sweep = plan(ORDER, parse_grid(["width=64,128", "l0=16k,24k"]))
    assert [point.label for point in sweep.points] == [
        "width 64, l0 16k",
        "width 64, l0 24k",
        "width 128, l0 16k",
        "width 128, l0 24k",
    ]
    assert all(point.spec.kind == "train" and point.spec.tasks == TASKS and point.spec.prune for point in sweep.points)
    assert len({point.job for point in sweep.points}) == 4


def test_what_goes_with_the_width_keeps_the_nonzeros_of_embeddings_and_biases():
    at_128, at_64, at_16 = trains(ORDER, "width=128,64,16")
    assert at_64.optim.lr == pytest.approx(2 * at_128.optim.lr)
    assert at_64.sparsity.embedding_frac * 64 == pytest.approx(at_128.sparsity.embedding_frac * 128)
    assert at_64.sparsity.bias_frac * 64 == pytest.approx(at_128.sparsity.bias_frac * 128)
    assert at_16.sparsity.bias_frac == 1.0  # there are no more
    assert at_64.sparsity.weight_frac == at_128.sparsity.weight_frac


def test_what_is_set_by_hand_does_not_go_with_the_width():
    order = SweepRequest(tasks=(), settings={"optim.lr": "0.07", "sparsity.embedding_frac": "0.3"})
    at_64, at_32 = trains(order, "width=64,32")
    assert (at_64.optim.lr, at_32.optim.lr) == (0.07, 0.07)
    assert (at_64.sparsity.embedding_frac, at_32.sparsity.embedding_frac) == (0.3, 0.3)
    assert at_32.sparsity.bias_frac == 2 * at_64.sparsity.bias_frac
    rates = [(train.model.d_model, train.optim.lr) for train in trains(SweepRequest(tasks=()), "width=64,32", "optim.lr=0.1,0.2")]
    assert rates == [(64, 0.1), (64, 0.2), (32, 0.1), (32, 0.2)]


@pytest.mark.parametrize(("changes", "l0"), [({}, 4000), ({"model.n_layer": "1", "sparsity.min_per_neuron": "2"}, 1100), ({}, 0.5)])
def test_l0_is_the_number_of_nonzeros_that_training_keeps(changes: dict[str, str], l0: float):
    from extractor.training.projection import constraints
    from extractor.training.train_sparse import new_sparse_gpt

    (train,) = trains(SweepRequest(tasks=(), settings=changes), "width=32", f"l0={l0}")
    model = new_sparse_gpt(train.model, train.model.n_layer, 100, 0)
    block = [c for c in constraints(model, train.sparsity) if c.neuron_axis is not None]
    kept = sum(c.kept(train.sparsity.weight_frac, train.sparsity.min_per_neuron) for c in block)
    assert kept == kept_in_blocks(train.model, train.sparsity)
    wanted = l0 if l0 > 1 else l0 * sum(c.tensor.numel() for c in block)
    assert abs(kept - wanted) <= len(block) / 2


def test_position_channels_widen_what_is_read():
    order = SweepRequest(tasks=(), settings={"model.d_pos_emb": "8"})
    (train,) = trains(order, "width=32", "l0=4000")
    assert abs(kept_in_blocks(train.model, train.sparsity) - 4000) <= 4


@pytest.mark.parametrize("l0", ["6143", "98305", "0.06"])
def test_an_l0_that_does_not_fit_is_refused_with_the_range(l0: str):
    with pytest.raises(UsageError, match=r"width 64, l0 .* l0 ranges from 6,144 \(4 per neuron.*\) to 98,304"):
        plan(ORDER, parse_grid(["width=64", f"l0={l0}"]))


def test_the_ends_of_the_range_fit():
    least, most = trains(ORDER, "width=64", "l0=6144,98304")
    assert [kept_in_blocks(train.model, train.sparsity) for train in (least, most)] == [6144, 98304]
    assert most.sparsity.weight_frac == weight_frac(1.0, most, "") == 1.0


@pytest.mark.parametrize(
    ("order", "grid", "kind", "message"),
    [
        (ORDER, ["width=60"], UsageError, "not a multiple of model.d_head"),
        (ORDER, ["width=wide"], SpecError, "not a whole number"),
        (ORDER, ["l0=many"], UsageError, "not a number of weights"),
        (ORDER, ["optim.speed=3"], SpecError, "optim.speed"),
        (SweepRequest(tasks=("quote_open",)), ["width=64"], UnknownTask, "quote_open"),
        (SweepRequest(tasks=(), dense=True), ["l0=8k"], UsageError, "a dense model has no l0"),
        (SweepRequest(tasks=(), settings={"optim.lr": "1"}), ["optim.lr=1,2"], UsageError, "both an axis"),
        (SweepRequest(tasks=(), settings={"sparsity.weight_frac": "0.5"}), ["l0=8k"], UsageError, "set the same quantity"),
        (SweepRequest(tasks=()), ["optim.steps=" + ",".join(map(str, range(1, 300)))], UsageError, "299 points"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_done_is_refused_before_anything_is_queued(order: SweepRequest, grid: list[str], kind: type, message: str):
    with pytest.raises(kind, match=message):
        plan(order, parse_grid(grid))


def test_a_dense_sweep_has_dense_points_at_any_width():
    for train in trains(SweepRequest(tasks=TASKS, dense=True), "width=32,256"):
        assert train.is_dense


def test_ids_follow_from_the_specs_alone():
    one, two = (plan(ORDER, parse_grid(["width=64,128", "l0=16k"])) for _ in range(2))
    assert one == two
    turned = plan(ORDER, parse_grid(["l0=16k", "width=128,64"]))
    assert {p.job for p in turned.points} == {p.job for p in one.points}
    assert turned.id == one.id
    other = plan(SweepRequest(tasks=TASKS, seed=1), parse_grid(["width=64,128", "l0=16k"]))
    assert not {p.job for p in other.points} & {p.job for p in one.points}
    assert other.id != one.id


def test_a_plan_survives_its_file():
    sweep = plan(ORDER, parse_grid(["width=64", "l0=16k"]))
    assert Sweep.from_json(json.loads(json.dumps(sweep.to_json()))) == sweep
    with pytest.raises(BrokenArtifact, match="not readable"):
        Sweep.from_json({"points": [{"job": "x"}]})


def point(width: int, l0: int, loss: float, edges: dict[str, int | None], **axes: object) -> Facts:
    """The facts of a finished point; a task with None edges did not meet the target."""
    tasks = {
        task: {"nodes": 3, "edges": n or 999, "loss": 0.1, "meets_target": n is not None, "why": None if n else "best loss 0.4"}
        for task, n in edges.items()
    }
    job = f"p{width}x{l0}{''.join(map(str, axes.values()))}"
    facts = {"job": job, "label": f"width {width}, l0 {l0}", "axes": {"width": width, "l0": l0, **axes}, "state": "succeeded"}
    facts |= {"error": None, "d_model": width, "n_layer": 2, "l0": l0, "seed": 0, "parameters": 1000 * width, "nonzeros": l0 + 500}
    return facts | {"held_out_loss": loss, "tasks": tasks, "result": "/nowhere"}


def failed() -> Facts:
    facts = point(32, 8000, 0.0, {})
    for name in ("held_out_loss", "tasks", "result", "parameters", "nonzeros"):
        del facts[name]
    return facts | {"state": "failed", "error": "TrainingDiverged: the loss became <nan>"}


GRID = [
    point(64, 8000, 3.0, {"quote_close": 20, "for_while": 45}),
    point(64, 16000, 2.8, {"quote_close": 40, "for_while": 90}),
    point(128, 8000, 2.9, {"quote_close": 10, "for_while": 40}),
    point(128, 16001, 2.7, {"quote_close": 30, "for_while": 120}),
]


def test_circuit_size_is_the_geometric_mean_over_the_tasks_that_all_compared_points_met():
    found = compare(GRID, TASKS)
    assert found["compared_tasks"] == ["quote_close", "for_while"]
    assert [p["edges_geometric_mean"] for p in found["points"]] == [30.0, 60.0, 20.0, 60.0]
    assert [p["unmet"] for p in found["points"]] == [[]] * 4


def test_a_task_that_one_point_missed_is_left_out_for_all_and_named():
    missed = [*GRID[:3], point(128, 16001, 2.7, {"quote_close": 30, "for_while": None})]
    found = compare(missed, TASKS)
    assert found["compared_tasks"] == ["quote_close"]
    assert [p["edges_geometric_mean"] for p in found["points"]] == [20, 40, 10, 30]
    assert found["points"][3]["unmet"] == ["for_while"]


def test_a_point_that_met_nothing_has_no_size_and_takes_none_from_the_others():
    found = compare([*GRID[:3], point(128, 16001, 2.7, {"quote_close": None, "for_while": None}), failed()], TASKS)
    assert [p["edges_geometric_mean"] for p in found["points"]] == [30.0, 60.0, 20.0, None, None]
    assert found["points"][3]["unmet"] == list(TASKS)
    smaller = found["findings"][0]
    assert (smaller["agree"], smaller["of"], smaller["unknown"]) == (1, 1, 1)
    assert smaller["verdict"] == "yes, in the one pair; 1 more cannot be decided"


def test_where_no_task_is_met_by_all_the_one_most_met_is_compared():
    found = compare(
        [point(64, 8000, 3, {"quote_close": 5, "for_while": None}), point(64, 9000, 3, {"quote_close": None, "for_while": 7})], TASKS
    )
    assert found["compared_tasks"] == ["quote_close"]
    assert [p["edges_geometric_mean"] for p in found["points"]] == [5.0, None]


def test_the_papers_findings_are_counted_pair_by_pair():
    fewer_smaller, fewer_worse, wider_smaller, wider_better = compare(GRID, TASKS)["findings"]
    assert (fewer_smaller["agree"], fewer_smaller["of"]) == (2, 2)
    assert fewer_smaller["verdict"] == "yes, in all 2 pairs"
    assert [pair["text"] for pair in fewer_smaller["pairs"]] == [
        "width 64, 16,000 → 8,000 nonzeros: 60 edges → 30 edges",
        "width 128, 16,001 → 8,000 nonzeros: 60 edges → 20 edges",
    ]
    assert (fewer_worse["agree"], fewer_worse["of"]) == (2, 2)
    # At 16k nonzeros more width leaves circuits as large as they were: that is no improvement.
    assert [(pair["from"], pair["to"], pair["agrees"]) for pair in wider_smaller["pairs"]] == [
        ("p64x8000", "p128x8000", True),
        ("p64x16000", "p128x16001", False),
    ]
    assert wider_smaller["verdict"] == "partly, in 1 of 2 pairs"
    assert (wider_better["agree"], wider_better["of"]) == (2, 2)


def test_points_that_differ_in_anything_else_are_not_paired():
    mixed = [point(64, 8000, 3.0, {"quote_close": 9}, steps=1), point(128, 8000, 2.0, {"quote_close": 8}, steps=2)]
    findings = compare(mixed, ("quote_close",))["findings"]
    assert [claim["of"] for claim in findings] == [0] * 4
    assert findings[0]["verdict"] == "not tested: no two points can be compared"


@pytest.fixture
def results(tmp_path: Path) -> list[Facts]:
    """The grid with reports to copy, and a failed point."""
    found = []
    for facts in GRID:
        result = tmp_path / "jobs" / facts["job"]
        for task in TASKS:
            (result / "circuits" / task).mkdir(parents=True)
            (result / "circuits" / task / "report.html").write_text(f"<p>{facts['job']} {task}</p>")
            (result / "circuits" / task / "circuit.svg").write_text("<svg/>")
        found.append(facts | {"result": str(result)})
    return [*found, failed()]


def test_the_frontier_is_a_folder_that_stands_alone(results: list[Facts], tmp_path: Path):
    write_frontier(tmp_path / "out", "s123", compare(results, TASKS))
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    copies = {f"points/{p['job']}/{task}.{end}" for p in GRID for task in TASKS for end in ("html", "svg")}
    assert files == {"sweep.json", "frontier.svg", "frontier.png", "index.html"} | copies
    told = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert told["sweep"] == "s123"
    assert [p["edges_geometric_mean"] for p in told["points"]] == [30.0, 60.0, 20.0, 60.0, None]
    page = (tmp_path / "out" / "index.html").read_text()
    for name in copies:
        assert f'"{name}"' in page
    assert (tmp_path / "out" / "points" / "p64x8000" / "for_while.html").read_text() == "<p>p64x8000 for_while</p>"
    assert "TrainingDiverged: the loss became &lt;nan&gt;" in page
    assert "<nan>" not in page


def test_the_picture_has_a_titled_mark_for_every_model_and_the_same_bytes_each_time(results: list[Facts], tmp_path: Path):
    comparison = compare(results, TASKS)
    for name in ("one", "two"):
        write_frontier(tmp_path / name, "s123", comparison)
    for name in ("frontier.svg", "frontier.png", "index.html", "sweep.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    svg = (tmp_path / "one" / "frontier.svg").read_text()
    assert '<g id="point-p64x8000">\n<title>width 64, l0 8000: 3.0000 nats, 30 edges, 64k parameters, 8.5k nonzeros' in svg
    assert svg.count('<g id="point-') == len(GRID)


def test_the_marks_stand_where_the_numbers_say(results: list[Facts], tmp_path: Path):
    """Left is a lower loss, down a smaller circuit, on a log scale; areas are proportional to nonzeros."""
    import re

    write_frontier(tmp_path, "s123", compare(results, TASKS))
    svg = (tmp_path / "frontier.svg").read_text()

    def place(job: str) -> tuple[float, float]:
        match = re.search(rf'<g id="point-{job}">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg, re.DOTALL)
        assert match is not None, job
        return float(match[1]), float(match[2])

    x = {job: place(job)[0] for job in ("p64x8000", "p128x8000", "p128x16001")}
    assert (x["p64x8000"] - x["p128x8000"]) * 2 == pytest.approx(x["p128x8000"] - x["p128x16001"], rel=1e-3)
    y = {job: place(job)[1] for job in ("p64x8000", "p64x16000", "p128x8000")}
    per_nat = (y["p64x8000"] - y["p64x16000"]) / math.log(2)
    assert per_nat > 0
    assert (y["p128x8000"] - y["p64x8000"]) / math.log(1.5) == pytest.approx(per_nat, rel=1e-3)


@pytest.mark.parametrize(
    "points", [[], [failed()], [point(64, 8000, 3.0, {"quote_close": None})], GRID[:1]], ids=["none", "failed", "unmet", "one"]
)
def test_a_sweep_with_little_to_show_still_has_a_page(points: list[Facts], tmp_path: Path):
    write_frontier(tmp_path, "s123", compare(points, ("quote_close",)))
    page = (tmp_path / "index.html").read_text()
    done = [p for p in points if "held_out_loss" in p]
    assert page.count('<tr id="row-') == len(done)
    assert ("no circuit met the target loss" in page) is (points != GRID[:1])


def test_the_facts_of_a_result_are_those_of_its_files(tmp_path: Path):
    (found,) = plan(ORDER, parse_grid(["width=64", "l0=16k"])).points
    l0 = {"transformer.h.0.attn.c_attn.weight": 9000, "transformer.h.0.mlp.c_proj.weight": 6999, "lm_head.weight": 5}
    circuits = {"quote_close": {"nodes": 4, "edges": 7, "loss": 0.1, "meets_target": True, "why": None}}
    numbers = {"parameters": 10, "nonzeros": 16010, "held_out_loss": 2.5, "l0": l0, "circuits": circuits}
    write_json(tmp_path / "result.json", numbers)
    facts = facts_of(found, "succeeded", tmp_path)
    assert (facts["parameters"], facts["nonzeros"], facts["held_out_loss"], facts["tasks"]) == (10, 16010, 2.5, circuits)
    assert (facts["label"], facts["l0"]) == ("width 64, l0 16k", 15999)
    write_json(tmp_path / "result.json", {"parameters": 10})
    with pytest.raises(BrokenArtifact, match="nonzeros"):
        facts_of(found, "succeeded", tmp_path)
