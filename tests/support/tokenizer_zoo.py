"""Tokenizers of many kinds as model folders, written by hand: `ZOO[kind](folder)` fills a folder with tokenizer files and a config.json."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from extractor.models.reference import BUNDLED

BASE = BUNDLED / "python-tiny"
END = "<|endoftext|>"
LETTERS = [c for c in string.printable[:95] if c != " "]
WORDS = ["<unk>", "<s>", "</s>", "\u2581", "\n", *LETTERS, '")', "')", "\u2581x", "in", "\u2581in"]
MERGES = [('"', ")"), ("'", ")"), ("\u2581", "x"), ("i", "n"), ("\u2581", "in")]
PIECES = [(word, -float(len(WORDS) - i) / (2 if len(word) > 1 else 1)) for i, word in enumerate(WORDS)]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ZOO: dict[str, Callable[[Path], None]] = {}


def kind(function: Callable[[Path], None]) -> Callable[[Path], None]:
    ZOO[function.__name__] = function
    return function


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def change(folder: Path, name: str = "tokenizer.json", **changes: Any) -> None:
    write(folder, name, read(folder, name) | changes)


def bundled(folder: Path, **changes: Any) -> None:
    """The tokenizer of python-tiny with other parts of tokenizer.json."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(BASE / name, folder / name)
    change(folder, **changes)


def save(folder: Path, tokenizer: Tokenizer, model_type: str = "llama", **config: Any) -> None:
    """A tokenizer made of parts, with its config."""
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    write(folder, "config.json", {"model_type": model_type, "vocab_size": tokenizer.get_vocab_size()} | shape)


def sentencepiece(**changes: Any) -> Tokenizer:
    """A BPE whose words start with a mark, like Llama's."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES, unk_token="<unk>", **changes))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def around(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])


def halves(folder: Path) -> None:
    """vocab.json and merges.txt of python-tiny, no tokenizer.json."""
    model = read(BASE, "tokenizer.json")["model"]
    write(folder, "vocab.json", model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    shutil.copyfile(BASE / "config.json", folder / "config.json")


def token(content: str, index: int, **flags: bool) -> dict[str, Any]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content} | usual | flags


def more_tokens(*tokens: dict[str, Any]) -> list[dict[str, Any]]:
    return [*read(BASE, "tokenizer.json")["added_tokens"], *tokens]


@kind
def plain(folder: Path) -> None:
    bundled(folder)


@kind
def no_tokenizer_config(folder: Path) -> None:
    bundled(folder)
    (folder / "tokenizer_config.json").unlink()


@kind
def prefix_space(folder: Path) -> None:
    bundled(folder, pre_tokenizer=read(BASE, "tokenizer.json")["pre_tokenizer"] | {"add_prefix_space": True})


@kind
def prefix_space_of_the_config(folder: Path) -> None:
    bundled(folder)
    change(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=True)


@kind
def gpt2_class(folder: Path) -> None:
    bundled(folder)
    change(folder, "tokenizer_config.json", tokenizer_class="GPT2TokenizerFast")


@kind
def gpt2_class_over_other_rules(folder: Path) -> None:
    bundled(folder, normalizer={"type": "Lowercase"})
    change(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


@kind
def truncation(folder: Path) -> None:
    bundled(folder, truncation={"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0})


PADDING = {"direction": "Left", "pad_to_multiple_of": None, "pad_id": 5, "pad_type_id": 0, "pad_token": "#"}


@kind
def padding_fixed(folder: Path) -> None:
    bundled(folder, padding=PADDING | {"strategy": {"Fixed": 32}})


@kind
def padding_longest(folder: Path) -> None:
    bundled(folder, padding=PADDING | {"strategy": "BatchLongest", "direction": "Right"})


@kind
def padding_to_a_multiple(folder: Path) -> None:
    bundled(folder, padding=PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": 8})
    change(folder, "tokenizer_config.json", padding_side="left", truncation_side="left", model_max_length=3)


@kind
def dropout(folder: Path) -> None:
    bundled(folder, model=read(BASE, "tokenizer.json")["model"] | {"dropout": 0.9})


@kind
def added_token(folder: Path) -> None:
    bundled(folder, added_tokens=more_tokens(token("[SEP]", 1024)))


@kind
def added_tokens_that_strip(folder: Path) -> None:
    bundled(folder, added_tokens=more_tokens(token("[SEP]", 1024, lstrip=True), token("[X]", 1025, rstrip=True, special=False)))


@kind
def added_tokens_with_a_gap(folder: Path) -> None:
    vocab = read(BASE, "tokenizer.json")["model"]["vocab"]
    bundled(folder, model=read(BASE, "tokenizer.json")["model"] | {"vocab": vocab | {"[SEP]": 70_000}})
    change(folder, added_tokens=more_tokens(token("[SEP]", 70_000)))


@kind
def added_tokens_decoder(folder: Path) -> None:
    bundled(folder)
    listed = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in more_tokens(token("[SEP]", 1024), token("[X]", 1025))}
    change(folder, "tokenizer_config.json", added_tokens_decoder=listed)


@kind
def additional_special_tokens(folder: Path) -> None:
    bundled(folder)
    change(folder, "tokenizer_config.json", additional_special_tokens=["[SEP]", "[X]"])


@kind
def special_tokens_map(folder: Path) -> None:
    bundled(folder)
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    write(folder, "special_tokens_map.json", {"sep_token": {"content": "[SEP]"} | flags, "eos_token": END})


@kind
def added_tokens_file_beside_the_whole(folder: Path) -> None:
    bundled(folder)
    write(folder, "added_tokens.json", {"[SEP]": 1024})


@kind
def split_special_tokens(folder: Path) -> None:
    bundled(folder)
    change(folder, "tokenizer_config.json", split_special_tokens=True)


@kind
def halves_alone(folder: Path) -> None:
    halves(folder)


@kind
def halves_with_added_tokens(folder: Path) -> None:
    halves(folder)
    write(folder, "added_tokens.json", {"[PAD]": 1024, "[SEP]": 1025})
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "pad_token": "[PAD]", "eos_token": END})


@kind
def halves_with_a_beginning(folder: Path) -> None:
    halves(folder)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": True})


@kind
def lowercase(folder: Path) -> None:
    bundled(folder, normalizer={"type": "Lowercase"})


@kind
def nfkc(folder: Path) -> None:
    bundled(folder, normalizer={"type": "NFKC"})


@kind
def strip(folder: Path) -> None:
    bundled(folder, normalizer={"type": "Strip", "strip_left": True, "strip_right": True})


@kind
def prepend(folder: Path) -> None:
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    save(folder, tokenizer, **SPECIAL)


def metaspace(scheme: str) -> Tokenizer:
    tokenizer = sentencepiece(byte_fallback=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=scheme != "never")
    return tokenizer


@kind
def metaspace_first(folder: Path) -> None:
    save(folder, metaspace("first"), **SPECIAL)


@kind
def metaspace_always(folder: Path) -> None:
    save(folder, metaspace("always"), **SPECIAL)


@kind
def metaspace_never(folder: Path) -> None:
    save(folder, metaspace("never"), **SPECIAL)


@kind
def llama(folder: Path) -> None:
    tokenizer = metaspace("first")
    tokenizer.post_processor = around("<s> $A")
    save(folder, tokenizer, tokenizer_class="LlamaTokenizer", add_bos_token=True, legacy=False, **SPECIAL)


@kind
def llama_with_an_end(folder: Path) -> None:
    tokenizer = metaspace("first")
    tokenizer.post_processor = around("<s> $A </s>")
    save(folder, tokenizer, **SPECIAL)


@kind
def llama_without_a_processor(folder: Path) -> None:
    save(folder, metaspace("first"), tokenizer_class="LlamaTokenizer", add_bos_token=True, **SPECIAL)


@kind
def llama_of_bytes(folder: Path) -> None:
    mark = {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}
    mark["single"] = [{"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    mark["special_tokens"] = {END: {"id": END, "ids": [0], "tokens": [END]}}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    bundled(folder, post_processor={"type": "Sequence", "processors": [bytes_, mark]})
    change(folder, "config.json", model_type="llama")


@kind
def wordpiece(folder: Path) -> None:
    letters = [c for c in LETTERS if not c.isupper()]
    words = ["<unk>", "<s>", "</s>", "x", *letters[1:], *(f"##{c}" for c in letters), "print", "##int"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = around("<s> $A </s>")
    save(folder, tokenizer, unk_token="<unk>", cls_token="<s>", sep_token="</s>")


@kind
def unigram(folder: Path) -> None:
    tokenizer = Tokenizer(models.Unigram(PIECES, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.post_processor = around("$A </s>")
    save(folder, tokenizer, **SPECIAL)


@kind
def wordlevel(folder: Path) -> None:
    words = ["<unk>", "<s>", "</s>", *LETTERS, "print", "hello", "in", "x", '")', "')", '("', "('"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    save(folder, tokenizer, model_type="gpt2", tokenizer_class="PreTrainedTokenizerFast", unk_token="<unk>")


@kind
def characters(folder: Path) -> None:
    """Each character is a token; a text in other characters has none."""
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*LETTERS, " ", "\n"])}, merges=[]))
    tokenizer.add_tokens([AddedToken("print", normalized=False)])
    save(folder, tokenizer, model_type="gpt2", tokenizer_class="TokenizersBackend")
