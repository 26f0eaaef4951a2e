"""One gradient however the batch is cut: micro-batches, processes, memory that runs out; and what bf16 leaves in fp32."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from worlds import ROOT, VOCABULARY, environment

from extractor.errors import ExtractorError, OutOfMemory, SpecError
from extractor.progress import Progress, Stopped
from extractor.spec.schema import OptimSpec, SparseModelSpec, SparsitySpec, TrainSpec
from extractor.training import distributed
from extractor.training.compute import Compute
from extractor.training.loop import next_token_loss
from extractor.training.train_sparse import new_sparse_gpt, train_sparse

SHAPE = SparseModelSpec(n_layer=1, d_model=16, d_head=8, mlp_ratio=2, n_ctx=16)
OPTIM = OptimSpec(steps=8, batch=6, context=16, lr=0.05)
SPEC = TrainSpec(model=SHAPE, sparsity=SparsitySpec(weight_frac=0.5, embedding_frac=0.3), optim=OPTIM)


def changed(**optim: object) -> TrainSpec:
    return SPEC.model_copy(update={"optim": OPTIM.model_copy(update=optim)})


def gradient(optim: OptimSpec, corpus, loss_of=None) -> tuple[float, list[torch.Tensor], Compute]:
    model = new_sparse_gpt(SHAPE, 1, VOCABULARY, 0)
    compute = Compute(optim)
    batch = corpus.batch(0, 0, optim.batch, optim.context)
    loss_of_rows = loss_of(model) if loss_of else lambda ids: next_token_loss(model, ids)
    loss, _ = compute.accumulate(batch, len(batch), lambda ids: (loss_of_rows(ids), ()), list(model.parameters()))
    return loss, [p.grad for p in model.parameters() if p.grad is not None], compute


def close(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    scale = max(g.abs().max().item() for g in one)
    return len(one) == len(other) and all((a - b).abs().max().item() < 1e-5 * scale for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("micro", [1, 2, 4, 5])  # 4 and 5 leave a shorter last one
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(corpus, micro: int):
    whole, expected, _ = gradient(OPTIM, corpus)
    loss, found, _ = gradient(OPTIM.model_copy(update={"micro_batch": micro}), corpus)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert close(expected, found)


def out_of_memory_above(rows: int, calls: list[int]):
    """A loss that runs out of memory, in torch's words, for more than `rows` sequences."""

    def of(model):
        def loss(ids: torch.Tensor) -> torch.Tensor:
            calls.append(len(ids))
            value = next_token_loss(model, ids)
            if len(ids) > rows:
                value.backward()  # what was accumulated before the accident must not count
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return value

        return loss

    return of


def test_when_memory_runs_out_the_batch_is_halved_with_the_same_result(corpus):
    whole, expected, _ = gradient(OPTIM, corpus)
    calls: list[int] = []
    loss, found, compute = gradient(OPTIM, corpus, out_of_memory_above(2, calls))
    assert calls == [6, 3, 1, 1, 1, 1, 1, 1]
    assert loss == pytest.approx(whole, rel=1e-6)
    assert close(expected, found)
    assert int(compute.state["micro_batch"]) == 1  # for all later steps, and in the checkpoint


def test_terms_are_averaged_over_the_batch_also_when_memory_ran_out_after_some_rows(corpus):
    model, compute = new_sparse_gpt(SHAPE, 1, VOCABULARY, 0), Compute(OPTIM.model_copy(update={"micro_batch": 4}))
    batch = corpus.batch(0, 0, OPTIM.batch, OPTIM.context)
    calls: list[int] = []

    def loss_of(ids: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        calls.append(len(ids))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return next_token_loss(model, ids), (ids.float().mean(), ids.float().mean(0))

    _, (mean, by_position) = compute.accumulate(batch, len(batch), loss_of, list(model.parameters()))
    assert calls == [4, 2, 2, 2, 2]
    assert mean.item() == pytest.approx(batch.float().mean().item())
    assert by_position.tolist() == pytest.approx(batch.float().mean(0).tolist())


def test_a_real_allocation_that_fails_is_memory_that_ran_out(corpus):
    def greedy(model):
        return lambda ids: next_token_loss(model, ids) + (torch.empty(1 << 50).sum() if len(ids) > 3 else 0)

    _, found, compute = gradient(OPTIM, corpus, greedy)
    assert close(gradient(OPTIM, corpus)[1], found)
    assert int(compute.state["micro_batch"]) == 3


def test_a_single_sequence_that_does_not_fit_is_an_error_of_one_line(corpus):
    with pytest.raises(OutOfMemory, match="a single sequence"):
        gradient(OPTIM, corpus, out_of_memory_above(0, []))


def test_other_errors_are_not_taken_for_memory(corpus):
    def broken(_model):
        def loss(_ids: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes do not match")

        return loss

    with pytest.raises(RuntimeError, match="shapes do not match"):
        gradient(OPTIM, corpus, broken)


def test_bf16_is_autocast_and_masters_and_moments_stay_fp32(corpus, tmp_path: Path):
    train_sparse(SPEC, corpus, VOCABULARY, 0, environment(tmp_path / "fp32"))
    env = environment(tmp_path / "bf16", Progress(checkpoint_seconds=0))
    train_sparse(changed(precision="bf16"), corpus, VOCABULARY, 0, env)
    saved = env.checkpoints.load()
    assert saved is not None
    assert {t.dtype for name, t in saved[1].items() if name.startswith(("model/", "optimizer/"))} == {torch.float32}
    assert any(name.endswith("exp_avg_sq") for name in saved[1])
    exact, rounded = (losses(tmp_path / name) for name in ("fp32", "bf16"))
    assert exact != rounded  # the passes were bf16
    assert exact[0] == pytest.approx(rounded[0], abs=0.05)  # the same weights; later steps choose other ones


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(spec: TrainSpec, corpus, folder: Path, processes: int, monkeypatch: pytest.MonkeyPatch, progress: Progress | None = None):
    monkeypatch.setenv("EXTRACT_PROCESSES", str(processes))
    return distributed.train_model(spec, corpus, VOCABULARY, 0, environment(folder, progress)).state_dict()


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one_and_can_be_stopped(corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = changed(batch=7, steps=12)  # an odd batch: four rows in one process, three in the other
    one = train(spec, corpus, tmp_path / "one", 1, monkeypatch)
    told: list[dict] = []
    stopping = Progress(told.append, lambda: any(e["event"] == "checkpoint" for e in told), checkpoint_seconds=0)
    with pytest.raises(Stopped):
        train(spec, corpus, tmp_path / "two", 2, monkeypatch, stopping)
    resumed: list[dict] = []
    two = train(spec, corpus, tmp_path / "two", 2, monkeypatch, Progress(resumed.append))
    assert any(str(e.get("message")).startswith("resumed train at step") for e in resumed)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5), name
    logs = [[json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert [e["step"] for e in logs[1]] == list(range(12))
    assert [e["loss"] for e in logs[0]] == pytest.approx([e["loss"] for e in logs[1]], abs=1e-4)


def test_an_error_in_the_processes_is_the_error_of_the_training(corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SpecError, match="shorter than one context"):
        train(changed(context=16, steps=2), Short(corpus, tmp_path), tmp_path / "out", 2, monkeypatch)


def test_a_process_that_fails_alone_ends_the_training_instead_of_keeping_the_others_waiting(corpus, tmp_path: Path, monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # the processes inherit it; only the main one writes checkpoints
    try:
        with pytest.raises(ExtractorError, match=r"disk full while writing .*train-00000001"):
            train(changed(steps=4), corpus, tmp_path, 2, monkeypatch, Progress(checkpoint_seconds=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Short:
    """A corpus of three tokens, in a folder of its own."""

    def __init__(self, corpus, folder: Path):
        import numpy as np

        self.folders = (folder / "short",)
        self.folders[0].mkdir()
        facts = {"version": 1, "sources": [{"source": "x", "train": ["t.npy"], "held_out": "h.npy"}]}
        (self.folders[0] / "corpus.json").write_text(json.dumps(facts))
        for name in ("t.npy", "h.npy"):
            np.save(self.folders[0] / name, np.array([1, 2, 3], dtype=np.uint16))


@pytest.mark.parametrize("text", ["0", "two", "-1", "1.5"])
def test_a_wrong_number_of_processes_is_refused(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXTRACT_PROCESSES", text)
    with pytest.raises(SpecError, match="EXTRACT_PROCESSES"):
        distributed.process_count()


def test_tensorboard_events_hold_every_logged_step_once_also_after_a_stop(corpus, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from worlds import stop_after

    for progress in (stop_after(3), None):
        env = environment(tmp_path, progress)
        env.board = tmp_path / "tensorboard"
        if progress:
            with pytest.raises(Stopped):
                train_sparse(SPEC, corpus, VOCABULARY, 0, env)
        else:
            train_sparse(SPEC, corpus, VOCABULARY, 0, env)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e.step for e in events.Scalars("loss")] == [entry["step"] for entry in log] == list(range(8))
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([entry["loss"] for entry in log], abs=1e-5)


def test_the_processes_exit_when_their_engine_is_gone(tmp_path: Path):
    code = """
import os, sys, threading
from extractor.training import distributed
threading.Thread(target=distributed._exit_with_engine, args=(int(sys.argv[1]),), daemon=True).start()
threading.Event().wait(60)
"""
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    assert subprocess.run([sys.executable, "-c", code, str(gone.pid)], cwd=ROOT, timeout=30).returncode == 1
