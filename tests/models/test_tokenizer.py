"""Tokenizers as they come: the same ids as AutoTokenizer's, whatever files a folder holds and however it was last used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizer_zoo as zoo
from tokenizer_zoo import ZOO

from extractor.data.encoding import encoded, marks_of, text_ids
from extractor.errors import BrokenArtifact, ExtractorError, UnsupportedModel
from extractor.models.tokenizer import copy_tokenizer, load_tokenizer, save_tokenizer
from extractor.models.tokenizer_files import TOKENIZER_FILES

TEXTS = [
    'print("hello',
    " x",
    "x in x",
    "[SEP] x = 1",
    "x [SEP]  y[X] z",
    "def f(x):\n    return x\n",
    "Print(X) \ufb01ne caf\u00e9",
    "<|endoftext|>x<s>y",
    "",
]
ENDS = ['")', "')", " in", ":", "\n    ", " "]


@pytest.fixture(params=ZOO)
def folder(request, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    ZOO[request.param](tmp_path / "model")
    return tmp_path / "model"


def of_transformers(folder: Path):
    """AutoTokenizer's; a random dropout aside."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if getattr(found.backend_tokenizer.model, "dropout", None):
        found.backend_tokenizer.model.dropout = None
    return found


def test_it_gives_the_ids_of_transformers(folder: Path):
    ours, theirs = load_tokenizer(folder), of_transformers(folder)
    assert ours.truncation is None
    assert ours.padding is None
    after = marks_of(ours).after
    for text in [*TEXTS, *(text + end for text in TEXTS for end in ENDS)]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False).input_ids, text
        assert text_ids(ours, text) + after == theirs(text).input_ids, text
    batch = ours.encode_batch_fast(TEXTS, add_special_tokens=False)
    assert [encoding.ids for encoding in batch] == theirs(TEXTS, add_special_tokens=False).input_ids
    assert ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("model_type", ["sparse_gpt", None])
def test_a_copy_gives_the_same_ids_beside_another_model(folder: Path, tmp_path: Path, model_type: str | None):
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_tokenizer(folder, copy)
    if model_type:
        zoo.write(copy, "config.json", {"model_type": model_type})
    ours, again = load_tokenizer(folder), load_tokenizer(copy)
    for text in TEXTS:
        assert again.encode(text).ids == ours.encode(text).ids, text
        assert again.decode(ours.encode(text).ids) == ours.decode(ours.encode(text).ids)
    if model_type is None:
        zoo.write(copy, "config.json", {"model_type": "gpt2"})
    theirs = of_transformers(copy)
    assert [theirs(text).input_ids for text in TEXTS] == [ours.encode(text).ids for text in TEXTS]


def test_a_model_trained_on_its_tokens_reads_the_same_ids(folder: Path, tmp_path: Path):
    ours = load_tokenizer(folder)
    if ours.token_to_id(zoo.END) is None:
        ours.add_special_tokens([zoo.END])
    save_tokenizer(ours, tmp_path / "trained", 64)
    zoo.write(tmp_path / "trained", "config.json", {"model_type": "sparse_gpt"})
    again = load_tokenizer(tmp_path / "trained")
    assert [text_ids(again, text) for text in TEXTS] == [text_ids(ours, text) for text in TEXTS]


def test_a_plain_folder_is_copied_as_it_is_and_what_was_used_is_written_clean(tmp_path: Path):
    for name, same in (("plain", True), ("added_token", True), ("truncation", False), ("padding_fixed", False), ("dropout", False)):
        source, target = tmp_path / name, tmp_path / f"{name}-copy"
        source.mkdir()
        target.mkdir()
        ZOO[name](source)
        copy_tokenizer(source, target)
        written = zoo.read(target, "tokenizer.json")
        assert ((source / "tokenizer.json").read_bytes() == (target / "tokenizer.json").read_bytes()) == same
        assert (written["truncation"], written["padding"], written["model"]["dropout"]) == (None, None, None)


LOOP = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 40}


def nested(depth: int) -> dict:
    inner: dict = {"type": "Lowercase"}
    for _ in range(depth):
        inner = {"type": "Sequence", "normalizers": [inner]}
    return inner


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [LOOP, LOOP, LOOP]}}, UnsupportedModel, "make a text 64,000 times as long"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}}, UnsupportedModel, "make a text 1,000,000 times as long"),
        ({"decoder": {"type": "Sequence", "decoders": [LOOP, LOOP]}}, UnsupportedModel, "the decoder in"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "x" * 300}}, UnsupportedModel, "the pre_tokenizer in"),
        ({"normalizer": nested(400)}, BrokenArtifact, "cannot be read"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAHg" + "eHh4" * 300}}, UnsupportedModel, "times as long"),
        ({"added_tokens": ["x"]}, BrokenArtifact, "added_tokens that are no tokens"),
        ({"added_tokens": {"x": 1}}, BrokenArtifact, "added_tokens that are no tokens"),
        ({"model": None}, BrokenArtifact, "has no model"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, BrokenArtifact, "cannot be read"),
        ({"post_processor": {"type": "Nonsense"}}, BrokenArtifact, "cannot be read"),
    ],
)
def test_what_would_take_all_memory_is_refused_before_it_is_built(tmp_path: Path, changes: dict, kind: type[ExtractorError], said: str):
    zoo.bundled(tmp_path, **changes)
    with pytest.raises(kind) as caught:
        load_tokenizer(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_post_processor_may_not_repeat_a_text_without_bound(tmp_path: Path):
    text = {"Sequence": {"id": "A", "type_id": 0}}
    zoo.bundled(tmp_path, post_processor={"type": "TemplateProcessing", "single": [text] * 1000, "pair": [], "special_tokens": {}})
    with pytest.raises(UnsupportedModel, match="repeats a text 1,000 times, more than the 200 allowed"):
        load_tokenizer(tmp_path)


def test_a_post_processor_may_put_few_tokens_around_a_text(tmp_path: Path):
    piece = {"SpecialToken": {"id": zoo.END, "type_id": 0}}
    special = {zoo.END: {"id": zoo.END, "ids": [0] * 40, "tokens": ["x"] * 40}}
    processor = {"type": "TemplateProcessing", "single": [piece, piece], "pair": [], "special_tokens": special}
    zoo.bundled(tmp_path, post_processor=processor)
    with pytest.raises(UnsupportedModel, match="puts 80 tokens around a text, more than the 64 allowed"):
        load_tokenizer(tmp_path)


def test_padding_to_a_billion_costs_nothing(tmp_path: Path):
    zoo.bundled(tmp_path, padding=zoo.PADDING | {"strategy": {"Fixed": 10**9}})
    assert load_tokenizer(tmp_path).encode("x = 1").ids == load_tokenizer(zoo.BASE).encode("x = 1").ids


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_file_too_large_is_refused_by_its_size(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    from extractor.models import checks, tokenizer_files

    zoo.halves(tmp_path) if name in ("vocab.json", "merges.txt") else zoo.bundled(tmp_path)
    monkeypatch.setattr(tokenizer_files, "MAX_BYTES", 2_000_000)
    monkeypatch.setattr(checks, "MAX_BYTES", 2_000_000)
    with open(tmp_path / name, "ab") as file:
        file.truncate(3_000_000)
    for check in (load_tokenizer, lambda folder: checks.check_tokenizer(checks.FolderFiles(folder))):
        with pytest.raises(UnsupportedModel, match="has 3,000,000 bytes, more than the 2,000,000"):
            check(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"added_tokens_decoder": ["x"]}, "no attribute 'items'"),
        ({"added_tokens_decoder": {"7": "x"}}, "should be a dictionary"),
        ({"extra_special_tokens": 7}, "not iterable"),
        ({"tokenizer_class": ["GPT2Tokenizer"]}, "cannot be read"),
        ({"tokenizer_class": "NoSuchTokenizer", "auto_map": {"AutoTokenizer": ["mine.Slow", "mine.Fast"]}}, None),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": "often"}, "cannot be read"),
        ({"tokenizer_class": "CTRLTokenizer"}, "cannot be read"),
        (
            {"tokenizer_file": "/etc/hostname", "vocab_file": "/etc/hostname", "name_or_path": "gpt2", "tokenizer_class": "GPT2Tokenizer"},
            None,
        ),
    ],
)
def test_a_strange_config_is_one_line_or_no_matter(tmp_path: Path, config: dict, said: str | None, monkeypatch: pytest.MonkeyPatch):
    """No code is run, no other file is read, no hub is asked."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    zoo.bundled(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit('this was run')")
    zoo.change(tmp_path, "tokenizer_config.json", **config)
    if said is None:
        assert load_tokenizer(tmp_path).encode("x = 1").ids == load_tokenizer(zoo.BASE).encode("x = 1").ids
        return
    with pytest.raises(ExtractorError, match=said) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_what_is_downloaded_is_what_a_tokenizer_is_made_from():
    from fnmatch import fnmatch

    from extractor.models.reference import HUB_FILES

    for name in TOKENIZER_FILES:
        assert any(fnmatch(name, pattern) for pattern in HUB_FILES)
    for name in ("tokenizer.model", "tokenizer_padding.bin", "spiece.model", "tokenizer.py"):
        assert not any(fnmatch(name, pattern) for pattern in HUB_FILES)


SLOW = [r"(([a-z_ ]+)+)+#$", r"(([a-z]+)+)+#$"]


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_ends_in_a_panic_is_refused_in_one_line(pattern: str, gpt2_folder: Path, tmp_path: Path, capfd):
    folder = Path(shutil.copytree(gpt2_folder, tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    capfd.readouterr()
    with pytest.raises(
        UnsupportedModel, match=r"^the tokenizer cannot write .*retry-limit.*; write the patterns in its tokenizer\.json"
    ) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "the panic's own story"


def test_a_text_that_ends_in_a_panic_is_one_line_too(tokenizer):
    class Panics:
        def encode(self, _text: str) -> None:
            raise Panic("Onig: retry-limit-in-match over")

    class Panic(BaseException):
        """pyo3's is no Exception either."""

    with pytest.raises(UnsupportedModel, match=r"cannot write the text 'x': Onig: retry-limit.*; write the patterns"):
        encoded(Panics(), "x")  # type: ignore[arg-type]
