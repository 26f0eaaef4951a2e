"""Hugging Face Qwen2 as a list of sublayers: a Llama with biases of queries, keys and values, whose layers may see a window."""

from __future__ import annotations

from extractor.models.dense.llama import LlamaSublayers


class Qwen2Sublayers(LlamaSublayers):
    """See `extractor.models.dense.base.DenseSublayers`."""

    def is_windowed(self, layer: int) -> bool:
        return self.model.config.layer_types[layer] == "sliding_attention"


DENSE = Qwen2Sublayers
