"""A dataset's stream as shards: what is in them, and from where a killed preparation goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_datasets import PREPARE, TEXTS, contents, lines, local, parquet, prepare_killed, programs_folder, refused, save
from worlds import ROOT

from extractor.data import shards, streams
from extractor.data.build_corpus import build_corpus, corpus_for
from extractor.data.corpus import Corpus
from extractor.data.encoding import document_marks
from extractor.data.shards import is_held_out, locked, prepare_dataset
from extractor.data.streams import DocumentStream, check_dataset
from extractor.errors import BrokenArtifact
from extractor.progress import Progress, Stopped
from extractor.spec.schema import CorpusSpec, OptimSpec, TrainSpec

pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three JSON-lines files, 400 programs."""
    return programs_folder(tmp_path_factory.mktemp("data") / "programs")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and blocks so small that 400 programs fill many."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", 5_000)
    monkeypatch.setattr(shards, "BLOCK_DOCUMENTS", 16)


def encode(texts: list[str], tokenizer) -> list[int]:
    end = tokenizer.token_to_id("<|endoftext|>")
    return [i for text in texts for i in [*tokenizer.encode(text).ids, end]]


def shuffled(texts: list[str], seed: int, block: int) -> list[str]:
    found = []
    for number, start in enumerate(range(0, len(texts), block)):
        here = texts[start : start + block]
        found += [here[i] for i in np.random.Generator(np.random.Philox(key=[seed, number])).permutation(len(here))]
    return found


@pytest.mark.parametrize("layout", ["jsonl", "parquet"])
def test_shards_hold_every_document_once_shuffled_within_blocks(folder: Path, tokenizer, tmp_path: Path, small: None, layout: str):
    if layout == "parquet":
        files = {f"data/train-{i}.parquet": parquet(TEXTS[i * 100 : (i + 1) * 100]) for i in range(4)}
        folder = save(tmp_path / "parquet", files)
    found = Corpus(prepare_dataset(local(folder), tokenizer, 3, tmp_path / "cache"))
    order = shuffled(TEXTS, 3, 16)
    train = encode([t for t in order if not is_held_out(t)], tokenizer)
    assert np.concatenate(found.train[0]).tolist() == train
    assert [len(shard) for shard in found.train[0]][:-1] == [5_000] * (len(train) // 5_000)
    assert found.held_out[0].tolist() == encode([t for t in order if is_held_out(t)], tokenizer)


def test_the_token_budget_is_met_exactly(folder: Path, tokenizer, tmp_path: Path):
    found = Corpus(prepare_dataset(local(folder, tokens=7_001), tokenizer, 0, tmp_path))
    assert found.tokens + len(found.held_out[0]) == 7_001


def test_the_seed_orders_documents_anew(folder: Path, tokenizer, tmp_path: Path):
    one, same, other = (Corpus(prepare_dataset(local(folder), tokenizer, s, tmp_path / str(n))) for n, s in enumerate((1, 1, 2)))
    assert np.array_equal(one.train[0][0], same.train[0][0])
    assert not np.array_equal(one.train[0][0], other.train[0][0])
    assert sorted(one.train[0][0].tolist()) == sorted(other.train[0][0].tolist())


def test_documents_of_which_none_is_held_out_lend_their_end(tokenizer, tmp_path: Path, small: None):
    texts = [text for text in TEXTS if not is_held_out(text)]
    folder = save(tmp_path / "data", {"a.jsonl": lines(texts)})
    found = Corpus(prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache"))
    ids = encode(shuffled(texts, 0, 16), tokenizer)
    assert np.concatenate([*found.train[0], found.held_out[0]]).tolist() == ids
    assert len(found.held_out[0]) == len(ids) // 50
    assert [len(shard) for shard in found.train[0]][:-1] == [5_000] * (len(found.train[0]) - 1)


def test_a_single_document_lends_its_end_to_the_held_out_tokens(tokenizer, tmp_path: Path):
    folder = save(tmp_path / "one", {"a.jsonl": lines(["x = 1\n" * 500])})
    found = Corpus(prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache"))
    ids = encode(["x = 1\n" * 500], tokenizer)
    assert found.train[0][0].tolist() + found.held_out[0].tolist() == ids
    assert len(found.held_out[0]) == len(ids) // 50


def test_a_second_preparation_reads_nothing(folder: Path, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = prepare_dataset(local(folder), tokenizer, 0, tmp_path)
    monkeypatch.setattr(streams, "_load", lambda spec: pytest.fail("the dataset was opened again"))
    assert prepare_dataset(local(folder), tokenizer, 0, tmp_path) == first


def test_changed_files_are_another_dataset(tokenizer, tmp_path: Path):
    folder = save(tmp_path / "data", {"a.jsonl": lines(TEXTS[:20])})
    first = prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache")
    save(folder, {"a.jsonl": lines(TEXTS[20:60])})
    assert contents(prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache")) != contents(first)


def test_a_stopped_preparation_goes_on_and_ends_in_the_same_bytes(folder: Path, tokenizer, tmp_path: Path, small: None):
    whole = prepare_dataset(local(folder), tokenizer, 0, tmp_path / "whole")
    stops, notes = 0, []
    for patience in [60, 5, 0, 200, 90, 10_000]:
        asked = iter(range(patience))
        try:
            progress = Progress(lambda e: notes.append(e.get("message")), lambda asked=asked: next(asked, None) is None)
            pieces = prepare_dataset(local(folder), tokenizer, 0, tmp_path / "pieces", progress)
        except Stopped:
            stops += 1
    assert stops == 5
    assert contents(pieces) == contents(whole)
    assert any(note and "continuing after" in note for note in notes)


def test_what_was_read_is_not_read_again(folder: Path, tokenizer, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch):
    asked = iter(range(350))
    with pytest.raises(Stopped):
        prepare_dataset(local(folder), tokenizer, 0, tmp_path, Progress(should_stop=lambda: next(asked, None) is None))
    read: list[str] = []
    plain = DocumentStream.__next__
    monkeypatch.setattr(DocumentStream, "__next__", lambda self: read.append(plain(self)) or read[-1])
    prepare_dataset(local(folder), tokenizer, 0, tmp_path)
    blocks = (400 - len(read)) // 16
    assert 0 < blocks < 25
    assert read == TEXTS[blocks * 16 :]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["state", "shard", "pending"])
def test_a_damaged_rest_is_thrown_away(folder: Path, tokenizer, tmp_path: Path, small: None, damage: str):
    whole = prepare_dataset(local(folder), tokenizer, 0, tmp_path / "whole")
    asked = iter(range(350))
    with pytest.raises(Stopped):
        prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cut", Progress(should_stop=lambda: next(asked, None) is None))
    (part,) = (tmp_path / "cut" / "datasets").glob("*.part")
    victim = next(part.glob({"state": "state.json", "shard": "train-*.npy", "pending": "pending-*.npy"}[damage]))
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert contents(prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cut")) == contents(whole)


@pytest.mark.slow
def test_a_preparation_killed_again_and_again_ends_in_the_same_bytes(folder: Path, tokenizer, tmp_path: Path, small: None):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    whole = prepare_dataset(local(folder), tokenizer, 0, tmp_path / "whole")
    killed = prepare_killed(local(folder), tmp_path / "tokenizer.json", tmp_path / "killed", {}, [9, 17])
    assert contents(killed) == contents(whole)
    assert not list(killed.parent.glob("*.part"))


def test_a_second_job_waits_for_the_first(folder: Path, tokenizer, tmp_path: Path, small: None):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    arguments = [sys.executable, "-c", PREPARE, local(folder).model_dump_json(), str(tmp_path / "tokenizer.json"), str(tmp_path), "0"]
    place = tmp_path / "datasets" / shards._identity(local(folder), tokenizer, 0, document_marks(tokenizer))
    with locked(place.with_suffix(".lock"), Progress()):
        second = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert "waiting for it" in second.stdout.readline()
        shards._prepare(local(folder), tokenizer, 0, place, Progress(), 0, 1, document_marks(tokenizer))
    assert second.communicate()[0] == ""
    assert second.returncode == 0


def test_a_waiting_job_can_be_stopped(tmp_path: Path):
    with locked(tmp_path / "a.lock", Progress()), pytest.raises(Stopped), locked(tmp_path / "a.lock", Progress(should_stop=lambda: True)):
        pytest.fail("the lock was held twice")


def test_damaged_data_is_named_by_its_row_and_what_came_before_is_kept(tokenizer, tmp_path: Path, small: None):
    folder = save(tmp_path / "data", {"a.jsonl": lines(TEXTS[:100]), "b.jsonl": b'{"text": "x"\n{{{\n'})
    text = refused(lambda: prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache"), BrokenArtifact)
    assert "cannot be read after row 100" in text
    (part,) = (tmp_path / "cache" / "datasets").glob("*.part")
    assert json.loads((part / "state.json").read_text())["blocks"] == 6


@pytest.mark.parametrize("content", [lines(["", "  ", None]), lines([None, None])], ids=["blank", "null"])
def test_a_dataset_without_text_is_refused_and_leaves_nothing(tokenizer, tmp_path: Path, content: bytes):
    folder = save(tmp_path / "data", {"a.jsonl": content})
    assert "holds no text in column 'text'" in refused(lambda: check_dataset(local(folder)))
    assert "holds no text" in refused(lambda: prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache"))
    assert not [p for p in (tmp_path / "cache" / "datasets").iterdir() if p.is_dir()]


def test_an_early_end_is_a_note_and_not_an_error(folder: Path, tmp_path: Path):
    notes: list[str] = []
    progress = Progress(lambda event: notes.append(event["message"]) if event["event"] == "note" else None)
    train = TrainSpec(vocab_size=300, optim=OptimSpec(steps=1000, batch=100, context=64))
    tokenizer, corpus = corpus_for(CorpusSpec(sources=(), datasets=(local(folder),)), train, progress)
    found = corpus.tokens + len(corpus.held_out[0])
    (note,) = [note for note in notes if " ends after " in note]
    assert f"ends after {found:,} of the 10,000,000 tokens requested; training will read them {6_400_000 / found:.1f} times" in note
    assert tokenizer.get_vocab_size() == 300


def test_sources_and_datasets_are_drawn_alike(folder: Path, tokenizer, tmp_path: Path):
    spec = CorpusSpec(sources=("generated",), generated_programs=50, datasets=(local(folder, tokens=3_000),))
    corpus = build_corpus(spec, tokenizer, tmp_path)
    assert len(corpus.train) == 2
    data = corpus.train[1][0].tolist()
    windows = {tuple(data[i : i + 24]) for i in range(len(data) - 23)}
    share = sum(tuple(row) in windows for row in corpus.batch(0, 0, 400, 24).tolist()) / 400
    assert share == pytest.approx(0.5, abs=0.1)


def test_rows_without_text_are_counted_over_interruptions_and_noted_by_every_job(tokenizer, tmp_path: Path, small: None):
    texts = [None if number % 5 == 0 else text for number, text in enumerate(TEXTS[:200])]
    folder = save(tmp_path / "data", {"a.jsonl": lines(texts)})
    asked = iter(range(120))
    with pytest.raises(Stopped):
        prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache", Progress(should_stop=lambda: next(asked, None) is None))
    for _ in range(2):
        notes: list[str] = []
        progress = Progress(lambda event, notes=notes: notes.append(event.get("message", "")))
        build_corpus(CorpusSpec(sources=(), datasets=(local(folder),)), tokenizer, tmp_path / "cache", progress=progress)
        assert f"dataset {folder}: rows without text, left out: 40" in notes


def test_a_folder_that_changes_while_it_is_read_is_refused_and_nothing_is_kept(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = save(tmp_path / "data", {"a.jsonl": lines(TEXTS[:50])})
    plain = shards._tokenize

    def change(*arguments):
        save(folder, {"a.jsonl": lines(TEXTS[50:100])})
        return plain(*arguments)

    monkeypatch.setattr(shards, "_tokenize", change)
    assert "changed while they were read" in refused(lambda: prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache"))
    assert not [p for p in (tmp_path / "cache" / "datasets").iterdir() if p.is_dir()]


def test_a_dataset_of_other_content_but_the_same_size_and_time_is_another(tokenizer, tmp_path: Path):
    folder = save(tmp_path / "data", {"a.jsonl": lines(["one = 1\n" * 90])})
    stamp = (folder / "a.jsonl").stat()
    first = prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache")
    save(folder, {"a.jsonl": lines(["two = 2\n" * 90])})
    os.utime(folder / "a.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert prepare_dataset(local(folder), tokenizer, 0, tmp_path / "cache") != first
