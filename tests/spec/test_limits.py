"""Numbers that no job can have are refused when a spec is read, each by its field; threads that no machine has by every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from extractor.errors import SpecError, UsageError
from extractor.jobs.cost.memory import bytes_needed, check_training
from extractor.jobs.request import circuit_job, train_job
from extractor.jobs.run import run_job
from extractor.spec.limits import MAX_THREADS
from extractor.spec.presets import PRESETS, train_spec
from extractor.spec.schema import PruneSpec, TrainSpec, parse_job, to_json
from worker.cli import main
from worker.settings import from_env


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("prune.beta2", "5"),
        ("prune.beta2", "1"),
        ("prune.beta2", "-0.1"),
        ("prune.weight_decay", "-1"),
        ("prune.warmup", "1.5"),
        ("prune.init_noise", "-1"),
        ("prune.mean_tokens", "1000000000000"),
        ("prune.population", "1000000"),
        ("prune.seeds", "1000000"),
        ("prune.trials", "1000000000"),
        ("prune.pairs", "1000000000"),
        ("prune.select_pairs", "1000000000"),
        ("prune.trial_pairs", "1000000000"),
        ("prune.held_out_pairs", "1000000000"),
        ("model.n_layer", "1000000000"),
        ("model.d_model", "1000000"),
        ("model.d_head", "1000000"),
        ("model.mlp_ratio", "1000000"),
        ("model.n_ctx", "1000000000"),
        ("model.d_pos_emb", "1000000"),
        ("model.bigram_top", "1000000"),
        ("model.bigram_rank", "1000000"),
        ("sparsity.min_per_neuron", "1000000"),
        ("optim.batch", "1000000000"),
        ("optim.context", "1000000000"),
        ("optim.micro_batch", "1000000000"),
        ("vocab_size", "1000000000"),
    ],
)
def test_a_wrong_digit_is_refused_by_its_field(field: str, text: str):
    with pytest.raises(SpecError) as caught:
        train_job(tasks=("quote_close",), changes={field: text})
    assert str(caught.value).startswith(f"{field}: Input should be ")
    first = field.partition(".")[0]
    if first in ("model", "sparsity", "optim"):
        with pytest.raises(SpecError, match=f"bridge.{field}: Input should be "):
            circuit_job("python-tiny", ("quote_close",), changes={f"bridge.{field}": text})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.d_head": "7"}, "model.d_model (128) is not a multiple of model.d_head (7)"),
        ({"model.d_model": "100"}, "model.d_model (100) is not a multiple of model.d_head (16)"),
        ({"model.d_pos_emb": "8", "model.added_positions": "true"}, "exclude each other"),
        ({"optim.batch": "1000000", "optim.context": "512", "model.n_ctx": "512"}, "is more than 268,435,456 tokens a step"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(changes: dict[str, str], said: str):
    with pytest.raises(SpecError) as caught:
        train_job(changes=changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_of_a_bridging_from_scratch_are_whole():
    with pytest.raises(SpecError, match=r"model.d_model \(128\) is not a multiple of model.d_head \(7\)"):
        circuit_job("python-tiny", ("quote_close",), init="scratch", changes={"bridge.model.d_head": "7"})
    with pytest.raises(SpecError, match=r"of model\.d_head"):
        train_job(architecture="gpt2", changes={"model.d_head": "7"})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architecture", ["sparse_gpt", "gpt2"])
def test_every_preset_lies_within_the_limits(preset: str, architecture: str):
    made = train_spec(preset, architecture)
    assert TrainSpec.model_validate(made.model_dump()) == made


def test_the_same_spec_as_a_file_is_refused_too():
    content = json.loads(to_json(circuit_job("python-tiny", ("quote_close",))))
    content["prune"]["population"] = 10**6
    with pytest.raises(SpecError, match=r"prune\.population: Input should be less than or equal to 1024"):
        parse_job(json.dumps(content))


def test_an_unknown_algorithm_in_a_spec_is_refused_before_any_work(tmp_path: Path):
    made = circuit_job("python-tiny", ("quote_close",))
    wrong = made.model_copy(update={"prune": PruneSpec(algorithm="magic")})
    with pytest.raises(SpecError, match="pruning algorithm 'magic' is unknown; choose "):
        run_job(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Threads


@pytest.mark.parametrize("number", ["1000000", "1025", "0", "-1"])
def test_threads_that_no_machine_has_are_refused(number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = tmp_path / "spec.json"
    spec.write_text(to_json(circuit_job("python-tiny", ("quote_close",))))
    for command in (["run", str(spec), "--out", str(tmp_path / "out")], ["worker"]):
        with pytest.raises(SystemExit) as end:
            main([*command, "--threads", number])
        assert end.value.code == 2
        assert "1<=x<=1024" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"EXTRACT_THREADS='.*' is not a whole number from 1 to 1,024"):
        from_env({"EXTRACT_THREADS": number})
    engine = [sys.executable, "-m", "extractor", str(spec), "--out", str(tmp_path / "out"), "--threads", number]
    done = subprocess.run(engine, capture_output=True, text=True, check=False)
    assert (done.returncode, "is not a whole number from 1 to 1,024" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_as_many_threads_as_large_machines_have_are_taken():
    assert from_env({"EXTRACT_THREADS": str(MAX_THREADS)}).threads == MAX_THREADS


# Memory of a training


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["train", "--dry-run", *arguments])
    return end.value.code, *capsys.readouterr()


def test_a_dry_run_of_a_training_tells_its_memory(capsys: pytest.CaptureFixture[str]):
    code, out, _ = dry_run(capsys)
    assert code == 0
    assert all(part in out for part in ("parameters", "memory, at least", "memory available"))
    code, out, _ = dry_run(capsys, "--json")
    facts = json.loads(out)["train"]
    assert facts["memory_needed"] == bytes_needed(train_job())
    assert facts["memory_at_hand"] > facts["memory_needed"] > 16 * facts["parameters"]


def test_a_training_that_cannot_fit_is_refused_by_its_dry_run(capsys: pytest.CaptureFixture[str]):
    code, out, err = dry_run(capsys, "--set", "model.d_model=131072", "--set", "model.n_layer=100")
    assert (code, out) == (2, "")
    assert "are available; set model.d_model (now 131,072) or model.n_layer (now 100) lower" in err
    with pytest.raises(SpecError, match="at least"):
        check_training(train_spec("paper", "sparse_gpt"), 10**9)
