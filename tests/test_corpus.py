"""Text to shards to batches."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import CORPUS

from extractor.corpus import _is_held_out, build_corpus, check_sources, documents
from extractor.errors import SpecError
from extractor.programs import programs
from extractor.specs import CorpusSpec


def of(*sources: Path | str) -> CorpusSpec:
    return CorpusSpec(sources=tuple(str(s) for s in sources))


def texts(path: Path) -> list[str]:
    return list(documents(of(path), str(path)))


def test_a_batch_is_a_pure_function_of_seed_and_step(corpus):
    one = corpus.batch(3, 7, 16, 32)
    corpus.batch(3, 8, 16, 32)
    assert torch.equal(one, corpus.batch(3, 7, 16, 32))
    assert one.shape == (16, 32)
    assert one.dtype == torch.int64


@pytest.mark.parametrize(("seed", "step"), [(3, 8), (4, 7), (7, 3)])
def test_batches_differ_across_steps_and_seeds(corpus, seed: int, step: int):
    assert not torch.equal(corpus.batch(3, 7, 16, 32), corpus.batch(seed, step, 16, 32))


def test_a_batch_holds_windows_of_the_training_tokens(corpus):
    stream = np.concatenate([shard for source in corpus.train for shard in source])
    windows = {tuple(w) for w in np.lib.stride_tricks.sliding_window_view(stream, 24).tolist()}
    assert all(tuple(row) in windows for row in corpus.batch(0, 0, 32, 24).tolist())


def test_held_out_documents_are_never_trained_on(corpus, tokenizer):
    kept = list(programs(CORPUS.generated_programs, CORPUS.seed))
    held = [text for text in kept if _is_held_out(text)]
    assert held
    assert len(held) < len(kept) / 10
    end = tokenizer.token_to_id("<|endoftext|>")

    def stream(documents: list[str]) -> list[int]:
        return [i for text in documents for i in [*tokenizer.encode(text).ids, end]]

    train = np.concatenate([shard for source in corpus.train for shard in source])
    assert train.tolist() == stream([text for text in kept if not _is_held_out(text)])
    assert corpus.held_out[0].tolist() == stream(held)


def test_held_out_batches_come_from_held_out_tokens(corpus):
    windows = {tuple(w) for w in np.lib.stride_tricks.sliding_window_view(corpus.held_out[0], 24).tolist()}
    assert all(tuple(row) in windows for row in corpus.held_out_batch(0, 16, 24).tolist())


def test_a_second_build_opens_the_cache(tokenizer, tmp_path: Path):
    def stamps() -> dict[str, int]:
        return {p.as_posix(): p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*"))}

    first = build_corpus(CORPUS.model_copy(update={"generated_programs": 20}), tokenizer, tmp_path)
    before = stamps()
    again = build_corpus(CORPUS.model_copy(update={"generated_programs": 20}), tokenizer, tmp_path)
    assert stamps() == before
    assert torch.equal(first.batch(0, 0, 4, 16), again.batch(0, 0, 4, 16))


def test_changed_text_is_another_corpus(tokenizer, tmp_path: Path):
    source = tmp_path / "text.txt"
    source.write_text("one = 1\n" * 50)
    small = build_corpus(of(source), tokenizer, tmp_path / "cache")
    source.write_text("two = 2\n" * 500)
    assert build_corpus(of(source), tokenizer, tmp_path / "cache").tokens > small.tokens


def test_nothing_half_written_stays_in_the_cache(tokenizer, tmp_path: Path):
    build_corpus(CORPUS.model_copy(update={"generated_programs": 20}), tokenizer, tmp_path)
    folders = list((tmp_path / "corpus").iterdir())
    assert len(folders) == 1
    assert "-" not in folders[0].name


def test_a_text_file_is_one_document(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x = 1\ny = 2\n")
    assert texts(tmp_path / "a.txt") == ["x = 1\ny = 2\n"]


def test_a_jsonl_file_is_a_document_per_line(tmp_path: Path):
    lines = [json.dumps({"text": "x = 1", "id": 4}), "", json.dumps({"text": "y = 2"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    assert texts(tmp_path / "a.jsonl") == ["x = 1", "y = 2"]


def test_a_jsonl_document_may_hold_the_line_separators_that_json_leaves_bare(tmp_path: Path):
    text = "one\u2028two\x0cthree\x85four"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert texts(tmp_path / "a.jsonl") == [text]


def test_a_folder_is_its_files_in_a_fixed_order_and_skips_what_is_not_text(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "late.py").write_text("late")
    (tmp_path / "a.txt").write_text("early")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "picture.bin").write_bytes(b"\xff\xfe\x00\x80")
    assert texts(tmp_path) == ["early", "late"]


def test_several_sources_are_drawn_alike_whatever_their_size(tokenizer, tmp_path: Path):
    (tmp_path / "few.txt").write_text("aaaa " * 60)
    (tmp_path / "many.txt").write_text("zz = 1\n" * 4000)
    corpus = build_corpus(of(tmp_path / "few.txt", tmp_path / "many.txt"), tokenizer, tmp_path / "cache")
    few = set(corpus.train[0][0].tolist()) - set(corpus.train[1][0].tolist())
    share = sum(bool(few & set(row)) for row in corpus.batch(0, 0, 400, 8).tolist()) / 400
    assert share == pytest.approx(0.5, abs=0.1)


def test_bigrams_are_counted_by_hand(tokenizer, tmp_path: Path):
    (tmp_path / "a.txt").write_text("ab" * 100)
    corpus = build_corpus(of(tmp_path / "a.txt"), tokenizer, tmp_path / "cache")
    ids = corpus.train[0][0].tolist()
    counts = corpus.bigram_counts(tokenizer.get_vocab_size())
    pairs = list(itertools.pairwise(ids))
    for pair in set(pairs):
        assert counts[pair] == pytest.approx(pairs.count(pair) * len(ids) / len(pairs))
    assert counts.sum() == pytest.approx(len(ids))


def refused(source: Path | str) -> str:
    with pytest.raises(SpecError) as caught:
        check_sources(of(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_source_is_refused_in_one_line(tmp_path: Path):
    assert "not found" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "blank.txt"])
def test_an_empty_source_is_refused_in_one_line(tmp_path: Path, name: str):
    (tmp_path / name).write_text("\n \n" if "blank" in name else "")
    assert "holds no text" in refused(tmp_path / name)


def test_an_empty_folder_is_refused_in_one_line(tmp_path: Path):
    assert "holds no text" in refused(tmp_path)


def test_a_file_that_is_not_text_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\x80")
    assert "holds no text" in refused(tmp_path / "a.txt")


@pytest.mark.parametrize("line", ["{broken", '{"body": "x"}', "[1]", '"text"', "3", "null"])
def test_a_broken_jsonl_line_is_refused_by_its_number(tmp_path: Path, line: str):
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    assert "line 1: expected a JSON object with a 'text' field" in refused(tmp_path / "a.jsonl")


def test_a_jsonl_text_that_is_no_string_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    assert "line 1" in refused(tmp_path / "a.jsonl")


def test_a_jsonl_file_of_empty_texts_holds_no_text(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    assert "holds no text" in refused(tmp_path / "a.jsonl")


def test_a_broken_line_further_down_is_one_line_too(tokenizer, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text"\n')
    with pytest.raises(SpecError, match="line 2"):
        build_corpus(of(tmp_path / "a.jsonl"), tokenizer, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_corpus_shorter_than_a_context_is_refused(tokenizer, tmp_path: Path):
    (tmp_path / "a.txt").write_text("x = 1\n" * 3)
    with pytest.raises(SpecError, match="shorter than one context of 512 tokens"):
        build_corpus(of(tmp_path / "a.txt"), tokenizer, tmp_path / "cache").batch(0, 0, 1, 512)


def test_the_generator_repeats_itself_under_a_seed():
    assert list(programs(20, 5)) == list(programs(20, 5))
    assert list(programs(20, 5)) != list(programs(20, 6))
    assert list(programs(20, 5)) == list(programs(40, 5))[:20]


def test_every_generated_program_compiles():
    broken = []
    for index, text in enumerate(programs(300, 0)):
        try:
            compile(text, f"program-{index}", "exec")
        except SyntaxError as error:
            broken.append(f"{index}: {error.msg}, line {error.lineno}: {text.splitlines()[(error.lineno or 1) - 1].strip()}")
    assert broken == []
