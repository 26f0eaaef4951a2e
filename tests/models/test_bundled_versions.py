"""A bundled model that an update replaced is still there for the results and jobs that began with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worlds import ROOT

from extractor.bridges.pair import open_pair
from extractor.data.programs import GENERATOR_VERSION, programs
from extractor.data.realistic import generated_programs
from extractor.data.sources import EARLIER_GENERATED, documents
from extractor.errors import BrokenArtifact
from extractor.files import write_json
from extractor.jobs.bridge_stage import load_from_cache, make_model
from extractor.jobs.context import GivenModel
from extractor.jobs.job import Job
from extractor.models.reference import BUNDLED, model_digest, open_model
from extractor.models.sparse_folder import DENSE_JSON
from extractor.progress import Progress
from extractor.spec.schema import BridgeSpec, CorpusSpec, JobSpec, PruneSpec

NAME, FIRST = "python-tiny", BUNDLED / "python-tiny-1"
SPEC = JobSpec(kind="circuit", model=NAME, tasks=("for_while",), bridge=BridgeSpec(), prune=PruneSpec())


def job_in(out: Path, **changes: Any) -> Job:
    job = Job(SPEC.model_copy(update=changes), out, Progress(), ())
    job.work.mkdir(parents=True)
    return job


def begin_bridging(job: Job) -> None:
    (job.work / "bridge-00000054.safetensors").touch()


def test_the_versions_differ_and_a_digest_tells_which_is_meant():
    assert model_digest(FIRST) != model_digest(BUNDLED / NAME)
    assert open_model(NAME).path == BUNDLED / NAME
    assert open_model(NAME, model_digest(FIRST)).path == FIRST
    assert open_model(NAME, model_digest(BUNDLED / NAME)).path == BUNDLED / NAME
    assert open_model(NAME, "0" * 64).path == BUNDLED / NAME


def test_a_result_of_the_last_release_opens_with_the_dense_model_that_it_was_made_from(tmp_path: Path):
    shutil.copytree(ROOT / "tests" / "frozen" / "result" / "model", tmp_path / "model")
    pair = open_pair(tmp_path / "model")
    assert pair.facts["sha256"] == model_digest(FIRST)
    assert pair.name == NAME


@pytest.mark.parametrize("has_record", [False, True])
def test_a_job_goes_on_with_the_model_that_it_began_with(tmp_path: Path, has_record: bool):
    """The last release kept no record of the model while it bridged."""
    job = job_in(tmp_path / "out")
    begin_bridging(job)
    if has_record:
        write_json(job.work / DENSE_JSON, {"model": NAME, "sha256": model_digest(BUNDLED / NAME)})
    given = GivenModel(job)
    assert given.folder.path == (BUNDLED / NAME if has_record else FIRST)
    assert given.dense is not None
    assert given.dense.name == NAME


def test_a_new_job_has_the_newest_version_and_writes_down_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = job_in(tmp_path / "out")
    given = GivenModel(job)
    assert given.folder.path == BUNDLED / NAME
    monkeypatch.setattr("extractor.jobs.bridge_stage.bridge", lambda *_: begin_bridging(job))
    make_model(job, given, SimpleNamespace())  # type: ignore[arg-type]
    assert GivenModel(job).folder.path == BUNDLED / NAME


def test_a_model_that_changed_while_its_job_waited_is_refused(tmp_path: Path):
    folder = tmp_path / "mine"
    shutil.copytree(FIRST, folder)
    job = job_in(tmp_path / "out", model=str(folder))
    begin_bridging(job)
    write_json(job.work / DENSE_JSON, GivenModel(job).dense.facts)  # type: ignore[union-attr]
    assert GivenModel(job).folder.path == folder
    shutil.copyfile(BUNDLED / NAME / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(BrokenArtifact, match=r"has changed since this job began; restore it, or submit the job again"):
        GivenModel(job)


@pytest.mark.parametrize("begun_by", ["nobody", "the last release", "this version"])
def test_the_generated_programs_of_a_job_are_those_that_it_began_with(tmp_path: Path, begun_by: str):
    """Also at the second attempt of this version."""
    job = job_in(tmp_path / "out")
    if begun_by == "this version":
        assert job.generator_version == GENERATOR_VERSION
        job.keep_generator_version()
        write_json(job.work / DENSE_JSON, {"sha256": model_digest(BUNDLED / NAME)})
    if begun_by != "nobody":
        begin_bridging(job)
    corpus = CorpusSpec(sources=("stdlib", "generated"), generated_programs=20)
    is_earlier = begun_by == "the last release"
    for _ in range(2):
        text = list(documents(job.text(corpus), job.text(corpus).sources[1]))
        assert text == list((programs if is_earlier else generated_programs)(20, 0))
        job.keep_generator_version()
        write_json(job.work / DENSE_JSON, {"sha256": model_digest(FIRST if is_earlier else BUNDLED / NAME)})
        begin_bridging(job)


@pytest.mark.parametrize("sources", [("generated",), ("prose",)])
def test_a_model_that_is_bridged_on_earlier_text_is_not_cached_under_the_address_of_todays(
    tmp_path: Path, sources: tuple[str, ...], monkeypatch
):
    monkeypatch.setenv("EXTRACT_CACHE_DIR", str(tmp_path / "cache"))
    job = job_in(tmp_path / "out", corpus=CorpusSpec(sources=sources, generated_programs=20))
    job.bridged = tmp_path / "kept"
    begin_bridging(job)
    given = GivenModel(job)
    assert given.corpus(job).sources == [EARLIER_GENERATED if source == "generated" else source for source in sources]
    assert job.bridged == (None if "generated" in sources else tmp_path / "kept")


def test_a_cached_model_of_another_version_is_left_alone(tmp_path: Path):
    job = job_in(tmp_path / "out")
    job.bridged = kept = tmp_path / "kept"
    (kept / "model").mkdir(parents=True)
    write_json(kept / "model" / DENSE_JSON, {"sha256": model_digest(FIRST)})
    dense: Any = SimpleNamespace(facts={"sha256": model_digest(BUNDLED / NAME)})
    assert not load_from_cache(job, dense)
    assert job.bridged is None
    assert (kept / "model" / DENSE_JSON).is_file()


def test_a_folder_beside_one_of_nearly_its_name_is_no_version_of_it(tmp_path: Path):
    for name in ("mine", "mine-1"):
        shutil.copytree(FIRST if name == "mine" else BUNDLED / NAME, tmp_path / name)
    job = job_in(tmp_path / "out", model=str(tmp_path / "mine"))
    begin_bridging(job)
    assert GivenModel(job).folder.path == tmp_path / "mine"
