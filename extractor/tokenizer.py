"""Byte-level BPE: trained on a corpus, kept as an ordinary Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.errors import BrokenArtifact, UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A GPT-2 style byte-level BPE with `vocab_size` entries, `<|endoftext|>` being entry 0. The same texts give the same tokenizer."""
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


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a model's tokenizer files beside another model that shares them."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())
