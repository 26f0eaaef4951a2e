"""Whether a model predicts code or prose better, measured on text of the Python installation."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

from extractor.data.sources import TextKind, prose

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

PROBE_CHARACTERS = 8_000
PROBE_CONTEXT = 128
_CODE = ("import ", "from ", "class ", "def ", "    return ", "    if ", "    for ", "@")


def measure_text_kind(model: PreTrainedModel, tokenizer: Tokenizer) -> TextKind:
    """'text' if the model predicts prose better than code, else 'code'; both relative to zlib, since code compresses better."""
    import argparse
    import inspect

    code = inspect.getsource(argparse)[:PROBE_CHARACTERS]
    words = "\n".join(line for text in prose() for line in text.splitlines() if _is_prose(line))[:PROBE_CHARACTERS]

    def effort(text: str) -> float:
        return bits_per_character(model, tokenizer, text) / len(zlib.compress(text.encode(), 9))

    return "text" if effort(words) < effort(code) else "code"


def _is_prose(line: str) -> bool:
    return len(line) > 60 and not line.startswith(("   ", *_CODE)) and line.count(" ") > 8


def bits_per_character(model: PreTrainedModel, tokenizer: Tokenizer, text: str) -> float:
    """Bits per character of a text under a model, which do not depend on its tokens; the first token of each context is not counted."""
    import torch
    from torch.nn import functional

    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    context = min(PROBE_CONTEXT, model.config.max_position_embeddings)
    rows = ids[: len(ids) // context * context].view(-1, context)
    if not len(rows):
        return math.inf
    total, characters = 0.0, sum(len(t) for t in tokenizer.decode_batch(rows[:, 1:].tolist()))
    with torch.no_grad():
        for row in rows.split(8):
            logits = model(input_ids=row.to(model.device)).logits[:, :-1].float()
            total += functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten().to(logits.device), reduction="sum").item()
    return total / math.log(2) / max(1, characters)
