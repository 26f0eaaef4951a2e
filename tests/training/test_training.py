"""Loops that can be interrupted: a resumed run ends in the bits of an undisturbed one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import VOCABULARY, environment, random_gpt2, stop_after

from extractor.bridges.train import train_bridges
from extractor.bridges.tuner import site_parameters
from extractor.errors import BrokenArtifact, TrainingDiverged
from extractor.models.load import DenseModel
from extractor.progress import Progress, Stopped
from extractor.spec.schema import BridgeSpec, OptimSpec, SparseModelSpec, SparsitySpec, TrainSpec
from extractor.training.checkpoints import Checkpoints, MetricsLog, TrainState
from extractor.training.loop import Loop, LoopEnvironment, run_loop
from extractor.training.train_gpt2 import new_gpt2, train_gpt2
from extractor.training.train_sparse import train_sparse

STEPS = 12
SHAPE = SparseModelSpec(n_layer=1, d_model=16, d_head=8, mlp_ratio=2, n_ctx=16)
OPTIM = OptimSpec(steps=STEPS, batch=4, context=16, lr=0.05)
SPARSITY = SparsitySpec(weight_frac=0.5, embedding_frac=0.3)
GPT2_OPTIM = OPTIM.model_copy(update={"lr": 3e-3, "eps": 1e-8})


def sparse(corpus, env) -> dict[str, torch.Tensor]:
    model = train_sparse(TrainSpec(model=SHAPE, optim=OPTIM, sparsity=SPARSITY), corpus, VOCABULARY, 0, env)
    return dict(model.state_dict())


def dense(corpus, env) -> dict[str, torch.Tensor]:
    model = train_gpt2(TrainSpec(architecture="gpt2", model=SHAPE, optim=GPT2_OPTIM), corpus, VOCABULARY, 0, env)
    return dict(model.state_dict())


def bridges(corpus, env) -> dict[str, torch.Tensor]:
    spec = BridgeSpec(model=SHAPE, optim=OPTIM, sparsity=SPARSITY)
    pair = train_bridges(DenseModel(random_gpt2(n_layer=1).requires_grad_(False), "tiny", {}), spec, corpus, 0, env)
    return dict(pair.sparse.state_dict()) | {str(i): p.detach() for i, p in enumerate(site_parameters(pair.sites))}


@pytest.mark.parametrize("train", [sparse, dense, bridges])
def test_an_interrupted_run_ends_in_the_bits_of_an_undisturbed_one(train: Callable, corpus, tmp_path: Path):
    stage = "bridge" if train is bridges else "train"
    calm = train(corpus, environment(tmp_path / "calm", stage=stage))
    for steps in (1, 4, 3):
        with pytest.raises(Stopped):
            train(corpus, environment(tmp_path / "broken", stop_after(steps), stage))
    notes: list[dict] = []
    resumed = train(corpus, environment(tmp_path / "broken", Progress(notes.append), stage))
    assert {"event": "note", "stage": "", "message": f"resumed {stage} at step 11"} in notes
    assert resumed.keys() == calm.keys()
    assert all(torch.equal(resumed[name], calm[name]) for name in calm)
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()
    log = [json.loads(line) for line in (tmp_path / "calm" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(STEPS))
    assert {entry["stage"] for entry in log} == {stage}


def test_equal_seeds_give_equal_models_and_other_seeds_others(corpus, tmp_path: Path):
    spec = TrainSpec(model=SHAPE, optim=OPTIM, sparsity=SPARSITY)
    one, two, other = (
        train_sparse(spec, corpus, VOCABULARY, seed, environment(tmp_path / str(i))).state_dict() for i, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(corpus, tmp_path: Path, damage: str):
    calm = sparse(corpus, environment(tmp_path / "calm"))
    with pytest.raises(Stopped):
        sparse(corpus, environment(tmp_path / "broken", stop_after(3)))
    with pytest.raises(Stopped):
        sparse(corpus, environment(tmp_path / "broken", stop_after(3)))
    older, newest = sorted((tmp_path / "broken" / ".work").iterdir())
    content = newest.read_bytes()
    newest.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"not a checkpoint" * 9, "empty": b""}[damage])
    notes: list[dict] = []
    resumed = sparse(corpus, environment(tmp_path / "broken", Progress(notes.append)))
    assert any(n.get("message") == f"resumed train at step {int(older.stem[-8:])}" for n in notes)
    assert all(torch.equal(resumed[name], calm[name]) for name in calm)
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()


def test_two_checkpoints_are_kept_and_they_are_due_by_time(corpus, tmp_path: Path):
    sparse(corpus, environment(tmp_path, Progress(checkpoint_seconds=0)))
    assert sorted(p.name for p in (tmp_path / ".work").iterdir()) == ["train-00000011.safetensors", "train-00000012.safetensors"]
    sparse(corpus, environment(tmp_path / "rare", Progress(checkpoint_seconds=3600)))
    assert not list((tmp_path / "rare").glob(".work/*"))


def test_writing_checkpoints_takes_at_most_a_twentieth_of_the_time(corpus, tmp_path: Path, monkeypatch):
    """A step of 10 seconds and a checkpoint of 30: one every 600 seconds, not one every 20."""
    clock, saved = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(lambda event: saved.append(event["step"]) if event["event"] == "checkpoint" else None, _last_checkpoint=0.0)
    env = environment(tmp_path, progress)

    class Slow(Checkpoints):
        def save(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
            clock[0] += 30

    def step(index: int) -> dict[str, float]:
        clock[0] += 10
        return {"loss": 1.0}

    run_loop(Loop("train", 200, step), TrainState({}, []), replace(env, checkpoints=Slow(tmp_path, "train")))
    assert saved == [2, 62, 122, 182]
    progress.stage("next", 1, 1)  # whose checkpoints may take no time
    clock[0] += 20
    assert progress.checkpoint_due()


def loop(env: LoopEnvironment, losses: list[float]) -> torch.Tensor:
    """A loop that adds one to a tensor each step and reports the given losses."""
    count = torch.zeros(1)

    def step(index: int) -> dict[str, float]:
        count.add_(1)
        return {"loss": losses[index]}

    run_loop(Loop("train", len(losses), step), TrainState({}, [], {"count": count}), env)
    return count


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path, bad: float):
    with pytest.raises(TrainingDiverged, match=r"train: the loss became (nan|inf) at step 3; lower the learning rate"):
        loop(environment(tmp_path, Progress(checkpoint_seconds=0)), [1.0, 1.0, 1.0, bad, 1.0])
    saved = environment(tmp_path).checkpoints.load()
    assert saved is not None
    assert saved[0] == 3
    assert saved[1]["extra/count"].item() == 3
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_real_run_that_diverges_says_so(corpus, env):
    spec = TrainSpec(architecture="gpt2", model=SHAPE, optim=GPT2_OPTIM.model_copy(update={"lr": 1e30, "warmup": 0.0}))
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        train_gpt2(spec, corpus, VOCABULARY, 0, env)


def test_a_torn_last_line_of_the_log_is_written_again(tmp_path: Path):
    with pytest.raises(Stopped):
        loop(environment(tmp_path, stop_after(2)), [0.5] * 6)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "train", "st')
    assert loop(environment(tmp_path), [0.5] * 6).item() == 6
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == list(range(6))


def test_rewinding_leaves_other_stages_alone(tmp_path: Path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for stage, step in (("bridge", 0), ("bridge", 5), ("prune0", 0), ("prune0", 3)):
        log.write(stage, step, {"loss": 1.0})
    log.rewind("prune0", 1)
    kept = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in kept] == [("bridge", 0), ("bridge", 5), ("prune0", 0)]


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path):
    spec = TrainSpec(architecture="gpt2", model=SHAPE, optim=GPT2_OPTIM)
    model = new_gpt2(spec, VOCABULARY, 0)
    checkpoints = Checkpoints(tmp_path, "train")
    checkpoints.save(1, TrainState({"model": model}, []).tensors())
    saved = checkpoints.load()
    assert saved is not None
    assert ("model/lm_head.weight" in saved[1]) + ("model/transformer.wte.weight" in saved[1]) == 1
    other = new_gpt2(spec, VOCABULARY, 1)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)
    TrainState({"model": other}, []).restore(saved[1])
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)
    assert other.lm_head.weight is other.transformer.wte.weight


def test_a_checkpoint_of_another_shape_is_refused():
    state = TrainState({}, [], {"count": torch.zeros(1)})
    with pytest.raises(BrokenArtifact, match="does not fit this spec"):
        state.restore({"extra/other": torch.zeros(1)})


def test_reports_are_thinned_but_the_last_step_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("extractor.progress.time.monotonic", lambda: 1.0)  # a machine that has just booted
    told: list[dict] = []
    progress = Progress(told.append, report_seconds=3600)
    progress.stage("train", 1, 2)
    for step in range(1, 11):
        progress.step(step, 10, loss=1.0)
    assert [e["step"] for e in told if e["event"] == "progress"] == [1, 10]
    assert told[0] == {"event": "stage", "stage": "train", "index": 1, "of": 2}
    assert told[-1]["metrics"] == {"loss": 1.0}
