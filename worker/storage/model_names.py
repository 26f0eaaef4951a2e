"""Names that always mean a model, never a job, so that no job can stand in for it: bundled models, models of the hub without an owner."""

from __future__ import annotations

from extractor.models.reference import is_here

HUB_NAMES = frozenset({"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt"})


def is_model_name(text: str) -> bool:
    """Whether a text with the form of a job id is such a name, in any case: the hub's names have none."""
    return text.lower() in HUB_NAMES or is_here(text) or is_here(text.lower())
