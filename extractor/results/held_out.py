"""The prompts on which a circuit was measured, as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extractor import files
from extractor.data.encoding import prompt_text, token_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt on which the circuit was measured. answers: first and second, in the order of the circuit; right: one of them."""

    prompt: str
    answers: tuple[str, str]
    right: str


def read_held_out(path: Path, tokenizer: Tokenizer) -> tuple[HeldOutPrompt, ...]:
    """The prompts of held_out.safetensors; those of a pair follow each other."""
    kept = files.read_tensors(path)
    rows = zip(*(kept[name].tolist() for name in ("ids", "last", "correct", "wrong")), strict=True)
    found = []
    for row, (ids, last, right, wrong) in enumerate(rows):
        texts = token_texts(tokenizer, [right, wrong])
        answers = (texts[0], texts[1]) if row % 2 == 0 else (texts[1], texts[0])  # a pair's first prompt has the first answer
        found.append(HeldOutPrompt(prompt_text(tokenizer, ids[: last + 1]), answers, texts[0]))
    return tuple(found)
