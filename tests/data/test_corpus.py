"""Text to shards to batches."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from worlds import CORPUS

from extractor.data import corpus as corpus_module
from extractor.data.build_corpus import build_corpus, corpus_for
from extractor.data.corpus import Corpus
from extractor.data.encoding import text_ids
from extractor.data.programs import programs
from extractor.data.prompts import tokenize_task
from extractor.data.realistic import generated_programs
from extractor.data.shards import is_held_out
from extractor.data.sources import check_sources, documents
from extractor.errors import BrokenArtifact, SpecError, TaskNotExpressible, UnsupportedModel
from extractor.models.tokenizer import load_tokenizer, open_tokenizer, resolve_tokenizer, train_tokenizer
from extractor.progress import Progress, Stopped
from extractor.spec.schema import CorpusSpec, TrainSpec
from tasks import find_task


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
    kept = list(generated_programs(CORPUS.generated_programs, CORPUS.seed))
    held = [text for text in kept if is_held_out(text)]
    assert held
    assert len(held) < len(kept) / 10
    end = tokenizer.token_to_id("<|endoftext|>")

    def stream(documents: list[str]) -> list[int]:
        return [i for text in documents for i in [*tokenizer.encode(text).ids, end]]

    train = np.concatenate([shard for source in corpus.train for shard in source])
    assert train.tolist() == stream([text for text in kept if not is_held_out(text)])
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


def plain_batch(sources: list[list[np.ndarray]], seed: int, step: int, rows: int, context: int) -> np.ndarray:
    """A batch as it is defined: for each row a source, then one of all its windows."""
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    usable = [[shard for shard in source if len(shard) > context] for source in sources]
    usable = [source for source in usable if source]
    out = []
    for _ in range(rows):
        source = usable[rng.integers(len(usable))]
        windows = [shard[i : i + context] for shard in source for i in range(len(shard) - context)]
        out.append(windows[int(rng.integers(len(windows)))])
    return np.stack(out).astype(np.int64)


@pytest.fixture
def many(tmp_path: Path) -> Corpus:
    """Three sources in twelve shards of uneven length, the shortest no longer than a context; one source is shorter still."""
    rng = np.random.default_rng(0)
    lengths = [[40, 300, 9, 77, 500, 24], [8], [90, 24, 25, 26, 31]]
    facts = []
    for index, source in enumerate(lengths):
        names = [f"{index}-{n}.npy" for n in range(len(source))]
        for name, length in zip(names, source, strict=True):
            np.save(tmp_path / name, rng.integers(0, 30, length).astype(np.uint16))
        facts.append({"train": names, "held_out": names[0]})
    (tmp_path / "corpus.json").write_text(json.dumps({"sources": facts}))
    return Corpus(tmp_path)


@pytest.mark.parametrize(("seed", "step", "context"), [(0, 0, 24), (3, 7, 24), (3, 8, 8), (1, 100, 200)])
def test_a_batch_over_many_shards_is_that_of_the_plain_definition(many: Corpus, seed: int, step: int, context: int):
    assert np.array_equal(many.batch(seed, step, 40, context).numpy(), plain_batch(many.train, seed, step, 40, context))


def test_a_batch_is_known_by_its_numbers(many: Corpus):
    """Seeds and windows are part of every result; these were drawn by the first version of this code."""
    assert many.batch(5, 11, 2, 8).tolist() == [[18, 26, 11, 12, 16, 16, 29, 5], [19, 12, 9, 17, 29, 3, 8, 28]]


@pytest.mark.parametrize("cuts", [(0, 40), (0, 7, 8, 40), (0, 10, 20, 30, 40), (0, 0, 40)])
def test_slices_of_a_batch_make_up_the_batch(many: Corpus, cuts: tuple[int, ...]):
    slices = [many.batch_rows(3, 7, 40, 24, start, stop) for start, stop in itertools.pairwise(cuts)]
    assert [len(s) for s in slices] == [stop - start for start, stop in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(slices), many.batch(3, 7, 40, 24))


@pytest.mark.parametrize("counted_at_once", [1 << 22, 10, 1])
def test_bigram_triples_are_the_entries_of_the_counts(many: Corpus, monkeypatch: pytest.MonkeyPatch, counted_at_once: int):
    monkeypatch.setattr(corpus_module, "COUNTED_TOKENS", counted_at_once)
    rows, columns, counts = many.bigram_triples(30)
    dense = many.bigram_counts(30)
    assert np.array_equal(np.stack([rows, columns]), np.stack(dense.nonzero()))
    assert np.array_equal(counts, dense[rows, columns])
    assert counts.sum() == pytest.approx(many.tokens)


def test_a_given_tokenizer_is_taken_and_a_trained_one_is_kept(gpt2_folder: Path, tokenizer, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("EXTRACT_CACHE_DIR", str(tmp_path))  # the session's cache may hold tokenizers of other tests
    spec = CorpusSpec(sources=("generated",), generated_programs=30)
    given, corpus = corpus_for(spec, TrainSpec(tokenizer=str(gpt2_folder)))
    assert given.get_vocab() == tokenizer.get_vocab()
    assert corpus.held_out[0].dtype == np.uint16
    trained, _ = corpus_for(spec, TrainSpec(vocab_size=290))
    assert trained.to_str() == train_tokenizer(generated_programs(30, 0), 290).to_str()
    (kept,) = (tmp_path / "tokenizers").glob("*.json")
    again, _ = corpus_for(spec, TrainSpec(vocab_size=290))
    assert again.to_str() == trained.to_str()
    assert list((tmp_path / "tokenizers").glob("*.json")) == [kept]
    kept.write_text("{")
    notes: list[dict] = []
    mended, _ = corpus_for(spec, TrainSpec(vocab_size=290), Progress(notes.append))
    assert mended.to_str() == trained.to_str()
    assert [note["message"] for note in notes] == ["the cached tokenizer of an earlier job is damaged; it is trained again"]


def test_the_same_tokenizer_that_splits_special_tokens_has_text_of_its_own(gpt2_folder: Path, cache: Path, tmp_path: Path):
    text = tmp_path / "special.txt"
    text.write_text("x = '<|endoftext|>'\n" * 400)
    spec, folders = CorpusSpec(sources=(str(text),)), []
    for split in (False, True):
        tokenizer = load_tokenizer(gpt2_folder)
        tokenizer.encode_special_tokens = split
        corpus = build_corpus(spec, tokenizer, cache)
        folders.append(corpus.folders[0])
        ids = tokenizer.encode(text.read_text(), add_special_tokens=False).ids
        assert list(corpus.train[0][0][:50]) == ids[:50]
    assert folders[0] != folders[1]


def test_documents_end_with_no_token_that_the_model_has_no_embedding_for(gpt2_folder: Path, cache: Path):
    spec, tokenizer = CorpusSpec(sources=("generated",), generated_programs=20), load_tokenizer(gpt2_folder)
    end = tokenizer.token_to_id("<|endoftext|>")
    usual = build_corpus(spec, tokenizer, cache, vocab_size=tokenizer.get_vocab_size())
    assert (usual.train[0][0] == end).any()
    without = Tokenizer.from_str(tokenizer.to_str().replace("<|endoftext|>", "</s>"))
    without.add_special_tokens(["<|endoftext|>"])  # as transformers does for a GPT-2 tokenizer with an end of its own
    size = without.token_to_id("<|endoftext|>")
    corpus = build_corpus(spec, without, cache, vocab_size=size)
    assert max(int(part.max()) for part in corpus.train[0]) < size
    assert build_corpus(spec, without, cache).folders != corpus.folders


def test_text_that_a_tokenizer_has_no_tokens_for_is_one_line(cache: Path, tmp_path: Path):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"x": 0}, unk_token="[UNK]"))
    (tmp_path / "a.txt").write_text("y = 1\n")
    with pytest.raises(UnsupportedModel, match="the tokenizer cannot write this text: WordLevel error: Missing"):
        build_corpus(CorpusSpec(sources=(str(tmp_path / "a.txt"),)), tokenizer, cache)
    with pytest.raises(UnsupportedModel, match="cannot write the text 'y = 1'"):
        text_ids(tokenizer, "y = 1")
    with pytest.raises(TaskNotExpressible, match="cannot be asked under this tokenizer: the tokenizer cannot write the text"):
        tokenize_task(find_task("quote_close"), tokenizer)


def test_a_tokenizer_without_an_end_of_text_is_given_one(tmp_path: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.add_tokens(list("abc"))
    plain.save(str(tmp_path / "tokenizer.json"))
    opened = open_tokenizer(resolve_tokenizer(str(tmp_path)))
    assert opened.token_to_id("<|endoftext|>") == 3
    assert opened.get_vocab_size() == 4


def test_a_damaged_cache_is_one_line(tokenizer, tmp_path: Path):
    spec = CorpusSpec(sources=("generated",), generated_programs=20)
    build_corpus(spec, tokenizer, tmp_path)
    next(tmp_path.rglob("0-train-*.npy")).write_bytes(b"\x93NUMPY")
    with pytest.raises(BrokenArtifact, match="delete that folder and run again"):
        build_corpus(spec, tokenizer, tmp_path)


def test_a_stop_leaves_no_half_corpus(tokenizer, tmp_path: Path):
    with pytest.raises(Stopped):
        build_corpus(
            CorpusSpec(sources=("generated",), generated_programs=20), tokenizer, tmp_path, progress=Progress(should_stop=lambda: True)
        )
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_halves_of_surrogate_pairs_do_no_harm(tokenizer, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one \\ud800 two"}\n')
    assert texts(tmp_path / "a.jsonl") == ["one ? two"]


def refused(source: Path | str) -> str:
    with pytest.raises(SpecError) as caught:
        check_sources(of(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_source_is_refused_in_one_line(tmp_path: Path):
    assert "not found" in refused(tmp_path / "nowhere")


def test_a_source_shorter_than_a_context_is_named(tokenizer, tmp_path: Path):
    (tmp_path / "few.txt").write_text("x = 1\n" * 3)
    (tmp_path / "many.txt").write_text("zz = 1\n" * 4000)
    corpus = build_corpus(of(tmp_path / "few.txt", tmp_path / "many.txt"), tokenizer, tmp_path / "cache")
    few = len(corpus.train[0][0])
    assert corpus.check_context(16, None) == [f"training text of {tmp_path}/few.txt is not used: it has {few} tokens, a context 16"]
    assert corpus.check_context(4, None) == []
    lines = corpus.check_context(16, 16)
    assert lines[1:] == [f"held-out text of {tmp_path}/few.txt is not used: it has 1 tokens, a context 16"]
    with pytest.raises(SpecError, match=r"the held-out part of the corpus, .* is shorter than one context of 4000 tokens"):
        corpus.check_context(16, 4000)


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
    (tmp_path / "a.jsonl").write_text('{"text": 3}\n')
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
