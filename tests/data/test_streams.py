"""Hugging Face datasets: what is read, and what is refused. The hub is on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import LocalHub, Repository, serve
from made_datasets import TEXTS, contents, lines, local, parquet, prepare_killed, programs_folder, refused, save
from worlds import ROOT, python

from extractor.data.build_corpus import build_corpus
from extractor.data.streams import check_dataset, pin_dataset
from extractor.errors import NotFound
from extractor.models.reference import BUNDLED
from extractor.models.tokenizer import load_tokenizer
from extractor.progress import Progress
from extractor.spec.schema import CorpusSpec, DatasetSpec

pytest.importorskip("datasets")
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three JSON-lines files, 400 programs."""
    return programs_folder(tmp_path_factory.mktemp("data") / "programs")


def test_columns_are_checked(tmp_path: Path):
    folder = save(tmp_path / "data", {"a.jsonl": lines(TEXTS[:5], "body")})
    text = refused(lambda: check_dataset(local(folder)))
    assert "has no column 'text'; it has body (string), n (int64)" in text
    assert "column 'n' holds int64, not text" in refused(lambda: check_dataset(local(folder, text_column="n")))
    check_dataset(local(folder, text_column="body"))


def test_splits_and_configurations_are_checked(folder: Path):
    assert "has no split 'validation'; Available splits: ['train']" in refused(lambda: check_dataset(local(folder, split="validation")))
    assert "no configuration 'en'; available: ['default']" in refused(lambda: check_dataset(local(folder, config="en")))


def test_a_folder_without_data_is_refused(tmp_path: Path):
    save(tmp_path / "data", {"README.md": b"# nothing"})
    assert "holds no data files" in refused(lambda: check_dataset(local(tmp_path / "data")))


@pytest.mark.slow
def test_files_that_belong_to_no_split_are_named(tmp_path: Path):
    parts = {"a.jsonl": lines(TEXTS[:30]), "more/c.jsonl": lines(TEXTS[30:60]), "b.csv": b"text\nx\n", "README.md": b"# made"}
    spec, notes = local(save(tmp_path / "mixed", parts), tokens=100), list[str]()
    check_dataset(spec, notes.append)
    assert notes == [f"dataset {spec.name}: files that belong to no split, not read: 1 (b.csv)"]
    told: list[dict] = []
    for _ in range(2):  # made, and found in the cache
        build_corpus(
            CorpusSpec(datasets=(spec,)), load_tokenizer(BUNDLED / "python-tiny"), tmp_path / "cache", progress=Progress(told.append)
        )
    assert [event["message"] for event in told if event["event"] == "note" and "no split" in event["message"]] == notes * 2
    train_only = local(save(tmp_path / "named", {"stories.jsonl": lines(TEXTS[:9]), "train.jsonl": lines(TEXTS[9:20])}))
    check_dataset(train_only, notes.append)
    assert notes[1].endswith("not read: 1 (stories.jsonl)")


def test_text_files_are_said_to_be_read_line_by_line(tmp_path: Path):
    notes: list[str] = []
    check_dataset(local(save(tmp_path / "data", {"train.txt": b"def f():\n    return 1\n"})), notes.append)
    assert "every line a document; --corpus reads every file as one" in notes[0]


def test_data_files_outside_of_the_folder_are_refused(tmp_path: Path):
    save(tmp_path / "elsewhere", {"train.jsonl": lines(TEXTS[:9])})
    card = b"---\nconfigs:\n- config_name: default\n  data_files: ../elsewhere/train.jsonl\n---\n"
    folder = save(tmp_path / "data", {"README.md": card})
    assert "names data files outside of its folder" in refused(lambda: check_dataset(local(folder)))


@pytest.mark.parametrize("name", ["a [x]", "star*", "dbl::x", "what?"])
def test_a_folder_whose_name_is_a_pattern_is_refused(tmp_path: Path, name: str):
    folder = save(tmp_path / name, {"train.jsonl": lines(TEXTS[:9])})
    assert "is read as a pattern or a chain; rename it" in refused(lambda: pin_dataset(local(folder)))


def test_a_dataset_that_was_saved_to_disk_is_said_to_be_one(tmp_path: Path):
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS[:5]}).save_to_disk(tmp_path / "saved")
    assert "was saved with save_to_disk; save it with to_parquet(...)" in refused(lambda: pin_dataset(local(tmp_path / "saved")))


def test_a_first_row_without_text_says_nothing_of_the_column(tmp_path: Path):
    check_dataset(local(save(tmp_path / "csv", {"train.csv": b"text,n\n,0\nhello you,1\n"})))


def test_views_of_strings_are_text(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": pa.array(TEXTS[:5], pa.string_view())}), tmp_path / "data" / "a.parquet")
    check_dataset(local(tmp_path / "data"))


def test_a_script_is_never_run(tmp_path: Path):
    folder = save(tmp_path / "evil", {"evil.py": b"raise SystemExit('the code ran')", "a.jsonl": lines(TEXTS[:3])})
    assert "remote code is never run" in refused(lambda: check_dataset(local(folder)))


def test_references_that_lead_nowhere_are_not_found(tmp_path: Path, folder: Path):
    for name in ("/nowhere/at/all", "./nowhere", "a b", "a/b/c"):
        assert "not found" in refused(lambda name=name: pin_dataset(DatasetSpec(name=name)), NotFound)
    assert "is a file" in refused(lambda: pin_dataset(DatasetSpec(name=str(folder / "part-0.jsonl"))))
    assert "has no revision 'main'" in refused(lambda: pin_dataset(local(folder, revision="main")))


def test_a_folder_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    assert pin_dataset(DatasetSpec(name="programs")) == local(folder)


def test_without_the_library_one_line_says_what_to_install(folder: Path):
    code = (
        "import sys\nfrom importlib.abc import MetaPathFinder\n"
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'datasets' else find(name, *a)\n"
        "from extractor.errors import SpecError\nfrom extractor.jobs.request import dataset, train_job\n"
        "try:\n    train_job(datasets=(dataset(sys.argv[1]),))\nexcept SpecError as error:\n    print(error)"
    )
    assert "deploy/in-venv pip install -c deploy/constraints.txt -e '.[datasets]'" in python(code, str(folder))


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    old = {"README.md": b"# old", "train-0.jsonl": lines(TEXTS[:150]), "train-1.jsonl": lines(TEXTS[150:300])}
    new = {"README.md": b"# new", "train-0.jsonl": lines(TEXTS[300:])}
    card = b"---\nconfigs:\n- config_name: one\n  data_files: one/*\n- config_name: two\n  data_files: two/*\n---\n"
    configs = {"README.md": card, "one/a.parquet": parquet(TEXTS[:30]), "two/a.parquet": parquet(TEXTS[30:60])}
    datasets = {
        "some/data": Repository({OLD: old, NEW: new}),
        "some/configs": Repository({OLD: configs}),
        "some/script": Repository({OLD: {"script.py": b"raise SystemExit('the code ran')"}}),
        "some/gated": Repository({OLD: {}}, gated=True),
    }
    with serve(LocalHub(datasets=datasets)) as served:
        yield served


ASK = """
import json, sys
from extractor.errors import ExtractorError
from extractor.jobs.request import dataset
from extractor.data import streams
streams.RETRY_SECONDS = (0.1, 0.1)
found = []
for reference in sys.argv[1:]:
    try:
        spec = streams.pin_dataset(dataset(reference))
        streams.check_dataset(spec)
        found.append([spec.revision, next(streams.DocumentStream(spec))])
    except ExtractorError as error:
        found.append([type(error).__name__, str(error)])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_revision_is_pinned_and_what_is_streamed_is_the_pinned_commit(hub: LocalHub, tmp_path: Path):
    hub.fetched.clear()
    found = json.loads(python(ASK, "some/data", f"some/data@{OLD}", "some/configs:two", env=hub.environment(tmp_path)))
    assert found == [[NEW, TEXTS[300]], [OLD, TEXTS[0]], [OLD, TEXTS[30]]]
    assert {sha for sha, file in hub.fetched if file == "train-1.jsonl"} <= {OLD}
    assert {sha for sha, file in hub.fetched if file == "train-0.jsonl"} == {OLD, NEW}


def test_a_parquet_file_that_is_not_read_to_its_end_leaves_the_interpreter_clean(tmp_path: Path):
    folder = save(tmp_path / "data", {"a.parquet": parquet(TEXTS * 50)})
    code = ASK.replace("print(", "half_read = streams.DocumentStream(spec); next(half_read); print(")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_hub_refuses_is_one_line(hub: LocalHub, tmp_path: Path):
    names = ("some/nothing", "some/gated", "some/data@v9", "some/data:german", "some/configs", "some/script")
    found = json.loads(python(ASK, *names, env=hub.environment(tmp_path)))
    assert all("\n" not in text for _, text in found)
    assert [kind for kind, _ in found] == ["NotFound"] * 3 + ["SpecError"] * 3
    parts = (
        "not on the hub",
        "is gated",
        "has no revision 'v9'",
        "no configuration 'german'",
        "choose one with --dataset-config",
        "script",
    )
    assert all(part in text for part, (_, text) in zip(parts, found, strict=True))
    assert "['one', 'two']" in found[4][1]


def test_an_unreachable_hub_is_one_line(tmp_path: Path):
    ((kind, text),) = json.loads(python(ASK, "some/data", env=LocalHub(endpoint="http://127.0.0.1:9").environment(tmp_path)))
    assert kind == "HubUnavailable"
    assert "the hub cannot be reached" in text


@pytest.fixture(scope="module")
def from_hub(hub: LocalHub, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetSpec, Path, dict[str, str]]:
    """A dataset of the hub, its tokenizer's file, and what an undisturbed preparation leaves."""
    home = tmp_path_factory.mktemp("hub")
    tokenizer.save(str(home / "tokenizer.json"))
    spec = DatasetSpec(name="some/data", revision=OLD)
    return spec, home / "tokenizer.json", contents(prepare_killed(spec, home / "tokenizer.json", home, hub.environment(home), []))


@pytest.mark.slow
def test_a_killed_preparation_over_the_hub_ends_in_the_same_bytes(hub: LocalHub, from_hub, tmp_path: Path):
    spec, tokenizer_file, whole = from_hub
    assert contents(prepare_killed(spec, tokenizer_file, tmp_path, hub.environment(tmp_path), [12])) == whole
    assert len([name for name in whole if name.startswith("train-")]) > 3


BREAK = """
import json, sys
from extractor.data import streams
from extractor.errors import ExtractorError
from extractor.progress import Progress
from extractor.spec.schema import DatasetSpec
streams.RETRY_SECONDS = (0.0, 0.0, 0.0)
notes = []
progress = Progress(lambda event: notes.append(event["message"]))
stream = streams.DocumentStream(DatasetSpec(name="some/data", revision="a" * 40), progress=progress, retries=3)
broken, plain = set(map(int, sys.argv[2:])), streams._load
def load(spec):
    dataset, remarks = plain(spec)
    class Breaking:
        state_dict, load_state_dict = dataset.state_dict, dataset.load_state_dict
        def __iter__(self):
            for row in dataset:
                number = len(texts)
                if number in broken:
                    if sys.argv[1] == 'once':
                        broken.discard(number)
                    raise ConnectionResetError('connection reset by peer')
                yield row
    return Breaking(), remarks
streams._load = load
texts = []
try:
    for text in stream:
        texts.append(text)
        if len(texts) % 50 == 0:
            stream.position()
    print(json.dumps([texts, notes]))
except ExtractorError as error:
    print(json.dumps([type(error).__name__, str(error), len(texts)]))
"""


@pytest.mark.slow
def test_a_broken_connection_is_opened_again_where_it_broke(hub: LocalHub, tmp_path: Path):
    texts, notes = json.loads(python(BREAK, "once", "0", "70", "71", "200", env=hub.environment(tmp_path)))
    assert texts == TEXTS[:300]
    assert len(notes) == 4
    assert all("connection reset by peer; trying again" in note for note in notes)


def test_a_connection_that_stays_broken_is_one_line(hub: LocalHub, tmp_path: Path):
    kind, text, read = json.loads(python(BREAK, "always", "123", env=hub.environment(tmp_path)))
    assert (kind, read) == ("ExtractorError", 123)
    assert "stopped after 123 rows (connection reset by peer)" in text
    assert "run the same command again to resume" in text


def test_reads_that_the_hub_cuts_off_do_no_harm(hub: LocalHub, from_hub, tmp_path: Path):
    spec, tokenizer_file, whole = from_hub
    hub.failing, began = 2, time.monotonic()
    assert contents(prepare_killed(spec, tokenizer_file, tmp_path, hub.environment(tmp_path), [])) == whole
    assert hub.failing == 0
    assert time.monotonic() - began < 60
