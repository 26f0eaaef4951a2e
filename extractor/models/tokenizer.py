"""Tokenizers: trained on a corpus (byte-level BPE) or taken from a model; saved as Hugging Face tokenizers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.errors import BrokenArtifact, ModelNotFound, UnsupportedModel
from extractor.models import hub
from extractor.models.hub import HUB_ID
from extractor.models.reference import BUNDLED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a GPT-2 style byte-level BPE with `vocab_size` entries; `<|endoftext|>` is entry 0. Deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, n_ctx: int) -> None:
    """Write tokenizer.json and its Hugging Face config, so that AutoTokenizer loads the folder."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=n_ctx, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, or GPT-2's vocab.json and merges.txt.

    Raises UnsupportedModel when the folder has none, BrokenArtifact when its file does not parse.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    whole, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    try:
        if whole.is_file():
            return Tokenizer.from_file(str(whole))
        if vocab.is_file() and merges.is_file():
            tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            return tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        raise BrokenArtifact(f"the tokenizer in {folder} cannot be read: {error}") from None
    raise UnsupportedModel(f"model folder {folder} has no tokenizer.json (nor vocab.json and merges.txt); save its tokenizer there")


def resolve_tokenizer(reference: str) -> str:
    """A tokenizer reference as a TrainSpec stores it: a bundled model's name, an absolute folder, or 'ID@SHA'.

    Raises ModelNotFound, UnsupportedModel, BrokenArtifact. A tokenizer on the hub is not read here; the worker downloads and checks it.
    """
    if os.path.isfile(BUNDLED / reference / "tokenizer.json") and "/" not in reference:
        return reference
    path = Path(os.path.expanduser(reference))
    if reference and os.path.isdir(path):
        path = path.resolve()
        path = path / "model" if (path / "model").is_dir() and not (path / "tokenizer.json").is_file() else path
        open_tokenizer(str(path))
        return str(path)
    name = reference.partition("@")[0]
    if os.path.exists(path) or reference.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(name):
        raise ModelNotFound(f"tokenizer {reference!r} not found: name a bundled model, the folder of a model, or a hub model")
    return hub.inspect(reference).reference


def open_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a reference from `resolve_tokenizer`, with `<|endoftext|>` added where it has none.

    Raises ModelNotFound, UnsupportedModel, BrokenArtifact.
    """
    folder = BUNDLED / reference if os.path.isdir(BUNDLED / reference) and "/" not in reference else Path(reference)
    if not folder.is_absolute():
        folder = hub.download(reference, list(TOKENIZER_FILES))
    elif not folder.is_dir():
        raise ModelNotFound(f"tokenizer folder {folder} is not on this machine")
    tokenizer = load_tokenizer(folder)
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    used, size = max(tokenizer.get_vocab().values()) + 1, tokenizer.get_vocab_size()
    if used != size:
        raise UnsupportedModel(f"tokenizer of {reference!r} has {size} entries but ids up to {used - 1}; choose one without gaps")
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of a model folder to another."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())
