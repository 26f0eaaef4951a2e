"""Whether a model predicts code or prose better, measured on text of the Python installation."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

from extractor.data.encoding import encoded_batch, marks_of
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
    """Bits per character of a text under a model, which do not depend on its tokens.

    Each context starts with the tokens that the tokenizer puts before a text; these, or else the first token, are not counted.
    """
    import torch
    from torch.nn import functional

    ids = torch.tensor(encoded_batch(tokenizer, [text])[0].ids)
    before = torch.tensor(marks_of(tokenizer).before, dtype=torch.int64)
    context = min(PROBE_CONTEXT, model.config.max_position_embeddings) - len(before)
    if not 0 < context <= len(ids):
        return math.inf
    rows = ids[: len(ids) // context * context].view(-1, context)
    rows = torch.cat([before.expand(len(rows), -1), rows], dim=1)
    counted = max(1, len(before))  # the first counted token of a context
    total, characters = 0.0, sum(len(t) for t in tokenizer.decode_batch(rows[:, counted:].tolist()))
    with torch.no_grad():
        for row in rows.split(8):
            logits = model(input_ids=row.to(model.device)).logits[:, counted - 1 : -1].float()
            total += functional.cross_entropy(logits.flatten(0, 1), row[:, counted:].flatten().to(logits.device), reduction="sum").item()
    return total / math.log(2) / max(1, characters)
