"""The files from which a model's tokenizer is made, read and bounded before any library builds something from them. No torch.

tokenizer.json usually says everything. Where transformers changes it (its class rebuilds the tokenizer, another file adds tokens), only
transformers can make the same tokenizer; `TokenizerFiles.is_complete` tells the two apart.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from extractor import files
from extractor.errors import BrokenArtifact, UnsupportedModel

WHOLE, CONFIG, SPECIAL, ADDED, VOCAB, MERGES = TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
MODEL_CONFIG = "config.json"  # its model_type and tokenizer_class choose a class of transformers
TOKENIZER_DOWNLOADS = [*TOKENIZER_FILES, MODEL_CONFIG]
MAX_BYTES = 100_000_000  # of one file; the largest published tokenizer.json has about 35 MB
MAX_GROWTH = 200  # by which the rules of a tokenizer may multiply the characters of a text; published ones stay below 50
MAX_AROUND = 64  # tokens that a tokenizer may put around a text
KEEP_THE_FILE = ("TokenizersBackend", "PreTrainedTokenizerFast")  # classes of transformers that take tokenizer.json as it is
GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")  # these take only vocabulary, merges, tokens and post-processor from it
GPT2_TYPES = ("gpt2", "gpt_neo")  # models whose tokenizer is a GPT2Tokenizer where no file names its class
FILE_TYPES = (None, "llama", "sparse_gpt")  # models for which transformers then takes tokenizer.json as it is
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of a folder's tokenizer files; `whole` is None where it has vocab.json and merges.txt instead of tokenizer.json.

    config, special, added   contents of tokenizer_config.json, special_tokens_map.json, added_tokens.json; {} where missing
    model                    model_type and tokenizer_class of config.json, where it has them
    """

    folder: Path
    whole: dict[str, Any] | None
    config: dict[str, Any]
    special: dict[str, Any]
    added: dict[str, Any]
    model: dict[str, str]

    @property
    def class_name(self) -> str | None:
        """The class of transformers that the files name; None where they leave it open, as one that needs a missing tokenizer.json does."""
        name = self.config.get("tokenizer_class") or self.model.get("tokenizer_class")
        return None if self.whole is None and name in KEEP_THE_FILE else name

    @cached_property
    def is_complete(self) -> bool:
        """Whether tokenizer.json alone gives the tokenizer that transformers makes of all files."""
        return self.whole is not None and self._class_keeps(self.whole) and not self._adds_tokens(self.whole)

    @property
    def is_plain(self) -> bool:
        """Whether tokenizer.json is complete and asks for no truncation, padding or dropout, which are never used here."""
        return self.is_complete and self.without_state() == self.whole

    @property
    def identity(self) -> str | None:
        """A digest of all files; None for a plain tokenizer that puts no tokens around a text."""
        if self.is_plain and not any(_around((self.whole or {}).get("post_processor"))):
            return None
        return files.digest(self.folder, *TOKENIZER_FILES)

    def without_state(self) -> dict[str, Any] | None:
        """tokenizer.json without what its last use left in it: truncation, padding, dropout."""
        if self.whole is None:
            return None
        clean = self.whole | {key: None for key in ("truncation", "padding") if key in self.whole}
        if "dropout" in clean["model"]:
            clean["model"] = clean["model"] | {"dropout": None}
        return clean

    def _class_keeps(self, whole: dict[str, Any]) -> bool:
        """Whether the class that transformers takes for these files gives the tokenizer of tokenizer.json."""
        name, kind = self.class_name, self.model.get("model_type")
        if self.config.get("split_special_tokens"):
            return False
        if name in GPT2_CLASSES or (name is None and kind in GPT2_TYPES):
            return _is_gpt2_form(whole) and not self.config.get("add_prefix_space")
        return name in KEEP_THE_FILE or (name is None and kind in FILE_TYPES)

    def _adds_tokens(self, whole: dict[str, Any]) -> bool:
        """Whether other files name tokens that tokenizer.json does not have, or has with other flags."""
        known = {str(token.get("content")): token for token in whole.get("added_tokens") or []}
        listed = self.config.get("added_tokens_decoder")
        if listed:
            for index, token in listed.items():
                own = known.get(str(_content(token)))
                if own is None or not isinstance(token, dict) or str(own.get("id")) != index or _flags(own) != _flags(token):
                    return True
        elif any(known.get(content, {}).get("id") != index for content, index in self.added.items()):
            return True
        named = [*_named(self.config), *([] if listed else _named(self.special))]
        return any(content not in known for content in named)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """The tokenizer files of a folder. Raises UnsupportedModel where there are none or they exceed a bound, BrokenArtifact."""
    whole = _object(folder / WHOLE) if (folder / WHOLE).is_file() else None
    if whole is None and not ((folder / VOCAB).is_file() and (folder / MERGES).is_file()):
        raise UnsupportedModel(f"model folder {folder} has no {WHOLE} (nor {VOCAB} and {MERGES}); save its tokenizer there")
    if whole is None:
        _check_bytes(folder / VOCAB)
        _check_bytes(folder / MERGES)
    model = _object(folder / MODEL_CONFIG)
    classes = {key: model[key] for key in ("model_type", "tokenizer_class") if isinstance(model.get(key), str)}
    found = TokenizerFiles(folder, whole, _object(folder / CONFIG), _object(folder / SPECIAL), _object(folder / ADDED), classes)
    try:
        if whole is not None:
            _check_whole(folder / WHOLE, whole)
        _ = found.is_complete
    except (AttributeError, TypeError, RecursionError) as error:  # a list where an object is expected, and the like
        raise BrokenArtifact(f"the tokenizer in {folder} cannot be read: {error}") from None
    return found


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is no such file."""
    if not path.is_file():
        return {}
    _check_bytes(path)
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise BrokenArtifact(f"{path} is no tokenizer file: expected a JSON object")
    return content


def _check_bytes(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnsupportedModel(too_large(str(path), size))


def too_large(name: str, size: int) -> str:
    """What is wrong with a tokenizer file of `size` bytes, more than MAX_BYTES."""
    return f"{name} has {size:,} bytes, more than the {MAX_BYTES:,} that a tokenizer file may have; choose another tokenizer"


def _check_whole(path: Path, whole: dict[str, Any]) -> None:
    """Refuse a tokenizer.json whose use would take all memory. Raises UnsupportedModel, BrokenArtifact."""
    tokens = whole.get("added_tokens") or []
    if not isinstance(whole.get("model"), dict) or not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise BrokenArtifact(f"the tokenizer in {path.parent} cannot be read: {WHOLE} has no model, or added_tokens that are no tokens")
    for place in ("normalizer", "pre_tokenizer", "decoder"):
        growth = 1
        for part in _parts(whole.get(place)):
            growth *= _growth(part)
        if growth > MAX_GROWTH:
            raise UnsupportedModel(
                f"the {place} in {path} may make a text {growth:,} times as long, more than the {MAX_GROWTH:,} times allowed; "
                "take the rules that do so out of it, or choose another tokenizer"
            )
    copies = _copies(whole.get("post_processor"))
    if copies > MAX_GROWTH:
        raise UnsupportedModel(f"the post_processor in {path} repeats a text {copies:,} times, more than the {MAX_GROWTH:,} allowed")
    around = sum(_around(whole.get("post_processor")))
    if around > MAX_AROUND:
        raise UnsupportedModel(f"the post_processor in {path} puts {around:,} tokens around a text, more than the {MAX_AROUND} allowed")


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """The parts of a component of tokenizer.json, those of sequences too."""
    if isinstance(part, list):
        for one in part:
            yield from _parts(one)
    elif isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers", "decoders", "processors"):
            yield from _parts(part.get(name))


def _growth(part: dict[str, Any]) -> int:
    """A bound on how often a rule repeats a text: the characters that it puts in the place of one."""
    lengths = [len(part[key]) for key in ("content", "prepend", "replacement") if isinstance(part.get(key), str)]
    if isinstance(part.get("precompiled_charsmap"), str):
        lengths.append(_longest_mapping(part["precompiled_charsmap"]))
    return max([1, *lengths])


def _longest_mapping(charsmap: str) -> int:
    """Bytes of the longest text in the charsmap of a Precompiled normalizer: a size, a trie of that size, texts that end in NUL."""
    try:
        content = base64.b64decode(charsmap + "===")  # padding may be missing
    except (binascii.Error, ValueError):
        raise BrokenArtifact(f"the normalizer Precompiled in {WHOLE} holds no base64") from None
    trie = int.from_bytes(content[:4], "little")
    return max(map(len, content[4 + trie :].split(b"\0")))


def _copies(processor: Any) -> int:
    """How often a post-processor writes a text."""
    pieces = [part.get("single") or [] for part in _parts(processor)]
    return math.prod(max(1, sum("Sequence" in piece for piece in single if isinstance(piece, dict))) for single in pieces)


def _around(processor: Any) -> Iterator[int]:
    """The numbers of tokens that each part of a post-processor puts around a text."""
    for part in _parts(processor):
        if part.get("type") in ("BertProcessing", "RobertaProcessing"):
            yield 2
        special = part.get("special_tokens")
        for piece in part.get("single") or []:
            name = (piece.get("SpecialToken") or {}).get("id") if isinstance(piece, dict) else None
            if name is not None:
                token = special.get(name) if isinstance(special, dict) else None
                yield len(token["ids"]) if isinstance(token, dict) and isinstance(token.get("ids"), list) else 1


def _is_gpt2_form(whole: dict[str, Any]) -> bool:
    """Whether tokenizer.json is what a GPT2Tokenizer makes of its vocabulary and merges."""
    cut, model = whole.get("pre_tokenizer") or {}, whole["model"]
    plain = not whole.get("normalizer") and (whole.get("decoder") or {}).get("type") == "ByteLevel"
    cut_plain = cut.get("type") == "ByteLevel" and cut.get("add_prefix_space") is False and cut.get("use_regex", True)
    rules = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges")
    return bool(plain and cut_plain and model.get("type", "BPE") == "BPE" and "merges" in model and not any(map(model.get, rules)))


def _named(content: dict[str, Any]) -> Iterator[str]:
    """The special tokens that a tokenizer_config.json or special_tokens_map.json names."""
    for key, value in content.items():
        if key.endswith("_token") and isinstance(value, str | dict):
            yield str(_content(value))
        elif key in ("additional_special_tokens", "extra_special_tokens") and value:
            yield from (str(_content(token)) for token in (value.values() if isinstance(value, dict) else value))


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _flags(token: dict[str, Any]) -> dict[str, bool]:
    return {name: bool(token.get(name, usual)) for name, usual in _FLAGS.items()}


def write_clean(found: TokenizerFiles, folder: Path) -> None:
    """Write to `folder` what transformers needs to make the tokenizer of `found`: no state of use, no code, no paths elsewhere."""
    own = {key: value for key, value in found.config.items() if not key.endswith("_file") and key not in ("auto_map", "name_or_path")}
    own.pop("fast_tokenizer_files", None)
    if found.class_name is None:
        own.pop("tokenizer_class", None)
    contents: dict[str, Any] = {CONFIG: own, SPECIAL: found.special, ADDED: found.added, MODEL_CONFIG: found.model}
    for name, content in contents.items():
        if content:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    if found.whole is not None:
        whole = {"added_tokens": []} | (found.without_state() or {})  # transformers needs the list, tokenizers does not
        (folder / WHOLE).write_text(json.dumps(whole), encoding="utf-8")
    else:
        for name in (VOCAB, MERGES):
            (folder / name).symlink_to((found.folder / name).resolve())
