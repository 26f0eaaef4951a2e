"""Tokenizers: trained on a corpus (byte-level BPE) or taken from a model; saved as Hugging Face tokenizers."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor.errors import BrokenArtifact, ExtractorError, ModelNotFound, UnsupportedModel, first_line
from extractor.models import hub
from extractor.models.checks import check_tokenizer
from extractor.models.hub import HUB_ID
from extractor.models.quiet import quiet_transformers
from extractor.models.reference import BUNDLED
from extractor.models.tokenizer_files import (
    TOKENIZER_DOWNLOADS,
    TOKENIZER_FILES,
    WHOLE,
    TokenizerFiles,
    read_tokenizer_files,
    write_clean,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
LONG_TEXTS = ("a" * 60 + "_ 1", "ab_ " * 20 + "1\n" + " " * 60 + "x", "=" * 60 + "7" * 60 + ".")
SIMPLER = "write the patterns in its tokenizer.json more simply"
_STDERR = threading.Lock()  # descriptor 2 is one for all threads


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

    split = {"split_special_tokens": True} if tokenizer.encode_special_tokens else {}  # tokenizer.json has no place for it
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=n_ctx, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, **split
    ).save_pretrained(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that transformers makes of a model folder's files, without truncation, padding and BPE dropout.

    No code of the folder is run. Raises UnsupportedModel when the folder has none or its files exceed a bound, BrokenArtifact when a file
    does not parse.
    """
    from tokenizers import Tokenizer

    found = read_tokenizer_files(folder)
    with _one_error(folder):
        if found.is_complete:
            tokenizer = _for_tokens(Tokenizer.from_file(str(folder / WHOLE)))
        else:
            tokenizer = _for_tokens(_made_by_transformers(found).backend_tokenizer)
        _check_patterns(tokenizer)
        return tokenizer


def _check_patterns(tokenizer: Tokenizer) -> None:
    """Raise UnsupportedModel where a regular expression of the tokenizer ends in a panic of its Rust code, on long words and lines."""
    for text in LONG_TEXTS:
        try:
            with _without_stderr():
                tokenizer.encode(text)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except Exception:  # a text that it has no tokens for
            continue
        except BaseException as panic:
            raise UnsupportedModel(f"the tokenizer cannot write {text[:20]!r}...: {first_line(panic)}; {SIMPLER}") from None


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what is written to stderr meanwhile: a panic of Rust code writes its own story there."""
    with _STDERR, open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _for_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without what its last use left in it."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    return tokenizer


def _made_by_transformers(found: TokenizerFiles) -> Any:
    """The fast tokenizer of AutoTokenizer. Raises what transformers raises, UnsupportedModel where it has no fast one."""
    from transformers import AutoTokenizer

    with quiet_transformers(), tempfile.TemporaryDirectory(prefix="extract-tokenizer-") as folder:
        write_clean(found, Path(folder))
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **_config_for(found))
    if not hasattr(made, "backend_tokenizer"):
        raise UnsupportedModel(f"the tokenizer in {found.folder} is a {type(made).__name__}, which is no fast tokenizer; save a fast one")
    return made


def _config_for(found: TokenizerFiles) -> dict[str, Any]:
    """The model config that AutoTokenizer needs where the folder has none that names a class."""
    from transformers import GPT2Config, PreTrainedConfig

    if found.whole is None and not found.class_name:
        return {"config": GPT2Config()}  # vocab.json and merges.txt are GPT-2's
    return {} if found.model else {"config": PreTrainedConfig()}


@contextmanager
def _one_error(folder: Path) -> Iterator[None]:
    """Turn whatever the libraries raise for a folder's files into BrokenArtifact."""
    try:
        yield
    except (ExtractorError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and for a panic in its Rust code a BaseException
        raise BrokenArtifact(f"the tokenizer in {folder} cannot be read: {first_line(error)}") from None


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
    files = hub.inspect(reference)
    check_tokenizer(files)
    return files.reference


def open_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a reference from `resolve_tokenizer`, with `<|endoftext|>` added where it has none.

    Raises ModelNotFound, UnsupportedModel, BrokenArtifact.
    """
    folder = BUNDLED / reference if os.path.isdir(BUNDLED / reference) and "/" not in reference else Path(reference)
    if not folder.is_absolute():
        folder = hub.download(reference, TOKENIZER_DOWNLOADS)
    elif not folder.is_dir():
        raise ModelNotFound(f"tokenizer folder {folder} is not on this machine")
    tokenizer = load_tokenizer(folder)
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    used, size = max(tokenizer.get_vocab().values()) + 1, tokenizer.get_vocab_size()
    if used != size:
        raise UnsupportedModel(f"tokenizer of {reference!r} has {size} entries but ids up to {used - 1}; choose one without gaps")
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer of a model folder to another, where it gives the same ids: its files, or one tokenizer.json made of them.

    Raises what `load_tokenizer` raises.
    """
    found = read_tokenizer_files(source)
    if not found.is_plain:
        with _one_error(source):
            _made_by_transformers(found).save_pretrained(target)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())
