"""Hugging Face Mistral as a list of sublayers: a Llama whose attention may see a window of the last tokens in every layer."""

from __future__ import annotations

from extractor.models.dense.llama import LlamaSublayers


class MistralSublayers(LlamaSublayers):
    """See `extractor.models.dense.base.DenseSublayers`."""

    def is_windowed(self, layer: int) -> bool:
        return self.model.config.sliding_window is not None


DENSE = MistralSublayers
