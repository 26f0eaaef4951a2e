"""Trainings that are killed, starved of disk, or diverge: what is left is whole, and going on from it ends in the same bits."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import sys
import traceback
from pathlib import Path

import pytest
import torch
from worlds import VOCABULARY, environment, stop_after

from extractor import files
from extractor.errors import ExtractorError, TrainingDiverged
from extractor.progress import Progress, Stopped
from extractor.spec.schema import OptimSpec, SparseModelSpec, SparsitySpec, TrainSpec
from extractor.training import train_sparse as sparse_training
from extractor.training.checkpoints import Checkpoints
from extractor.training.train_sparse import train_sparse

STEPS = 60
SPEC = TrainSpec(
    model=SparseModelSpec(n_layer=1, d_model=16, d_head=8, mlp_ratio=2, n_ctx=16),
    sparsity=SparsitySpec(weight_frac=0.5, embedding_frac=0.3),
    optim=OptimSpec(steps=STEPS, batch=4, context=16, lr=0.05),
)


def train(corpus, folder: Path, progress: Progress | None = None, spec: TrainSpec = SPEC) -> dict[str, torch.Tensor]:
    return dict(train_sparse(spec, corpus, VOCABULARY, 0, environment(folder, progress)).state_dict())


def train_until_killed(corpus, folder: Path, at: int) -> int:
    """Train in a child process that saves every third step and is killed with -9 at some place within step `at`; its exit status."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)

            class Telling(Progress):
                def checkpoint_due(self) -> bool:
                    os.write(writing, b".")
                    self.asked = getattr(self, "asked", 0) + 1
                    return self.asked % 3 == 0

            train(corpus, folder, Telling())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        seen = 0
        while seen < at and (more := pipe.read(1)):
            seen += len(more)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_ten_random_steps_a_training_ends_in_the_same_bits(corpus, tmp_path: Path):
    calm = train(corpus, tmp_path / "calm")
    draw = random.Random(0)
    resumed = []
    for _ in range(10):
        assert train_until_killed(corpus, tmp_path / "killed", draw.randint(1, 8)) == -signal.SIGKILL
        saved = environment(tmp_path / "killed").checkpoints.load()
        resumed.append(saved[0] if saved else 0)
    assert resumed == sorted(resumed)
    assert len(set(resumed)) >= 5  # it really went on from one to the next
    assert 0 < resumed[-1] < STEPS
    ended = train(corpus, tmp_path / "killed")
    assert ended.keys() == calm.keys()
    assert all(torch.equal(ended[name], calm[name]) for name in calm)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()


def train_until_the_disk_is_full(corpus, folder: Path, step: int) -> str:
    """Train in a child process whose files cannot grow beyond 10 kB from `step` on: what the error says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        class Filling(Progress):
            def checkpoint_due(self) -> bool:
                self.asked = getattr(self, "asked", 0) + 1
                if self.asked == step:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
                return True

        try:
            train(corpus, folder, Filling())
        except ExtractorError as error:
            os.write(writing, f"{error.exit_code} {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def test_a_disk_that_fills_up_in_mid_write_costs_nothing_but_the_new_checkpoint(corpus, tmp_path: Path):
    calm = train(corpus, tmp_path / "calm")
    folder = tmp_path / "full"
    said = train_until_the_disk_is_full(corpus, folder, 12)
    assert said.startswith(f"1 disk full while writing {folder}/.work/train-00000012.safetensors: ")
    assert said.endswith("run the same command again, it resumes")
    assert sorted(p.name for p in (folder / ".work").iterdir()) == ["train-00000010.safetensors", "train-00000011.safetensors"]
    notes: list[dict] = []
    resumed = train(corpus, folder, Progress(notes.append))
    assert any(n.get("message") == "resumed train at step 11" for n in notes)
    assert all(torch.equal(resumed[name], calm[name]) for name in calm)
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()


def test_a_disk_that_is_full_for_the_metrics_says_so(corpus, tmp_path: Path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ExtractorError, match="disk full while writing"):
        environment(tmp_path).log.write("train", 0, {"loss": 1.0})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_no_numbers_stop_the_run_before_they_reach_the_weights(corpus, tmp_path: Path, monkeypatch, bad: float):
    plain, calls = sparse_training.next_token_loss, []

    def poisoned(model, ids):
        calls.append(1)
        loss = plain(model, ids)
        if len(calls) == 6:
            loss.register_hook(lambda g: g * bad)  # a finite loss with gradients that are not
        return loss

    monkeypatch.setattr(sparse_training, "next_token_loss", poisoned)
    with pytest.raises(TrainingDiverged, match=r"train: the gradient_rms became (nan|inf) at step 5; lower the learning rate"):
        train(corpus, tmp_path, Progress(checkpoint_seconds=0))
    saved = environment(tmp_path).checkpoints.load()
    assert saved is not None
    assert saved[0] == 5
    assert all(bool(t.isfinite().all()) for t in saved[1].values() if t.is_floating_point())
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == list(range(5))
    monkeypatch.undo()
    assert train(corpus, tmp_path).keys()  # the accident over, it goes on


def test_weights_that_overflow_are_never_saved(corpus, tmp_path: Path):
    wild = SPEC.model_copy(update={"optim": SPEC.optim.model_copy(update={"lr": 1e38, "warmup": 0.0, "sharkfin": False, "eps": 1e-8})})
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        train(corpus, tmp_path, Progress(checkpoint_seconds=0), wild)
    for path in (tmp_path / ".work").glob("*.safetensors"):
        assert all(bool(t.isfinite().all()) for t in files.read_tensors(path).values() if t.is_floating_point())


def test_when_every_checkpoint_is_broken_training_starts_anew(corpus, tmp_path: Path):
    calm = train(corpus, tmp_path / "calm")
    train(corpus, tmp_path / "broken", Progress(checkpoint_seconds=0))
    checkpoints = Checkpoints(tmp_path / "broken" / ".work", "train")
    for path in (tmp_path / "broken" / ".work").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    assert checkpoints.load() is None
    again = train(corpus, tmp_path / "broken")
    assert all(torch.equal(again[name], calm[name]) for name in calm)


def save_until_killed(checkpoints: Checkpoints, step: int, event: int | None, size: int | None) -> bool:
    """Save in a child process that dies before its file system call number `event`, or once a file has `size` bytes; whether it lived."""
    child = os.fork()
    if child == 0:
        seen = 0

        def die(name: str, _arguments: object) -> None:
            nonlocal seen
            if name == "open" or name.startswith(("os.", "shutil.", "glob.")):
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        if event is not None:
            sys.addaudithook(die)
        if size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        checkpoints.save(step, state_at(step))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def state_at(step: int) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((64, 64), float(step)), "step": torch.tensor(step)}


def test_killed_at_every_stage_of_a_checkpoint_write_the_last_whole_one_is_loaded(tmp_path: Path):
    stages = [(event, None) for event in range(1, 200)] + [(None, size) for size in (0, 1, 7, 8, 300, 4096, 16_000, 10**6)]
    step, died, over = 0, 0, False
    for event, size in stages:
        if over and event is not None:
            continue
        folder = tmp_path / f"{event}-{size}"
        checkpoints = Checkpoints(folder, "train")
        for step in (1, 2):
            checkpoints.save(step, state_at(step))
        lived = save_until_killed(checkpoints, 3, event, size)
        over = over or (lived and event is not None)
        died += not lived
        found = checkpoints.load()
        assert found is not None
        assert found[0] in ((3,) if lived else (2, 3))
        assert all(torch.equal(found[1][name], tensor) for name, tensor in state_at(found[0]).items()), "a checkpoint is whole or not there"
        checkpoints.save(4, state_at(4))
        assert checkpoints.load()[0] == 4  # type: ignore[index]
        assert {path.name for path in folder.iterdir()} <= {f"train-{at:08d}.safetensors" for at in (1, 2, 3, 4)} | {
            "train-00000003.safetensors.tmp"
        }
    assert over, "every stage was met"
    assert died >= 8


def test_a_damaged_checkpoint_is_said_to_be_one_and_the_one_before_is_used(corpus, tmp_path: Path):
    whole = train(corpus, tmp_path / "whole")
    notes: list[str] = []
    with pytest.raises(Stopped):
        train(corpus, tmp_path / "cut", stop_after(20))
    (newest,) = list((tmp_path / "cut" / ".work").glob("train-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:100])
    again = train(corpus, tmp_path / "cut", Progress(lambda event: notes.append(event.get("message", ""))))
    assert f"train: damaged and removed: {newest.name}; the work since the one before is repeated" in notes
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_lines_that_a_library_prints_do_not_end_a_training_of_several_processes(capsys: pytest.CaptureFixture[str]):
    from extractor.training.distributed import _forward_events

    seen: list[dict] = []
    lines = io.StringIO('5\nnull\n["event"]\n{"message": "x"}\nwarning!\n{"event": "note"}\n{"event": "done"}\n')
    assert _forward_events(lines, Progress(seen.append)) == {"event": "done"}
    assert seen == [{"event": "note"}]
    assert capsys.readouterr().err == '5\nnull\n["event"]\n{"message": "x"}\nwarning!\n'
