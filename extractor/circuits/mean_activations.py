"""Mean ablation: the replacement value of an ablated node.

It is the node's mean over the pretraining distribution, measured in the full model after AbsTopK. Paper: Sec. 2.2.

In pretrained models the first token of a text has activations a hundred times larger than all others, to which heads without anything to
say attend. A mean over all tokens would fit neither, so the first token has means of its own there (ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from extractor.data.corpus import Corpus
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM


ROWS, FEW_ROWS = 64, 8  # sequences in one pass; of pretrained models, whose every node at every token takes memory


class Means(dict[str, Tensor]):
    """{site: (width,)} the mean of every node.

    first   the same of the first token of a text, where that has means of its own and the others are those of later tokens; else None
    """

    def __init__(self, values: Mapping[str, Tensor], first: Mapping[str, Tensor] | None = None):
        super().__init__(values)
        self.first = first

    @classmethod
    def from_stored(cls, tensors: Mapping[str, Tensor]) -> Means:
        first = {name.removeprefix(_FIRST): value for name, value in tensors.items() if name.startswith(_FIRST)}
        return cls({name: value for name, value in tensors.items() if not name.startswith(_FIRST)}, first or None)


_FIRST = "first."


def stored_means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of means.safetensors, which `Means.from_stored` reads."""
    first = values.first if isinstance(values, Means) else None
    return dict(values) | {f"{_FIRST}{site}": value for site, value in (first or {}).items()}


def at_tokens(values: Mapping[str, Tensor], length: int) -> Mapping[str, Tensor]:
    """Replacement values at `length` tokens, (length, width), of `Means` whose first token has its own; others as they are."""
    first = values.first if isinstance(values, Means) else None
    if first is None:
        return values
    return {site: torch.cat([first[site][None], value.expand(length - 1, -1)]) for site, value in values.items()}


@torch.no_grad()
def measure_means(model: SparseGPTForCausalLM, corpus: Corpus, tokens: int, seed: int) -> Means:
    """Mean value of every node over about `tokens` training tokens; models of further blocks have a pretrained model's first token."""
    context, begin = model.config.n_ctx, 0 if model.config.is_plain else 1
    rows = max(1, tokens // context)
    sums: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    with model.record() as values:
        for ids in corpus.batch(seed, 1 << 40, rows, context).split(ROWS if begin == 0 else FEW_ROWS):
            model(input_ids=ids.to(model.device), logits_to_keep=1)
            for site, x in values.items():
                for found, part in ((sums, x[:, begin:]), (first, x[:, :begin])):
                    total = part.double().sum((0, 1))
                    found[site] = found[site] + total if site in found else total
    means = {site: (total / (rows * max(1, context - begin))).to(model.dtype) for site, total in sums.items()}
    return Means(means, {site: (total / rows).to(model.dtype) for site, total in first.items()} if begin else None)
