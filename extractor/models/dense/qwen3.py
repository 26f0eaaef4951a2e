"""Hugging Face Qwen3 as a list of sublayers: queries and keys are normed by head inside the model's own attention."""

from __future__ import annotations

from extractor.models.dense.qwen2 import Qwen2Sublayers


class Qwen3Sublayers(Qwen2Sublayers):
    """See `extractor.models.dense.base.DenseSublayers`."""


DENSE = Qwen3Sublayers
