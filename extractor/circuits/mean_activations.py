"""Mean ablation: the replacement value of an ablated node.

It is the node's mean over the pretraining distribution, measured in the full model after AbsTopK.
Paper: Sec. 2.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from extractor.data.corpus import Corpus
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM


@torch.no_grad()
def measure_means(model: SparseGPTForCausalLM, corpus: Corpus, tokens: int, seed: int) -> dict[str, Tensor]:
    """Mean value of every node, {site: (width,)}, over about `tokens` training tokens."""
    context = model.config.n_ctx
    rows = max(1, tokens // context)
    sums: dict[str, Tensor] = {}
    with model.record() as values:
        for ids in corpus.batch(seed, 1 << 40, rows, context).split(64):
            model(input_ids=ids.to(model.device), logits_to_keep=1)
            for site, x in values.items():
                total = x.double().sum((0, 1))
                sums[site] = sums[site] + total if site in sums else total
    return {site: (total / (rows * context)).to(model.dtype) for site, total in sums.items()}
