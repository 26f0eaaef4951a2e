"""`extract sweep` on a queue with the real engine: a grid in, a frontier out, and only what is missing is done again."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest

from extractor.spec.schema import parse_job
from tasks import find_task
from tasks.words import NOUNS

SMALL = {
    "vocab_size": 400,
    "model.n_layer": 1,
    "model.d_head": 8,
    "model.mlp_ratio": 2,
    "model.n_ctx": 32,
    "model.activation_frac": 0.5,
    "optim.steps": 150,
    "optim.lr": 0.02,
    "optim.eps": 1e-8,
    "optim.batch": 64,
    "optim.context": 8,
    "optim.warmup": 0.05,
    "sparsity.min_per_neuron": 2,
    "prune.granularity": "node",
    "prune.trials": 2,
    "prune.population": 2,
    "prune.steps": 40,
    "prune.pairs": 16,
    "prune.lr": 0.03,
    "prune.select_pairs": 64,
    "prune.trial_pairs": 16,
    "prune.held_out_pairs": 64,
    "prune.necessity": 0,
    "prune.standard": "paper",
    "prune.controls": 0,
    "prune.mean_tokens": 2048,
}


def corpus(folder: Path) -> Path:
    """Nothing but loop headers, from the train split of the task."""
    path = folder / "loops.jsonl"
    with open(path, "w") as file:
        for number, pair in enumerate(itertools.islice(find_task("for_while").pairs("train"), 1500)):
            for text in (f"{pair.positive} in {NOUNS[number % len(NOUNS)]}:", f"{pair.negative}:"):
                file.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.mark.slow
def test_a_sweep_queues_its_points_draws_what_they_left_and_repeats_only_what_failed(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_ENGINE", "extractor")
    monkeypatch.setenv("EXTRACT_CACHE_DIR", str(machine.home / "cache"))
    request = ["sweep", "--grid", "width=16,32,l0=1.5k", "--task", "for_while", "--target-loss", "0.6"]
    request += ["--corpus", str(corpus(machine.home)), *(f"--set={name}={value}" for name, value in SMALL.items())]

    specs = machine.extract(*request, "--print-specs").json
    assert [spec["axes"] for spec in specs] == [{"width": 16, "l0": 1500}, {"width": 32, "l0": 1500}]
    queued = machine.extract(*request, "--no-worker", "--json")
    assert queued.code == 0
    jobs = [job["job"] for job in queued.json["jobs"]]
    assert jobs == [spec["job"] for spec in specs]
    assert [machine.state_of(job) for job in jobs] == ["queued", "queued"]
    machine.records.cancel(jobs[1])

    status = machine.extract("sweep", "--status", queued.json["sweep"], "--no-worker", "--json")
    assert status.code == 1  # a point was cancelled
    assert [point["state"] for point in status.json["points"]] == ["queued", "cancelled"]

    done = machine.extract(*request, "--wait", "--json")
    assert done.code == 0, (done.out, done.err)
    told = done.json
    out = machine.state / "sweeps" / told["sweep"]
    assert told["path"] == str(out)
    assert {path.name for path in out.iterdir()} == {"plan.json", "sweep.json", "frontier.svg", "frontier.png", "index.html", "points"}
    assert json.loads((out / "sweep.json").read_text())["points"] == told["points"]
    for job, facts in zip(jobs, told["points"], strict=True):
        left = json.loads((machine.settings.root / job / "result" / "result.json").read_text())
        assert (facts["job"], facts["held_out_loss"], facts["tasks"]["for_while"]["edges"]) == (
            job,
            left["held_out_loss"],
            left["circuits"]["for_while"]["edges"],
        )
        assert abs(facts["l0"] - 1500) <= 4
        assert facts["tasks"]["for_while"]["meets_target"] == left["circuits"]["for_while"]["meets_target"]
        report = machine.settings.root / job / "result" / "circuits" / "for_while" / "report.html"
        assert (out / facts["tasks"]["for_while"]["report"]).read_bytes() == report.read_bytes()
    # Circuits are compared where both meet their target, which differs between kinds of CPU.
    compared = all(point["tasks"]["for_while"]["meets_target"] for point in told["points"])
    assert [claim["of"] for claim in told["findings"]] == [0, 0, int(compared), 1]

    attempts = [machine.records.need(job)["attempt"] for job in jobs]
    again = machine.extract(*request, "--wait", "--out", str(machine.home / "copy"))
    assert again.code == 0
    assert "width 16, l0 1.5k" in again.out
    assert [machine.records.need(job)["attempt"] for job in jobs] == attempts
    assert (machine.home / "copy" / "sweep.json").read_bytes() == (out / "sweep.json").read_bytes()
    shutil.rmtree(machine.settings.root / jobs[0] / "result")
    gone = machine.extract("sweep", "--status", told["sweep"], "--no-worker", "--json").json["points"]
    assert [point["state"] for point in gone] == ["missing", "succeeded"]
    repeated = machine.extract(*request, "--no-worker", "--json").json["jobs"]
    assert [job["queued_now"] for job in repeated] == [True, False]


def test_only_a_job_that_failed_or_was_cancelled_is_submitted_again(machine):
    from worker.client import submit

    job = machine.submit("there")
    spec = parse_job(machine.records.need(job)["spec"])
    waiting = machine.records.need(job)
    assert submit.submit_again(machine.service, spec, job) == job
    assert machine.records.need(job) == waiting
    machine.records.cancel(job)
    submit.submit_again(machine.service, spec, job)
    assert machine.state_of(job) == "queued"
    assert machine.states(job) == ["queued"]
    assert machine.records.open_ids() == [job]


def test_a_sweep_that_nobody_started_is_not_found(machine):
    answer = machine.extract("sweep", "--status", "s000000000", "--json")
    assert (answer.code, answer.json["error"]["type"]) == (3, "NotFound")
    assert machine.extract("sweep", "--status", "../jobs").code == 2
    assert machine.extract("sweep", "--status", "s000000000", "--grid", "width=64").code == 2


def test_a_folder_that_holds_something_else_takes_no_frontier(machine):
    (machine.home / "mine").mkdir()
    (machine.home / "mine" / "thesis.tex").write_text("x")
    answer = machine.extract("sweep", "--grid", "width=64", "--wait", "--out", str(machine.home / "mine"))
    assert (answer.code, answer.out) == (2, "")
    assert "not an empty folder" in answer.err


def test_the_summary_of_a_train_job_names_its_circuits_and_all_their_reports(tmp_path: Path):
    from rich.console import Console

    from worker.cli.views.job import summary_table
    from worker.storage import results

    met = {"nodes": 4, "edges": 7, "loss": 0.1234, "meets_target": True, "why": None}
    circuits = {
        "for_while": met,
        "quote_close": met | {"nodes": None, "why": "cannot be asked"},
        "bracket_counting": met | {"meets_target": False},
    }
    (tmp_path / "result.json").write_text(json.dumps({"model": "sparse_gpt", "held_out_loss": 2.5, "circuits": circuits}))
    for task in ("for_while", "quote_close"):
        folder = tmp_path / "circuits" / task
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        (folder / "report.html").write_text("")
    facts = results.summary(tmp_path)
    assert facts["held_out_loss"] == 2.5
    assert facts["paths"] == {
        "report": str(tmp_path / "circuits" / "for_while" / "report.html"),
        "report quote_close": str(tmp_path / "circuits" / "quote_close" / "report.html"),
    }
    console = Console(width=120)
    with console.capture() as said:
        console.print(summary_table(facts))
    lines = [" ".join(line.split()) for line in said.get().splitlines()]
    assert "for_while 4 nodes, 7 edges, loss 0.1234" in lines
    assert "quote_close no circuit: cannot be asked" in lines
    assert any(line.startswith("bracket_counting target not met: 4 nodes") for line in lines)
