"""Files that release 4c070f4 wrote are read, run again, gone on with and computed with, as that release did.

frozen/ holds them, and frozen/README.md says how they were made. The tests use only what stays: `python -m extractor`, `extractor.__all__`,
`CompiledCircuit`, `extractor.sparse`, `bridge_sites` with PEFT, JSON and safetensors files. So they outlive any move of modules.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from worlds import ROOT

import extractor
from extractor import JobSpec

if TYPE_CHECKING:
    from torch import Tensor

FROZEN = Path(__file__).resolve().with_name("frozen")
SPECS = {path.stem: path.read_text() for path in sorted((FROZEN / "specs").glob("*.json"))}
TASK = "for_while"
CIRCUIT = f"circuits/{TASK}/circuit.json"
TIMED = {"spec.json", f"circuits/{TASK}/result.json", f"circuits/{TASK}/report.html", "manifest.json"}  # they hold durations, or a path
LATER_KEYS = {"holds_for_dense", "causal", "standard", "standards"}  # of result.json, which the last release did not have
LATER_FILES = {f"circuits/{TASK}/conditions.safetensors", f"circuits/{TASK}/tokens.json", f"circuits/{TASK}/others.json"}
LATER_TEXT = {"model/faithfulness.json"}  # has further numbers since
LATER_TEXT |= {f"circuits/{TASK}/compiled.safetensors"}  # has its answers in the circuit's order since; before, by token id
PUBLIC = """Circuit JobSpec build_corpus circuit_job find_circuits import_checkpoint run_job sparsify train_bridges train_job train_sparse
validate write_report""".split()


def here(text: str) -> str:
    """A frozen text whose placeholder stands for the folder of the fixtures."""
    return text.replace("@ROOT@", str(FROZEN))


def frozen_result(folder: Path) -> Path:
    """A copy of the finished result. The code in model/ is kept as .py.txt, so that no tool edits it."""
    shutil.copytree(FROZEN / "result", folder)
    for path in (folder / "model").glob("*.py.txt"):
        path.rename(path.with_suffix(""))
    return folder


def frozen_bridged(folder: Path) -> Path:
    """The kept bridged model: the manifest that was written for it, beside the files of the result that are the same."""
    manifest = (FROZEN / "twin_manifest.json").read_text()
    result = frozen_result(folder.with_name("its_result"))
    folder.mkdir()
    lines = (result / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if '"stage": "bridge"' in line))
    (result / "model").rename(folder / "model")
    (folder / "manifest.json").write_text(manifest)
    return folder


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return frozen_result(tmp_path_factory.mktemp("frozen") / "result")


def engine(spec: Path, out: Path, *options: str, stop_at: str = "") -> tuple[int, list[dict]]:
    """`python -m extractor SPEC --out OUT` in this process: exit code and events. SIGTERM comes when the stage `stop_at` begins."""

    class Lines(io.StringIO):
        def write(self, text: str) -> int:
            if stop_at and f'"event": "stage", "stage": "{stop_at}"' in text:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().write(text)

    lines, before = Lines(), {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(lines):
            patch.setattr(sys, "argv", ["extractor", str(spec), "--out", str(out), "--threads", "1", *options])
            with pytest.raises(SystemExit) as end:
                runpy.run_module("extractor", run_name="__main__", alter_sys=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return int(end.value.code or 0), [json.loads(line) for line in lines.getvalue().splitlines()]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def as_text(spec: JobSpec) -> str:
    return json.dumps(spec.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_is_read_and_written_back_byte_for_byte(name: str):
    text = here(SPECS[name])
    assert as_text(JobSpec.model_validate_json(text)) == text


@pytest.mark.parametrize("number", range(4))
def test_a_spec_in_the_words_of_an_earlier_version_means_what_it_meant(number: int):
    earlier = json.loads((FROZEN / "earlier_specs.json").read_text())[number]
    assert as_text(JobSpec.model_validate_json(earlier["text"])) == earlier["means"]


def test_a_spec_in_a_record_is_read_and_written_back_byte_for_byte():
    """Ids of jobs and addresses of bridged models are hashes of such texts: the order of fields counts."""
    records = {key: entry["value"] for key, entry in json.loads((FROZEN / "records.json").read_text())["redis"].items()}
    texts = [record["spec"] for key, record in records.items() if key.startswith("ex:job:")]
    assert len(texts) == 25
    assert [JobSpec.model_validate_json(text).model_dump_json() for text in texts] == texts
    batches = [json.loads(plan)["template"] for key, plan in records.items() if key.startswith("ex:batch:")]
    assert len(batches) == 1
    assert [json.dumps(JobSpec.model_validate(template).model_dump(mode="json")) for template in batches] == list(map(json.dumps, batches))


def test_every_public_name_is_there():
    assert set(PUBLIC) <= set(extractor.__all__)
    assert all(callable(getattr(extractor, name)) for name in PUBLIC)


def test_a_finished_result_is_whole_and_nothing_is_done_again(result: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in result.rglob("*")}
    assert engine(result / "spec.json", result) == (0, [{"event": "done"}])
    earlier = tmp_path / "earlier.json"  # the same job, as the version before named its tasks
    facts = json.loads((result / "spec.json").read_text())
    earlier.write_text(json.dumps({name: value for name, value in facts.items() if name != "tasks"} | {"task": TASK}))
    assert engine(earlier, result) == (0, [{"event": "done"}])
    assert {path: path.stat().st_mtime_ns for path in result.rglob("*")} == before
    told = json.loads((result / CIRCUIT).read_text())
    assert json.loads(json.dumps(extractor.Circuit.from_json(told).to_json())) == told


def test_another_result_is_refused_and_a_damaged_one_too(result: Path, tmp_path: Path):
    other, copy = tmp_path / "other.json", Path(shutil.copytree(result, tmp_path / "copy"))
    other.write_text(here(SPECS["circuit_dense"]))
    code, events = engine(other, copy)
    assert (code, events[-1]["type"]) == (2, "OutputError")
    (copy / CIRCUIT).write_text("{}")
    code, events = engine(copy / "spec.json", copy)
    assert (code, events[-1]["type"]) == (1, "BrokenArtifact")


def bundled(name: str) -> str:
    """The folder of a bundled model, as `extract models` tells it."""
    said = subprocess.run([sys.executable, "-m", "worker", "models", "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    return next(model["path"] for model in json.loads(said.stdout) if model["name"] == name)


def measured(result: Path) -> dict[str, Tensor]:
    """What the circuit, the sparse model, the dense one and the bridges between them make of four held-out prompts, at their ends."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    import extractor.sparse  # noqa: F401
    from extractor.bridges import bridge_sites
    from extractor.compiled import CompiledCircuit

    torch.set_num_threads(1)
    held_out = load_file(result / "circuits" / TASK / "held_out.safetensors")
    ids, last, rows = held_out["ids"][:4], held_out["last"][:4], torch.arange(4)
    circuit = CompiledCircuit.load(result / "circuits" / TASK)
    sparse = AutoModelForCausalLM.from_pretrained(result / "model").eval()
    dense = AutoModelForCausalLM.from_pretrained(bundled("python-tiny-1")).eval()
    found = {"ids": ids, "last": last, "margins": circuit(ids, last), "all_margins": circuit(held_out["ids"], held_out["last"])}
    points = [f"blocks.{layer}.hook_resid_{place}" for layer in range(2) for place in ("pre", "mid")] + ["blocks.1.hook_resid_post"]
    with sparse.record(points) as seen:
        found["sparse"] = sparse(input_ids=ids).logits[rows, last]
    alone = dense(input_ids=ids).logits
    bridged = PeftModel.from_pretrained(dense, result / "model", subfolder="bridges").eval()
    sites = bridge_sites(bridged)
    inputs: list[Tensor] = []
    hooks = [site.register_forward_pre_hook(lambda _site, given: inputs.append(given[0])) for site in sites]
    assert torch.equal(bridged(input_ids=ids).logits, alone)
    for hook in hooks:
        hook.remove()
    found["dense"] = alone[rows, last]
    found["encoded"] = torch.stack([site.encode(h)[rows, last] for site, h in zip(sites, inputs, strict=True)])
    found["decoded"] = torch.stack([site.decode(seen[point])[rows, last] for site, point in zip(sites, points, strict=True)])
    change = sites[3].decode(seen[points[3]]) - inputs[3]
    with sites[3].steered(change):
        found["steered"] = bridged(input_ids=ids).logits[rows, last]
    return found


def test_circuit_and_models_compute_what_they_computed(result: Path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    with torch.no_grad():
        found = measured(result)
    stored = load_file(FROZEN / "values.safetensors")
    assert found.keys() == stored.keys()
    for name, values in stored.items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=1e-5, msg=lambda said, name=name: f"{name}: {said}")
    tokenizer = AutoTokenizer.from_pretrained(result / "model")
    prompts = json.loads((FROZEN / "prompts.json").read_text())
    ids = [row[: int(end) + 1].tolist() for row, end in zip(stored["ids"], stored["last"], strict=True)]
    assert [tokenizer(prompt)["input_ids"] for prompt in prompts] == ids


def test_a_kept_bridged_model_is_taken_and_not_made_again(tmp_path: Path):
    kept = frozen_bridged(tmp_path / "kept")
    (tmp_path / "spec.json").write_text(here(SPECS["circuit_twin"]))
    work = tmp_path / "out" / ".work"  # of a job of that python-tiny, the first version
    work.mkdir(parents=True)
    shutil.copyfile(tmp_path / "spec.json", tmp_path / "out" / "spec.json")
    shutil.copyfile(kept / "model" / "dense.json", work / "dense.json")
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    code, events = engine(tmp_path / "spec.json", tmp_path / "out", "--bridged", str(kept), stop_at="prune")
    assert code == 75
    assert [event["stage"] for event in events if event["event"] == "stage"] == ["corpus", "bridge", "prune"]
    assert not [event for event in events if event["event"] == "progress" and event["stage"] == "bridge"]
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == before
    assert (tmp_path / "out" / "metrics.jsonl").read_text().startswith((kept / "metrics.jsonl").read_text())
    for name in files_of(kept) - {"manifest.json", "metrics.jsonl"}:
        assert (tmp_path / "out" / name).read_bytes() == (kept / name).read_bytes(), name


def gone_on(name: str, tmp_path: Path, *options: str) -> tuple[Path, list[dict]]:
    """The interrupted job of that name, brought to its end: its folder, and what the engine told."""
    out = Path(shutil.copytree(FROZEN / name, tmp_path / "out"))
    (out / "spec.json").write_text(here((out / "spec.json").read_text()))
    if name == "pruning":  # its model/ is that of the result
        frozen_result(tmp_path / "given").joinpath("model").rename(out / "model")
    code, events = engine(out / "spec.json", out, *options)
    assert code == 0, events[-1]
    assert not (out / ".work").exists()
    return out, events


def resumed(events: list[dict], stage: str) -> list[str]:
    return [event["message"] for event in events if event["event"] == "note" and event["message"].startswith(f"resumed {stage}")]


def steps(events: list[dict], stage: str) -> list[int]:
    found = [event["step"] for event in events if event["event"] == "progress" and event["stage"] == stage]
    return [step for step in found if step is not None]  # None: a phase has begun and counts nothing yet


def assert_same(out: Path, result: Path) -> None:
    """The end of an interrupted job is that of the undisturbed one: the same bytes.

    A CPU of another kind rounds otherwise: then nodes and edges must be the same and numbers agree to 1e-3, calibration and losses, which
    sum up all that rounding, to 1e-2.
    """
    assert files_of(out) - LATER_FILES == files_of(result) - LATER_FILES
    if (out / CIRCUIT).read_bytes() == (result / CIRCUIT).read_bytes():
        for name in files_of(result) - TIMED - LATER_TEXT:
            assert (out / name).read_bytes() == (result / name).read_bytes(), name
    found, wanted = (json.loads((folder / CIRCUIT).read_text()) for folder in (out, result))
    assert [node["id"] for node in found["nodes"]] == [node["id"] for node in wanted["nodes"]]
    assert [(edge["source"], edge["target"]) for edge in found["edges"]] == [(edge["source"], edge["target"]) for edge in wanted["edges"]]
    assert numbers(found["calibration"]) == pytest.approx(numbers(wanted["calibration"]), rel=1e-2)
    for part in ("nodes", "edges"):
        assert numbers(found[part]) == pytest.approx(numbers(wanted[part]), abs=1e-3)
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in wanted.items()}
    told = [json.loads((folder / f"circuits/{TASK}/result.json").read_text()) for folder in (out, result)]
    assert told[0].keys() - LATER_KEYS == told[1].keys()
    assert told[0]["loss"] == pytest.approx(told[1]["loss"], abs=1e-2)


def numbers(value: Any) -> list[float]:
    """All numbers in a JSON value, in order."""
    if isinstance(value, dict | list):
        return [one for item in (value.values() if isinstance(value, dict) else value) for one in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.slow
def test_a_job_that_was_stopped_half_way_through_bridging_ends_as_if_it_had_not_been(result: Path, tmp_path: Path):
    """It keeps its bridged model for others as well, in the layout of the cache."""
    out, events = gone_on("bridging", tmp_path, "--bridged", str(tmp_path / "kept"))
    assert resumed(events, "bridge") == ["resumed bridge at step 54"]
    assert min(steps(events, "bridge")) > 54
    assert (out / "metrics.jsonl").read_text().startswith((FROZEN / "bridging" / "metrics.jsonl").read_text())
    assert_same(out, result)
    manifest = json.loads((FROZEN / "twin_manifest.json").read_text())
    kept = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert (kept["version"], list(kept["files"])) == (manifest["version"], list(manifest["files"]))
    assert files_of(tmp_path / "kept") == {"manifest.json", *manifest["files"]}


@pytest.mark.slow
def test_a_job_that_was_stopped_half_way_through_pruning_ends_as_if_it_had_not_been(result: Path, tmp_path: Path):
    """The first round of its search is whole, the second is half done."""
    out, events = gone_on("pruning", tmp_path)
    assert not steps(events, "bridge")
    assert resumed(events, "prune") == ["resumed prune-round1 at step 10"]
    assert steps(events, "prune")[0] > 10
    assert (out / "metrics.jsonl").read_text().startswith((FROZEN / "pruning" / "metrics.jsonl").read_text())
    assert_same(out, result)
