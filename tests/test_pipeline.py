"""Whole jobs, in this process: what they leave, that they repeat themselves, and that they go on where they were stopped."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_arrows import TRAVELLING
from worlds import ROOT

from extractor import files
from extractor.circuits.circuit import Circuit
from extractor.circuits.graph import edges_between
from extractor.data.task_choice import choose
from extractor.errors import (
    BrokenArtifact,
    ExtractorError,
    ModelNotFound,
    OutputError,
    SpecError,
    TaskNotExpressible,
    UnknownTask,
    UnsupportedModel,
)
from extractor.jobs.run import run_job
from extractor.progress import Progress, Stopped
from extractor.spec.claims import is_met
from extractor.spec.schema import BridgeSpec, CorpusSpec, JobSpec, OptimSpec, PruneSpec, SparseModelSpec, SparsitySpec, TrainSpec
from tasks import find_task
from tasks.base import SPLITS
from tasks.words import NOUNS

TASK = "for_while"
SHAPE = SparseModelSpec(n_layer=1, d_model=32, d_head=8, mlp_ratio=2, n_ctx=32, activation_frac=0.5)
BRIDGE = BridgeSpec(
    model=SHAPE,
    sparsity=SparsitySpec(weight_frac=0.25, embedding_frac=0.5, bias_frac=0.5),
    optim=OptimSpec(steps=120, batch=32, context=16, lr=0.06, eps=0.01, warmup=0.05),
    nmse_coef=0.15,
    kl_to_sparse_coef=0.15,
    kl_to_dense_coef=0.15,
    kl_plain_coef=2.0,
    crossing_share=0.2,
    kl_share=0.25,
)
PRUNE = PruneSpec(
    steps=40,
    pairs=16,
    lr=0.03,
    k_coefs=(1e-3,),
    edge_steps=10,
    edge_k_coefs=(1e-3,),
    targets=(),
    select_pairs=64,
    trial_pairs=32,
    held_out_pairs=64,
    necessity=0.0,
    mean_tokens=2048,
    controls=0,
)
SCEPTICAL = PRUNE.model_copy(update={"standard": "robust", "controls": 5})
QUICK = PRUNE.model_copy(update={"granularity": "node", "steps": 8})  # where what is found is not the question


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> CorpusSpec:
    """A corpus of nothing but loop headers, from the train split of the task."""
    path = tmp_path_factory.mktemp("loops") / "loops.jsonl"
    with open(path, "w") as file:
        for number, pair in enumerate(itertools.islice(find_task(TASK).pairs("train"), 1500)):
            for text in (f"{pair.positive} in {NOUNS[number % len(NOUNS)]}:", f"{pair.negative}:"):
                file.write(json.dumps({"text": text}) + "\n")
    return CorpusSpec(sources=(str(path),))


@pytest.fixture(scope="module")
def dense(loops: CorpusSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folder of a train job: a GPT-2 of one layer that has seen loop headers."""
    optim = OptimSpec(steps=150, batch=32, context=16, lr=8e-3, beta2=0.99, eps=1e-8, warmup=0.05)
    spec = TrainSpec(architecture="gpt2", vocab_size=400, model=SHAPE, optim=optim)
    out = tmp_path_factory.mktemp("dense") / "result"
    run_job(JobSpec(kind="train", corpus=loops, train=spec), out, threads=1)
    return out


def circuit_spec(model: Path, loops: CorpusSpec, **changes) -> JobSpec:
    facts = {"kind": "circuit", "model": str(model), "tasks": (TASK,), "target_loss": 0.6}
    return JobSpec(**(facts | {"corpus": loops, "bridge": BRIDGE, "prune": PRUNE} | changes))


@pytest.fixture(scope="module")
def spec(dense: Path, loops: CorpusSpec) -> JobSpec:
    return circuit_spec(dense / "model", loops)


@pytest.fixture(scope="module")
def events() -> list[dict]:
    return []


@pytest.fixture(scope="module")
def result(spec: JobSpec, events: list[dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folder of a whole circuit job."""
    out = tmp_path_factory.mktemp("circuit") / "result"
    run_job(spec, out, Progress(events.append), threads=1)
    return out


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def numbers_of(folder: Path) -> dict:
    return json.loads((folder / "circuits" / TASK / "result.json").read_text())


def circuit_bytes(folder: Path) -> bytes:
    return (folder / "circuits" / TASK / "circuit.json").read_bytes()


def test_a_train_job_leaves_a_model_its_card_and_its_numbers(dense: Path):
    assert files_of(dense) == {
        "spec.json",
        "result.json",
        "metrics.jsonl",
        "manifest.json",
        *(
            f"model/{name}"
            for name in (
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
                "README.md",
            )
        ),
    }
    files.verify_manifest(dense)
    numbers = json.loads((dense / "result.json").read_text())
    assert set(numbers) == {
        "model",
        "seed",
        "vocab_size",
        "parameters",
        "nonzeros",
        "nonzero_share",
        "corpus_tokens",
        "trained_tokens",
        "held_out_loss",
        "task_loss",
        "shifted_accuracy",
    }
    assert numbers["trained_tokens"] == 150 * 32 * 16
    assert numbers["held_out_loss"] < math.log(400) - 2
    assert set(numbers["task_loss"]) >= {"quote_close", "bracket_counting", "for_while"}


def test_a_train_jobs_numbers_are_those_of_its_model(dense: Path, loops: CorpusSpec):
    from transformers import AutoModelForCausalLM

    from extractor.data.build_corpus import build_corpus
    from extractor.models.tokenizer import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(dense / "model").eval()
    numbers = json.loads((dense / "result.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == numbers["parameters"]
    ids = build_corpus(loops, load_tokenizer(dense / "model")).held_out_batch(0, 256, 16)
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(numbers["held_out_loss"], abs=1e-4)


def test_the_circuits_for_other_targets_are_kept_with_the_numbers_of_the_curve(result: Path):
    folder = result / "circuits" / TASK
    others, numbers = (files.read_json(folder / name) for name in ("others.json", "result.json"))
    shown = files.read_json(folder / "circuit.json")
    curve = {row["target"]: row for row in numbers["curve"]}
    assert sorted([*(one["target"] for one in others), numbers["target_loss"]]) == sorted(curve)
    for one in others:
        row = curve[one["target"]]
        assert (one["size"], one["loss"], one["met"]) == ([row["nodes"], row["edges"]], row["loss"], row["met"])
        assert (len(one["nodes"]), len(one["edges"])) == (row["nodes"], row["edges"])
        assert {end for source, target, _ in one["edges"] for end in (source, target)} <= set(one["nodes"])
    weights = {(edge["source"], edge["target"]): edge["weight"] for edge in shown["edges"]}
    again = [(weight, weights[a, b]) for one in others for a, b, weight in one["edges"] if (a, b) in weights]
    assert all(weight == pytest.approx(own, abs=1e-6) for weight, own in again)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(f"{one['standard']}, {one['target']:g} nats" in page for one in others)


def test_a_circuit_job_leaves_exactly_the_documented_files(result: Path):
    model = ["config.json", "generation_config.json", "model.safetensors", *TRAVELLING]
    model += "dense.json faithfulness.json tokenizer.json tokenizer_config.json".split()
    bridges = "README.md adapter_config.json adapter_model.safetensors".split()
    circuit = (
        "circuit.json circuit.svg circuit.png report.html result.json means.safetensors held_out.safetensors conditions.safetensors "
        "compiled.safetensors tokens.json others.json"
    ).split()
    assert files_of(result) == {
        "spec.json",
        "metrics.jsonl",
        "manifest.json",
        *(f"model/{name}" for name in model),
        *(f"model/bridges/{name}" for name in bridges),
        *(f"circuits/{TASK}/{name}" for name in circuit),
    }
    assert set(files.verify_manifest(result)) == files_of(result) - {"manifest.json"}


def test_the_result_has_exactly_the_documented_keys(result: Path):
    numbers = numbers_of(result)
    assert set(numbers) == {
        "model",
        "task",
        "description",
        "labels",
        "target_loss",
        "seed",
        "algorithm",
        "granularity",
        "ablation",
        "standard",
        "standards",
        "circuit",
        "curve",
        "loss",
        "accuracy",
        "meets_target",
        "holds_for_dense",
        "why",
        "validation",
        "held_out_pairs",
        "seconds",
        "bridge",
        "causal",
        "steering",
    }
    assert set(numbers["loss"]) == set(numbers["accuracy"]) == {"full", "circuit", "without_circuit", "random"}
    assert set(numbers["bridge"]) == {
        *("dense_loss", "sparse_loss", "bigram_loss", "kl_dense_to_sparse", "agreement", "held_out_tokens"),
        *("nmse", "path_kl", "path_loss", "explained", "sources", "kl_dense_to_bigram", "loss_recovered", "prompts", "circuit"),
    }
    assert {name: len(kls) for name, kls in numbers["bridge"]["path_kl"].items()} == {"to_sparse": 3, "to_dense": 3}
    assert numbers["held_out_pairs"] == 64
    assert numbers["description"] == find_task(TASK).description
    assert numbers["meets_target"] is (numbers["loss"]["circuit"] <= 0.6)
    assert all(math.isfinite(v) for v in [*numbers["loss"].values(), *numbers["accuracy"].values()])


def test_the_circuit_does_the_task_better_than_chance_and_as_many_random_nodes(result: Path):
    loss = numbers_of(result)["loss"]
    assert loss["circuit"] < 0.66
    assert loss["circuit"] < loss["random"]
    assert loss["circuit"] < loss["without_circuit"]


def test_the_circuit_is_made_of_nodes_and_edges_of_the_saved_model(result: Path):
    from transformers import AutoModelForCausalLM

    import extractor.sparse  # noqa: F401

    circuit = Circuit.from_json(json.loads(circuit_bytes(result)))
    assert json.loads(circuit_bytes(result)) == json.loads(json.dumps(circuit.to_json()))
    numbers = numbers_of(result)
    assert (len(circuit.nodes), len(circuit.edges)) == (numbers["circuit"]["nodes"], numbers["circuit"]["edges"])
    assert 3 <= len(circuit.nodes) < 8 * 32 + 32
    model = AutoModelForCausalLM.from_pretrained(result / "model")
    means = load_file(result / "circuits" / TASK / "means.safetensors")
    kept = {site: torch.tensor(sorted(n.channel for n in circuit.nodes if n.site == site), dtype=torch.long) for site in means}
    assert 0 < len(circuit.edges) <= len(list(edges_between(model, kept)))
    ids = [node.id for node in circuit.nodes]
    assert len(set(ids)) == len(ids)
    assert all({edge.source, edge.target} <= set(ids) for edge in circuit.edges)
    assert all(node.mean == means[node.site][node.channel].item() for node in circuit.nodes)


def test_the_held_out_pairs_share_no_prompt_with_the_others(result: Path, dense: Path):
    from extractor.data.prompts import task_batch, tokenize_task
    from extractor.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(dense / "model")
    pairs = load_file(result / "circuits" / TASK / "held_out.safetensors")
    assert pairs["ids"].shape[0] == 128

    def prompts(ids: torch.Tensor, last: torch.Tensor) -> set[tuple[int, ...]]:
        return {tuple(row[: int(end) + 1].tolist()) for row, end in zip(ids, last, strict=True)}

    mine = prompts(pairs["ids"], pairs["last"])
    assert len(mine) == 128
    for split in ("train", "select"):
        batch = task_batch(tokenize_task(find_task(TASK), tokenizer), tokenizer, split, 500, 0, 32)
        assert not mine & prompts(batch.ids, batch.last)


@pytest.mark.slow
@pytest.mark.parametrize(("ablation", "count"), [("mean", 13), ("zero", 13), ("resample", 9)])
def test_the_circuits_figures_can_be_recomputed_from_its_files_alone(
    result: Path, loops: CorpusSpec, tmp_path: Path, no_pictures: None, ablation: str, count: int
):
    if ablation != "mean":
        spec = circuit_spec(result / "model", loops, prune=QUICK.model_copy(update={"ablation": ablation}))
        result = tmp_path / "out"
        run_job(spec, result, threads=1)
    script = ROOT / "tests" / "rerun_circuit.py"
    done = subprocess.run([sys.executable, script, result, TASK], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    figures = [line.split() for line in done.stdout.splitlines()]
    assert len(figures) == count
    for name, found, stored in figures:
        assert float(found) == pytest.approx(float(stored), abs=1e-4), name


def test_the_compiled_circuit_gives_first_answer_minus_second_unasked(result: Path):
    from extractor.circuits.compiled import CompiledCircuit

    folder = result / "circuits" / TASK
    compiled, circuit = CompiledCircuit.load(folder), json.loads((folder / "circuit.json").read_text())
    held_out = load_file(folder / "held_out.safetensors")
    assert compiled.answers.tolist() == circuit["answer_ids"]
    first, second = (torch.full_like(held_out["last"], answer) for answer in circuit["answer_ids"])
    assert torch.equal(compiled(held_out["ids"], held_out["last"]), compiled(held_out["ids"], held_out["last"], first, second))


def test_the_recomputation_knows_nothing_of_us():
    from test_arrows import imports_of

    assert imports_of(ROOT / "tests" / "rerun_circuit.py") == {
        "json",
        "sys",
        "pathlib",
        "torch",
        "torch.nn.functional",
        "safetensors.torch",
    }


def test_the_stages_are_told_in_order(result: Path, events: list[dict]):
    stages = [e for e in events if e["event"] == "stage"]
    assert [(e["stage"], e["index"], e["of"]) for e in stages] == [
        ("corpus", 1, 5),
        ("bridge", 2, 5),
        ("prune", 3, 5),
        ("validate", 4, 5),
        ("report", 5, 5),
    ]
    assert set(numbers_of(result)["seconds"]) >= {"corpus", "bridge", "prune", "validate"}
    log = [json.loads(line) for line in (result / "metrics.jsonl").read_text().splitlines()]
    assert [e["stage"] for e in log] == ["bridge"] * BRIDGE.optim.steps + ["prune-round0"] * 40 + ["prune-edges"] * 10


def test_the_phases_are_told_in_order_and_all_progress_has_the_times(result: Path, events: list[dict]):
    told = [e for e in events if e["event"] in ("stage", "progress")]
    assert all({"elapsed_seconds", "total_seconds_left"} <= e.keys() for e in told)
    assert [e["elapsed_seconds"] for e in told] == sorted(e["elapsed_seconds"] for e in told)
    phases = {stage: list(dict.fromkeys(e["phase"] for e in told if "phase" in e and e["stage"] == stage)) for stage in ("prune", "report")}
    assert phases["prune"][:2] == ["rank", "cut"]
    assert phases["prune"][-1] == "choose"
    assert {"nodes", "edges"} <= set(phases["prune"])
    assert [phase for phase in phases["report"] if phase != "steering"] == ["labels", "numbers", "compiled", "page"]
    assert {"losses", "roles", "mechanism"} <= {e.get("phase") for e in told if e["stage"] == "validate"}


def test_the_bridged_pair_opens_around_the_dense_model_it_was_made_for_with_the_numbers_it_was_told_by(result: Path, dense: Path):
    from extractor.bridges.faithfulness import faithfulness
    from extractor.bridges.pair import open_pair
    from extractor.data.build_corpus import build_corpus
    from extractor.models.tokenizer import load_tokenizer

    told = numbers_of(result)["bridge"]
    assert json.loads((result / "model" / "faithfulness.json").read_text()) == {k: told[k] for k in told if k not in ("prompts", "circuit")}
    pair = open_pair(result / "model")
    assert pair is not None
    facts = json.loads((result / "model" / "dense.json").read_text())
    assert (pair.facts, facts["model"], facts["merged"]) == (facts, str(dense / "model"), False)
    corpus = build_corpus(CorpusSpec(**json.loads((result / "spec.json").read_text())["corpus"]), load_tokenizer(result / "model"))
    found = faithfulness(pair, corpus, 16, 0)
    assert found["path_kl"]["to_dense"] == pytest.approx(told["path_kl"]["to_dense"], abs=1e-4)
    assert found["loss_recovered"]["mean"] == pytest.approx(told["loss_recovered"]["mean"], abs=1e-3)
    assert found["explained"]["mean"] == pytest.approx(told["explained"]["mean"], abs=1e-3)


@pytest.mark.slow
def test_a_second_task_on_the_same_bridging_still_knows_its_dense_model(result: Path, loops: CorpusSpec, tmp_path: Path):
    """`--model JOB`: the sparse model is pruned at once, and what came with it says which dense model it is bridged to."""
    run_job(circuit_spec(result / "model", loops, prune=QUICK), tmp_path / "out", threads=1)
    again, first = numbers_of(tmp_path / "out"), numbers_of(result)
    assert again["bridge"]["path_kl"] == first["bridge"]["path_kl"]
    assert again["bridge"]["prompts"] == first["bridge"]["prompts"]


def test_with_the_models_own_labels_the_right_answer_is_what_it_says(result: Path, loops: CorpusSpec, tmp_path: Path, monkeypatch):
    spec = circuit_spec(result / "model", loops, labels="model", prune=QUICK)
    monkeypatch.setattr("extractor.jobs.find_circuit.MIN_ANSWER_SHARE", 0.49)
    with pytest.raises(TaskNotExpressible, match="there is no choice between answers to explain"):
        run_job(spec, tmp_path / "one-sided", threads=1)
    monkeypatch.setattr("extractor.jobs.find_circuit.MIN_ANSWER_SHARE", 0.001)
    run_job(spec, tmp_path / "out", threads=1)
    assert numbers_of(tmp_path / "out")["bridge"]["prompts"]["accuracy"]["dense"] == 1.0
    pairs = load_file(tmp_path / "out" / "circuits" / TASK / "held_out.safetensors")
    assert (pairs["correct"] != pairs["wrong"]).all()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of circuits that hold nearly the full model little is drawn: all of it would take longer than finding them."""
    monkeypatch.setattr("extractor.report.picture.part.MAX_EDGES", 100)


@pytest.mark.slow
def test_a_corpus_the_dense_model_does_not_know_is_said_to_be_one(dense: Path, tmp_path: Path, no_pictures: None):
    text = tmp_path / "other.txt"
    text.write_text("".join(f"{i * 7919 % 1000} {i * 104729 % 997}\n" for i in range(4000)))
    told: list[dict] = []
    spec = circuit_spec(
        dense / "model",
        CorpusSpec(sources=(str(text),)),
        bridge=BRIDGE.model_copy(update={"optim": OptimSpec(steps=2, batch=4, context=16)}),
        prune=QUICK,
    )
    run_job(spec, tmp_path / "out", Progress(told.append), threads=1)
    warnings = [e["message"] for e in told if e["event"] == "note" and "warning" in e["message"]]
    assert len(warnings) == 2
    assert "nats per token better than a bigram model" in warnings[0]
    assert "gain over bigrams cannot be given: on the held-out text the dense model" in warnings[1]
    from worker.cli.views.verdicts import verdict_lines

    lines = dict(line.split(": ", 1) for line in verdict_lines(numbers_of(tmp_path / "out")))
    assert list(lines) == [
        "circuit",
        "without its edges alone",
        "robust standard",
        "without calibration",
        "null searches",
        "shifted prompts",
        "sparse model",
        "causal agreement",
        "steering",
    ]
    assert "is no better than a bigram model" in lines["sparse model"]


def test_a_finished_job_is_only_verified_when_run_again(spec: JobSpec, result: Path):
    before = {p: p.stat().st_mtime_ns for p in result.rglob("*")}
    told: list[dict] = []
    run_job(spec, result, Progress(told.append), threads=1)
    assert told == []
    assert {p: p.stat().st_mtime_ns for p in result.rglob("*")} == before


def test_a_finished_job_that_was_altered_is_refused(spec: JobSpec, result: Path, tmp_path: Path):
    import shutil

    copy = Path(shutil.copytree(result, tmp_path / "copy"))
    (copy / "circuits" / TASK / "circuit.json").write_text("{}")
    with pytest.raises(BrokenArtifact, match="altered"):
        run_job(spec, copy, threads=1)


def test_another_spec_does_not_go_into_a_finished_folder(spec: JobSpec, result: Path):
    with pytest.raises(OutputError, match="another spec"):
        run_job(spec.model_copy(update={"seed": 1}), result, threads=1)


def stop_in(stage: str, after: int) -> Progress:
    """A listener that asks for a stop when it has been asked `after` times whether to, in the given stage."""
    here: list[str] = []
    asked = itertools.count()

    def listen(event: dict) -> None:
        if event["event"] == "stage":
            here[:] = [event["stage"]]

    return Progress(listen, lambda: here == [stage] and next(asked) >= after)


def same_results(one: Path, two: Path) -> None:
    assert circuit_bytes(one) == circuit_bytes(two)
    for name in ("model/model.safetensors", "model/bridges/adapter_model.safetensors", "metrics.jsonl", f"circuits/{TASK}/circuit.svg"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    first, second = numbers_of(one), numbers_of(two)
    assert first.pop("seconds").keys() == second.pop("seconds").keys()
    assert first == second


@pytest.mark.slow
def test_the_same_job_twice_leaves_the_same_bytes(spec: JobSpec, result: Path, tmp_path: Path):
    run_job(spec, tmp_path / "again", threads=1, bridged=tmp_path / "kept")
    same_results(result, tmp_path / "again")

    told: list[dict] = []
    run_job(spec, tmp_path / "copied", Progress(told.append), threads=1, bridged=tmp_path / "kept")
    same_results(result, tmp_path / "copied")
    assert not [event for event in told if event["event"] == "progress" and event["stage"] == "bridge"]
    assert any("bridged model of an earlier job" in event.get("message", "") for event in told)


def test_a_job_stopped_in_every_long_stage_ends_in_the_same_bytes(spec: JobSpec, result: Path, tmp_path: Path):
    out = tmp_path / "stopped"
    for stage, after in (("bridge", 7), ("bridge", 60), ("prune", 9), ("prune", 33)):
        with pytest.raises(Stopped):
            run_job(spec, out, stop_in(stage, after), threads=1)
        assert not (out / "manifest.json").exists()
        assert not (out / "circuits").exists()
    run_job(spec, out, threads=1)
    same_results(result, out)
    assert not (out / ".work").exists()


@pytest.mark.slow
def test_a_job_of_both_standards_stopped_in_the_robust_search_ends_in_the_same_bytes(
    result: Path, loops: CorpusSpec, tmp_path: Path, no_pictures: None
):
    told: list[dict] = []
    spec = circuit_spec(result / "model", loops, prune=SCEPTICAL)
    run_job(spec, tmp_path / "whole", Progress(told.append), threads=1)
    steps = [e for e in told if e["event"] == "step" and e["stage"] == "prune"]
    with pytest.raises(Stopped):
        run_job(spec, tmp_path / "out", stop_in("prune", len(steps) * 4 // 5), threads=1)
    run_job(spec, tmp_path / "out", threads=1)
    same_results(tmp_path / "whole", tmp_path / "out")
    numbers = numbers_of(tmp_path / "out")
    assert numbers["standards"].keys() == {"paper", "robust"}
    shown = numbers["standards"][numbers["standard"]]
    assert numbers["circuit"] == {name: shown[name] for name in ("nodes", "edges")}
    assert numbers["loss"]["circuit"] == pytest.approx(shown["loss"], abs=1e-5)
    assert (tmp_path / "out" / "circuits" / TASK / "paper.json").is_file() == (numbers["standard"] == "robust")
    found = numbers["validation"]
    assert found["null_searches"]["paper"].keys() == {"task", "inverted", "coin", "random_weights"}
    assert found["random_circuits"]["draws"] == 5
    assert found["faithfulness"]["paper"].keys() == {"node", "edge"}


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["the folder", "the result"])
def test_a_sparse_model_is_copied_and_pruned_at_once(result: Path, loops: CorpusSpec, tmp_path: Path, reference: str):
    given = result / "model" if reference == "the folder" else result
    run_job(circuit_spec(given, loops), tmp_path / "out", threads=1)
    out = tmp_path / "out"
    assert (out / "model" / "model.safetensors").read_bytes() == (result / "model" / "model.safetensors").read_bytes()
    assert {json.loads(line)["stage"] for line in (out / "metrics.jsonl").read_text().splitlines()} == {"prune-round0", "prune-edges"}
    found, original = json.loads(circuit_bytes(out)), json.loads(circuit_bytes(result))
    assert found.pop("model") == str(given)
    original.pop("model")
    assert found == original


@pytest.mark.slow
def test_several_k_coefs_are_one_round_each(result: Path, loops: CorpusSpec, tmp_path: Path):
    prune = PRUNE.model_copy(update={"k_coefs": (1e-3, 1e-2), "population": 1, "steps": 8})
    run_job(circuit_spec(result / "model", loops, prune=prune), tmp_path / "out", threads=1)
    log = (json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert [stage for stage, _ in itertools.groupby(e["stage"] for e in log)] == ["prune-round0", "prune-round1", "prune-edges"]


def test_a_target_out_of_reach_is_reported_and_not_hidden(result: Path, loops: CorpusSpec, tmp_path: Path, no_pictures: None):
    run_job(circuit_spec(result / "model", loops, prune=QUICK, target_loss=1e-6), tmp_path / "out", threads=1)
    numbers = numbers_of(tmp_path / "out")
    assert numbers["meets_target"] is False
    assert "target 1e-06" in numbers["why"]
    assert 0 < numbers["loss"]["circuit"] <= numbers["loss"]["full"] + 0.1
    files.verify_manifest(tmp_path / "out")


def test_a_handful_of_held_out_pairs_will_do(result: Path, loops: CorpusSpec, tmp_path: Path):
    prune = QUICK.model_copy(update={"held_out_pairs": 2, "select_pairs": 2})
    run_job(circuit_spec(result / "model", loops, prune=prune), tmp_path / "out", threads=1)
    assert numbers_of(tmp_path / "out")["held_out_pairs"] == 2


def test_a_model_that_is_gone_leaves_nothing(spec: JobSpec, tmp_path: Path):
    with pytest.raises(ModelNotFound):
        run_job(spec.model_copy(update={"model": "/nowhere"}), tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_a_task_the_tokenizer_cannot_ask_is_refused_before_any_training(dense: Path, loops: CorpusSpec, tmp_path: Path):
    with pytest.raises(TaskNotExpressible):
        run_job(circuit_spec(dense / "model", loops, tasks=("bracket_counting",)), tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def own_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file with short loop headers, twenty of each split."""
    path = tmp_path_factory.mktemp("own") / "my_loops.jsonl"
    short = {split: (pair for pair in find_task(TASK).pairs(split, 5) if "def" not in pair.positive) for split in SPLITS}
    pairs = [pair for split in SPLITS for pair in itertools.islice(short[split], 20)]
    lines = [{"positive": pair.positive, "negative": pair.negative, "answers": [" in", ":"]} for pair in pairs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def three(dense: Path, loops: CorpusSpec, own_task: Path) -> JobSpec:
    """A circuit job of three tasks: one that the tokenizer cannot ask, one of tasks/, one of a file."""
    chosen = choose(["bracket_counting", TASK, str(own_task)])
    return circuit_spec(dense / "model", loops, tasks=chosen.names, task_files=chosen.files, prune=QUICK)


@pytest.fixture(scope="module")
def several(three: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """Its result, and what it told."""
    told: list[dict] = []
    out = tmp_path_factory.mktemp("several") / "result"
    run_job(three, out, Progress(told.append), threads=1)
    return out, told


def test_a_circuit_job_of_several_tasks_bridges_once_and_tells_of_each_task(several: tuple[Path, list[dict]], own_task: Path):
    out, told = several
    files.verify_manifest(out)
    stages = [(e["stage"], e["index"], e["of"]) for e in told if e["event"] == "stage"]
    names = [f"{stage} {task}" for task in (TASK, "my_loops") for stage in ("prune", "validate", "report")]
    assert stages == [("corpus", 1, 11), ("bridge", 2, 11), *((name, number, 11) for number, name in enumerate(names, 6))]

    rows = json.loads((out / "tasks.json").read_text())
    assert [row["task"] for row in rows] == ["bracket_counting", TASK, "my_loops"]
    numbers_of_dense = ["dense_loss", "dense_accuracy", "agreement", "holds_for_dense"]
    fields = ["task", "nodes", "edges", "loss", "full_loss", "accuracy", "without", "random", "meets_target", "why", *numbers_of_dense]
    fields += ["standard", "paper_edges"]
    assert all(sorted(row) == sorted(fields) for row in rows)
    refused, *made = rows
    assert {refused[name] for name in fields[1:8]} == {None}
    assert refused["meets_target"] is False
    assert "cannot be asked under this tokenizer" in refused["why"]
    assert {p.name for p in (out / "circuits").iterdir()} == {TASK, "my_loops"}
    for row in made:
        numbers = json.loads((out / "circuits" / row["task"] / "result.json").read_text())
        assert (row["nodes"], row["edges"]) == (numbers["circuit"]["nodes"], numbers["circuit"]["edges"])
        losses = [numbers["loss"][name] for name in ("circuit", "full", "without_circuit", "random")]
        assert [row[name] for name in ("loss", "full_loss", "without", "random")] == losses
        assert row["accuracy"] == numbers["accuracy"]["circuit"]
        assert (row["why"] is None) is is_met(row) is is_met(numbers)
        assert set(numbers["bridge"]) >= {"explained", "sources", "loss_recovered", "prompts", "circuit"}
        prompts = numbers["bridge"]["prompts"]
        of_dense = [prompts["loss"]["dense"], prompts["accuracy"]["dense"], prompts["agreement"]]
        assert [row[name] for name in numbers_of_dense[:3]] == of_dense
        assert set(numbers["seconds"]) >= {"corpus", "bridge", "prune", "validate"}
    links = re.findall(r'href="(circuits/[^"]+)"', (out / "index.html").read_text())
    assert links == [f"circuits/{row['task']}/report.html" for row in made]
    assert all((out / link).is_file() for link in links)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory, own_task: Path) -> Path:
    """A task that no model of loop headers does: the answers of for and while exchanged."""
    path = tmp_path_factory.mktemp("turned") / "turned.jsonl"
    lines = [json.loads(line) for line in own_task.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"answers": [":", " in"]}) + "\n" for line in lines))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_a_task_that_the_dense_model_does_not_do_is_said_to_be_none_of_its(spec: JobSpec, turned: Path, tmp_path: Path, strict: bool):
    chosen, told = choose([str(turned)]), []
    changes = {"tasks": chosen.names, "task_files": chosen.files, "strict": strict, "prune": QUICK}
    run_job(spec.model_copy(update=changes), tmp_path / "out", Progress(told.append), threads=1)
    files.verify_manifest(tmp_path / "out")
    circuit = tmp_path / "out" / "circuits" / "turned"
    if not strict:
        assert not (tmp_path / "out" / "tasks.json").exists()
        numbers = json.loads((circuit / "result.json").read_text())
        assert numbers["holds_for_dense"] is False
        assert numbers["why"].startswith("the dense model does not do this task: ")
        assert numbers["bridge"]["prompts"]["accuracy"]["dense"] < 0.5
        assert "Not the dense model&rsquo;s" in (circuit / "report.html").read_text()
        return
    assert not circuit.exists()
    (row,) = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert (row["task"], row["nodes"], row["holds_for_dense"], row["meets_target"]) == ("turned", None, False, False)
    assert "the dense model does not do this task: " in row["why"]
    assert "--labels model" in row["why"]
    assert row["dense_loss"] > 0.7
    assert row["dense_accuracy"] < 0.5
    assert any("no circuit is sought: the dense model does not do" in e["message"] for e in told if e["event"] == "note")


def test_a_task_of_a_file_is_asked_with_the_pairs_it_has_and_described_by_its_file(several: tuple[Path, list[dict]], own_task: Path):
    (task,) = choose([str(own_task)]).tasks
    numbers = json.loads((several[0] / "circuits" / "my_loops" / "result.json").read_text())
    held = task.available("held_out")
    assert held is not None
    assert held < PRUNE.held_out_pairs
    assert numbers["held_out_pairs"] == held
    assert numbers["description"] == task.description == "60 pairs of my_loops.jsonl, answered by ' in' or ':'"
    assert load_file(several[0] / "circuits" / "my_loops" / "held_out.safetensors")["ids"].shape[0] == 2 * held


@pytest.mark.slow
def test_of_several_tasks_each_has_the_circuit_that_it_would_have_alone(several: tuple[Path, list[dict]], three: JobSpec, tmp_path: Path):
    run_job(three.model_copy(update={"tasks": (TASK,), "task_files": ()}), tmp_path / "alone", threads=1)
    assert circuit_bytes(tmp_path / "alone") == circuit_bytes(several[0])
    assert not (tmp_path / "alone" / "tasks.json").exists()


@pytest.mark.slow
def test_of_several_tasks_finished_circuits_are_not_made_again(several: tuple[Path, list[dict]], three: JobSpec, tmp_path: Path):
    out, told = tmp_path / "stopped", []
    with pytest.raises(Stopped):
        run_job(three, out, stop_in("prune my_loops", 9), threads=1)
    assert {p.name for p in (out / "circuits").iterdir()} == {TASK}
    run_job(three, out, Progress(told.append), threads=1)
    assert not [e for e in told if e["event"] == "stage" and e["stage"].endswith(TASK)]
    timed = {f"circuits/{task}/{name}" for task in (TASK, "my_loops") for name in ("result.json", "report.html")}
    assert files_of(out) == files_of(several[0])
    for name in files_of(out) - timed - {"manifest.json"}:
        assert (out / name).read_bytes() == (several[0] / name).read_bytes(), name


def test_tasks_of_which_none_can_be_asked_and_changed_files_are_refused_before_any_work(three: JobSpec, own_task: Path, tmp_path: Path):
    none = three.model_copy(update={"tasks": ("bracket_counting", "else_elif"), "task_files": ()})
    with pytest.raises(TaskNotExpressible, match="none of 2 tasks can be asked of this model; the first: task 'bracket_counting'"):
        run_job(none, tmp_path / "out", threads=1)
    changed = tmp_path / "my_loops.jsonl"
    changed.write_text(own_task.read_text().replace("while", "while not"))
    moved = three.task_files[0].model_copy(update={"path": str(changed)})
    with pytest.raises(SpecError, match="was changed since the job was made"):
        run_job(three.model_copy(update={"task_files": (moved,)}), tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_a_task_file_whose_prompts_the_model_cannot_read_is_refused_before_any_work(three: JobSpec, own_task: Path, tmp_path: Path):
    lines = own_task.read_text().splitlines()
    lines[4] = json.dumps({"positive": "for x" * 50, "negative": "for y" * 50, "answers": [" in", ":"]})
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    chosen = choose([str(tmp_path / "long.jsonl")])
    with pytest.raises(TaskNotExpressible, match=r"line 5: .* 1 of 60 pairs"):
        run_job(three.model_copy(update={"tasks": chosen.names, "task_files": chosen.files}), tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_a_result_that_an_earlier_version_specified_in_its_words_goes_on(result: Path, spec: JobSpec, tmp_path: Path):
    import shutil

    copy = Path(shutil.copytree(result, tmp_path / "copy"))
    before = json.loads((copy / "spec.json").read_text())
    (before["task"],) = before.pop("tasks")
    before["tasks"] = []
    del before["task_files"]
    (copy / "spec.json").write_text(json.dumps(before))
    (copy / "manifest.json").unlink()
    files.write_manifest(copy)
    told: list[dict] = []
    run_job(spec, copy, Progress(told.append), threads=1)
    assert told == []


@pytest.fixture
def sparse_train(loops: CorpusSpec) -> JobSpec:
    optim = OptimSpec(steps=20, batch=16, context=8, lr=0.1)
    return JobSpec(kind="train", corpus=loops, train=TrainSpec(vocab_size=400, model=SHAPE, optim=optim))


def test_a_sparse_train_job_leaves_a_model_that_can_be_pruned(sparse_train: JobSpec, loops: CorpusSpec, tmp_path: Path, no_pictures: None):
    run_job(sparse_train, tmp_path / "sparse", threads=1)
    numbers = json.loads((tmp_path / "sparse" / "result.json").read_text())
    assert numbers["nonzero_share"] < 0.7
    card = (tmp_path / "sparse" / "model" / "README.md").read_text()
    assert "extract run spec.json" in card
    assert "import extractor.sparse" in card
    run_job(circuit_spec(tmp_path / "sparse", loops, prune=QUICK), tmp_path / "out", threads=1)
    assert "bridge" not in numbers_of(tmp_path / "out")


def test_a_stopped_train_job_ends_in_the_same_bytes(sparse_train: JobSpec, tmp_path: Path):
    run_job(sparse_train, tmp_path / "calm", threads=1)
    for after in (3, 11):
        with pytest.raises(Stopped):
            run_job(sparse_train, tmp_path / "stopped", stop_in("train", after), threads=1)
    run_job(sparse_train, tmp_path / "stopped", threads=1)
    for name in files_of(tmp_path / "calm"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name


@pytest.fixture(scope="module")
def trained_and_pruned(loops: CorpusSpec) -> JobSpec:
    """A sparse model of loop headers, and its circuits: for a task that it can do, and for one that its tokenizer cannot ask."""
    optim = OptimSpec(steps=150, batch=64, context=8, lr=0.02, eps=1e-8, warmup=0.05)
    train = TrainSpec(vocab_size=400, model=SHAPE, sparsity=BRIDGE.sparsity, optim=optim)
    return JobSpec(kind="train", tasks=("bracket_counting", TASK), target_loss=0.6, corpus=loops, train=train, prune=PRUNE)


@pytest.fixture(scope="module")
def both(trained_and_pruned: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """Its result, and what it told."""
    told: list[dict] = []
    out = tmp_path_factory.mktemp("both") / "result"
    run_job(trained_and_pruned, out, Progress(told.append), threads=1)
    return out, told


@pytest.mark.slow
def test_a_train_job_with_tasks_leaves_their_circuits_and_says_of_each_how_it_went(both: tuple[Path, list[dict]]):
    out, _ = both
    files.verify_manifest(out)
    numbers = json.loads((out / "result.json").read_text())
    refused, found = numbers["circuits"]["bracket_counting"], numbers["circuits"][TASK]
    assert refused["nodes"] is refused["edges"] is refused["loss"] is None
    assert refused["meets_target"] is False
    assert "cannot be asked under this tokenizer" in refused["why"]
    assert not (out / "circuits" / "bracket_counting").exists()
    own = numbers_of(out)
    assert (found["nodes"], found["edges"]) == (own["circuit"]["nodes"], own["circuit"]["edges"])
    assert (found["loss"], found["full_loss"]) == (own["loss"]["circuit"], own["loss"]["full"])
    assert found["meets_target"] is own["meets_target"] is True
    assert found["why"] is None
    assert set(own["seconds"]) == {"corpus", "train", "prune", "validate"}
    assert numbers["held_out_loss"] < math.log(400) - 2


def test_the_stages_of_a_train_job_name_the_task_they_are_for(both: tuple[Path, list[dict]]):
    out, told = both
    stages = [(e["stage"], e["index"], e["of"]) for e in told if e["event"] == "stage"]
    # 3 to 5 belong to the task that could not be asked.
    after = [(f"{name} {TASK}", number, 8) for number, name in enumerate(("prune", "validate", "report"), 6)]
    assert stages == [("corpus", 1, 8), ("train", 2, 8), *after]
    log = [json.loads(line)["stage"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert log == ["train"] * 150 + [f"prune-round0 {TASK}"] * 40 + [f"prune-edges {TASK}"] * 10


def test_a_circuit_of_a_train_job_is_the_one_that_its_model_alone_would_have_given(both: tuple[Path, list[dict]], loops, tmp_path: Path):
    out, _ = both
    run_job(circuit_spec(out / "model", loops), tmp_path / "out", threads=1)
    one, two = json.loads(circuit_bytes(out)), json.loads(circuit_bytes(tmp_path / "out"))
    assert one.pop("model") == "sparse GPT of width 32"
    assert two.pop("model") == str(out / "model")
    assert one == two


@pytest.mark.slow
def test_a_train_job_stopped_in_training_and_in_pruning_ends_in_the_same_bytes(both, trained_and_pruned: JobSpec, tmp_path: Path):
    calm, out = both[0], tmp_path / "stopped"
    for stage, after in (("train", 30), (f"prune {TASK}", 9), (f"prune {TASK}", 33), (f"validate {TASK}", 0)):
        with pytest.raises(Stopped):
            run_job(trained_and_pruned, out, stop_in(stage, after), threads=1)
        assert not (out / "manifest.json").exists()
    run_job(trained_and_pruned, out, threads=1)
    assert files_of(out) == files_of(calm)
    timed = {f"circuits/{TASK}/result.json", f"circuits/{TASK}/report.html", "manifest.json"}
    for name in files_of(calm) - timed:
        assert (out / name).read_bytes() == (calm / name).read_bytes(), name
    first, second = numbers_of(calm), numbers_of(out)
    first.pop("seconds"), second.pop("seconds")
    assert first == second


def test_a_circuit_that_an_earlier_attempt_left_is_not_made_again(both, trained_and_pruned: JobSpec, tmp_path: Path):
    import shutil

    copy = Path(shutil.copytree(both[0], tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    told: list[dict] = []
    run_job(trained_and_pruned, copy, Progress(told.append), threads=1)
    assert [e["stage"] for e in told if e["event"] == "stage"] == ["corpus"]
    assert (copy / "manifest.json").read_bytes() == (both[0] / "manifest.json").read_bytes()


def test_of_a_circuit_too_large_to_look_at_the_strongest_edges_are_drawn(both, trained_and_pruned: JobSpec, tmp_path: Path, monkeypatch):
    import shutil

    out = Path(shutil.copytree(both[0], tmp_path / "copy"))
    (out / "manifest.json").unlink()
    shutil.rmtree(out / "circuits")
    monkeypatch.setattr("extractor.report.picture.part.MAX_EDGES", 3)
    run_job(trained_and_pruned, out, threads=1)
    assert files_of(out / "circuits") == files_of(both[0] / "circuits")
    assert "; shown: the 3 edges of largest weight" in (out / "circuits" / TASK / "circuit.svg").read_text()
    assert circuit_bytes(out) == circuit_bytes(both[0])


def test_circuits_of_a_model_that_cannot_be_pruned_are_refused_before_any_training(trained_and_pruned: JobSpec, tmp_path: Path):
    assert trained_and_pruned.train is not None
    train = trained_and_pruned.train.model_copy(update={"architecture": "gpt2"})
    with pytest.raises(UnsupportedModel, match="this job trains a gpt2"):
        run_job(trained_and_pruned.model_copy(update={"train": train}), tmp_path / "out", threads=1)
    with pytest.raises(UnknownTask, match="quote_open"):
        run_job(trained_and_pruned.model_copy(update={"tasks": (TASK, "quote_open")}), tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def matching(sparse_train: JobSpec, loss: float) -> JobSpec:
    assert sparse_train.train is not None
    optim = sparse_train.train.optim.model_copy(update={"steps": 60, "batch": 32})
    return sparse_train.model_copy(update={"train": sparse_train.train.model_copy(update={"match_loss": loss, "optim": optim})})


@pytest.mark.slow
def test_a_train_job_that_matches_a_loss_keeps_the_width_that_does_and_the_curve(sparse_train: JobSpec, tmp_path: Path):
    spec = matching(sparse_train, 4.2)
    run_job(spec, tmp_path / "calm", threads=1)
    numbers = json.loads((tmp_path / "calm" / "result.json").read_text())
    match = numbers["match"]
    kept = next(c for c in match["curve"] if c["d_model"] == match["d_model"])
    assert {name: numbers[name] for name in ("parameters", "nonzeros", "held_out_loss")} == {
        k: v for k, v in kept.items() if k != "d_model"
    }
    assert json.loads((tmp_path / "calm" / "model" / "config.json").read_text())["d_model"] == match["d_model"]
    assert match["reached"] is (kept["held_out_loss"] <= 4.2)
    assert 32 in {c["d_model"] for c in match["curve"]}
    assert len(match["curve"]) >= 2

    told: list[dict] = []
    stopping = stop_in(f"train width {match['curve'][-1]['d_model']}", 20)
    with pytest.raises(Stopped):
        run_job(spec, tmp_path / "stopped", stopping, threads=1)
    before = {p.name for p in (tmp_path / "stopped" / ".work").glob("width-*") if (p / "model").is_dir()}
    run_job(spec, tmp_path / "stopped", Progress(told.append), threads=1)
    again = {e["stage"].replace("train width ", "width-") for e in told if e["event"] == "stage"} - {"corpus"}
    assert not before & again
    for name in files_of(tmp_path / "calm"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name


@pytest.mark.slow
def test_a_loss_out_of_reach_is_said_so_and_the_closest_width_is_kept(sparse_train: JobSpec, tmp_path: Path):
    run_job(matching(sparse_train, 0.01), tmp_path / "out", threads=1)
    match = json.loads((tmp_path / "out" / "result.json").read_text())["match"]
    assert [c["d_model"] for c in match["curve"]] == [32, 64, 128]
    assert match["reached"] is False
    assert match["d_model"] == min(match["curve"], key=lambda c: c["held_out_loss"])["d_model"]
    assert "0.01 nats is out of reach" in match["why"]


def test_a_disk_that_fills_up_is_one_line_and_the_job_can_go_on(sparse_train: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import errno
    import os

    plain: Callable[[int], None] = os.fsync
    written = itertools.count()

    def fills_up(fd: int) -> None:
        if next(written) >= 1:  # the spec still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        with pytest.raises(ExtractorError, match="disk full"):
            run_job(sparse_train, tmp_path / "out", threads=1)
    assert not [name for name in files_of(tmp_path / "out") if name.endswith(".tmp")]
    run_job(sparse_train, tmp_path / "out", threads=1)
    files.verify_manifest(tmp_path / "out")


def test_a_disk_that_is_full_when_the_model_is_saved_is_one_line(sparse_train: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):

    def no_space(*_, **__):
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", no_space)
    with pytest.raises(ExtractorError, match="disk full"):
        run_job(sparse_train, tmp_path / "out", threads=1)
    assert not (tmp_path / "out" / "model").exists()
    assert not (tmp_path / "out" / "model.tmp").exists()
