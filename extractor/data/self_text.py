"""Text that a dense model writes itself (`--corpus self`): sampled in batches, seeded, kept in the cache.

It is text that the model knows, whatever it was trained on. Every part is a function of the model, the seed and the part's number, so that
an interrupted preparation goes on where it was stopped and ends in the same text.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extractor import files
from extractor.data.corpus import Corpus
from extractor.data.encoding import document_marks
from extractor.data.shards import HELD_OUT_ONE_IN, locked, token_dtype, write_array
from extractor.data.sources import SELF
from extractor.errors import SpecError
from extractor.files import cache_root
from extractor.progress import Progress, Stopped

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

ROWS = 32  # sequences sampled together
LONGEST = 256  # tokens of a sequence, at most; fewer where the model reads fewer
_VERSION = 2  # of the sampling


def sampled_corpus(
    model: PreTrainedModel, identity: dict, tokenizer: Tokenizer, tokens: int, seed: int, progress: Progress, cache: Path | None = None
) -> Corpus:
    """At least `tokens` tokens sampled from the model at temperature 1, from the cache if they are there.

    identity   what the model's predictions depend on, as JSON values; the number of threads, which changes rounding, is added here
    Raises SpecError for a model of one position; Stopped, where the finished parts stay in the cache.
    """
    import torch
    import transformers

    length = min(LONGEST, int(model.config.max_position_embeddings))
    if length < 2:
        raise SpecError("corpus 'self' is text that the dense model writes, but it reads one token only; name other text with --corpus")
    facts = [
        _VERSION,
        identity,
        tokens,
        seed,
        length,
        tokenizer.to_str(),
        [torch.get_num_threads(), torch.__version__, transformers.__version__],
    ]
    folder = (cache or cache_root()) / "self" / hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:24]
    with locked(folder.with_suffix(".lock"), progress):
        if not (folder / "corpus.json").is_file():
            parts, count = folder.with_name(f"{folder.name}.parts"), -(-tokens // (ROWS * length))
            progress.note(f"sampling {count * ROWS * length:,} tokens from the model itself")
            _write_parts(model, tokenizer, parts, count, length, seed, progress)
            _join(parts, count, folder)
    return Corpus(folder)


def _write_parts(model: PreTrainedModel, tokenizer: Tokenizer, parts: Path, count: int, length: int, seed: int, progress: Progress) -> None:
    """Sample the parts that are not in the folder yet, one file for each. Raises Stopped."""
    dtype = token_dtype(tokenizer)
    parts.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        if progress.should_stop():
            raise Stopped
        if not (parts / f"{number}.npy").is_file():
            unfinished = parts / ".unfinished.npy"
            write_array(unfinished, sample(model, tokenizer, length, seed * 1_000_003 + number).numpy().astype(dtype))
            unfinished.replace(parts / f"{number}.npy")
        progress.step(number + 1, count, tokens=ROWS * length)


def _join(parts: Path, count: int, folder: Path) -> None:
    """Make the corpus folder of all parts, and delete them."""
    import shutil

    rows = np.concatenate([np.load(parts / f"{number}.npy") for number in range(count)])
    held_out = max(1, len(rows) // HELD_OUT_ONE_IN)
    with files.new_folder(folder) as new:
        write_array(new / "train.npy", rows[:-held_out].reshape(-1))
        write_array(new / "held_out.npy", rows[-held_out:].reshape(-1))
        source = {"source": SELF, "train": ["train.npy"], "held_out": "held_out.npy"}
        files.write_json(new / "corpus.json", {"version": 1, "sources": [source]})
    shutil.rmtree(parts)


def sample(model: PreTrainedModel, tokenizer: Tokenizer, length: int, seed: int) -> Tensor:
    """ROWS sequences (ROWS, length) int64, sampled at temperature 1 from the beginning of a text; a function of model and seed.

    Ids that the tokenizer has no token for are never drawn. transformers' `generate` is not used: it obeys the model's own settings, such
    as a temperature.
    """
    import torch

    size = min(int(model.config.vocab_size), tokenizer.get_vocab_size())
    marks, generator = document_marks(tokenizer, size), torch.Generator().manual_seed(seed)
    begin = marks.before or marks.after
    ids = torch.tensor([begin] * ROWS) if begin else torch.randint(size, (ROWS, 1), generator=generator)
    read, past = ids, None
    with torch.no_grad():
        while ids.shape[1] < length:
            out = model(input_ids=read.to(model.device), past_key_values=past, use_cache=True)
            past = out.past_key_values
            read = torch.multinomial(out.logits[:, -1, :size].float().softmax(-1).cpu(), 1, generator=generator)
            ids = torch.cat([ids, read], dim=1)
    return ids[:, :length]
