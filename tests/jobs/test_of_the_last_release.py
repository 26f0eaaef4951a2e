"""Jobs that the last release began, which this one continues; and a strict job whose dense model is gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extractor.jobs.circuit_job import circuit_of, strictly_refused
from extractor.jobs.context import SOURCES, CircuitRun, GivenModel
from extractor.jobs.job import Job
from extractor.models.reference import BUNDLED
from extractor.progress import Progress
from extractor.spec.schema import BridgeSpec, JobSpec, PruneSpec
from tasks import find_task

FROZEN = Path(__file__).parents[1] / "frozen" / "result"
SPEC = JobSpec(kind="circuit", model="python-tiny", tasks=("for_while",), bridge=BridgeSpec(), prune=PruneSpec())


def job_in(out: Path, **changes: Any) -> Job:
    return Job(SPEC.model_copy(update=changes), out, Progress(), ())


def test_a_circuit_that_the_last_release_found_has_a_row(tmp_path: Path):
    shutil.copytree(FROZEN / "circuits", tmp_path / "circuits")
    row = circuit_of(job_in(tmp_path), None, "for_while", find_task("for_while"))  # type: ignore[arg-type]
    assert row["holds_for_dense"] is None
    assert row["nodes"] > 0
    assert row["dense_loss"] is not None, "the last release measured it as well"


@pytest.mark.parametrize("begun", ["new", "bridging", "bridged", "chosen"])
def test_the_text_of_a_job_does_not_change_while_it_runs(tmp_path: Path, begun: str):
    """The last release had generated programs for every model, and wrote down no choice."""
    model = tmp_path / "model"
    shutil.copytree(BUNDLED / "python-tiny", model)
    (model / "spec.json").unlink()
    job = job_in(tmp_path / "out", model=str(model))
    job.work.mkdir(parents=True)
    if begun == "bridging":
        (job.work / "bridge-00000054.safetensors").touch()
    elif begun == "bridged":
        (job.out / "model").mkdir()
    elif begun == "chosen":
        (job.work / SOURCES).write_text('["prose"]')
    expected = {"new": (), "bridging": ("stdlib", "generated"), "bridged": ("stdlib", "generated"), "chosen": ("prose",)}
    assert GivenModel(job)._kept_sources(job) == expected[begun]


@pytest.mark.parametrize("was_bridged", [True, False])
def test_strictness_that_cannot_be_checked_is_said(tmp_path: Path, was_bridged: bool):
    if was_bridged:
        (tmp_path / "dense.json").write_text("{}")
    loaded: Any = SimpleNamespace(folder=tmp_path, why_no_pair="model folder /gone is not on this machine")
    splits: Any = SimpleNamespace(tokenized=SimpleNamespace(task=find_task("for_while")))
    found = strictly_refused(CircuitRun(job_in(tmp_path, strict=True), loaded, splits))
    if not was_bridged:
        assert found is None, "a sparse model of its own has no dense model to agree with"
        return
    assert found is not None
    assert found["nodes"] is None
    assert "cannot be checked: model folder /gone is not on this machine" in found["why"]
