"""In which layers what tells two prompts apart reaches their last token, so that a bridging can leave the others dense (`--layers`).

Before each layer the residuals of one prompt of a pair are exchanged for the other's: at the last token alone, and at all other tokens. The
share of the answer that moves,

    (d - d') / (d - o),    d, o: logit differences of the prompt and of the other one; d': after the exchange; median over prompts,

says where the difference between the prompts is: at the last token none of it in early layers, all of it in the last ones. `span` is where
it moves there; a sparse model of these layers can be small and still carry the answer. Two things are not said: layers before may compute
at the other tokens what is moved, and layers behind may still compute with what has arrived. Where the prompts differ in their last
tokens, nothing moves and there is no span. Interchange interventions as in Geiger et al. 2021; ours otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from extractor.data.prompts import TaskBatch, logit_diff
from extractor.models.dense.base import DenseSublayers, residuals, tail

MOVED = 0.05  # share of the answer below which it has not moved, and above 1 minus which all of it has
PROMPTS_AT_ONCE = 32


class LayerShares(NamedTuple):
    """Shares of the answer that are exchanged before a layer: with the last token's residual, with all others."""

    layer: int
    last: float
    others: float


@torch.no_grad()
def answer_layers(dense: DenseSublayers, layers: int, batch: TaskBatch) -> Iterator[LayerShares]:
    """For each of the model's layers in turn, on pairs of prompts of one length."""
    of_layer = dense.n_sublayers // layers
    parts = [batch.rows(rows) for rows in torch.arange(len(batch.ids), device=batch.ids.device).split(PROMPTS_AT_ONCE)]
    plain = [_logit_diff(dense, residuals(dense, part.ids)[-1], part) for part in parts]
    reached = [dense.embed(part.ids, dense.context(part.ids)) for part in parts]
    for layer in range(layers):
        site = of_layer * layer
        found = [_exchanged(dense, site, h, part) for h, part in zip(reached, parts, strict=True)]
        last, others = (torch.cat([_share(d, exchanged[place]) for d, exchanged in zip(plain, found, strict=True)]) for place in range(2))
        yield LayerShares(layer, last.median().item(), others.median().item())
        reached = [tail(dense, site, h, dense.context(part.ids), site + of_layer) for h, part in zip(reached, parts, strict=True)]


def span(found: list[LayerShares]) -> tuple[int, int] | None:
    """First and last layer in which the difference moves to the last token: from MOVED of it to all but MOVED; None where it does not."""
    begun = [one.layer for one in found if one.last < MOVED and one.others > 1 - MOVED]
    if not begun:
        return None
    first = max(begun)
    moved = (one.layer for one in found if one.layer > first and one.last > 1 - MOVED and one.others < MOVED)
    return first, next(moved, len(found)) - 1


def _exchanged(dense: DenseSublayers, site: int, h: Tensor, part: TaskBatch) -> tuple[Tensor, Tensor]:
    """Logit differences with the last token's residual of the other prompt, and with all its other residuals; h (B, T, D) of that site."""
    context = dense.context(part.ids)
    rows = torch.arange(len(h), device=h.device)
    other, at_last = h[rows ^ 1], torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    at_last[rows, part.last] = True
    changed = (torch.where(where[..., None], other, h) for where in (at_last, ~at_last))
    last, others = (_logit_diff(dense, tail(dense, site, one, context), part) for one in changed)
    return last, others


def _share(plain: Tensor, exchanged: Tensor) -> Tensor:
    """The share of the answer that has moved, of every prompt; of those whose answers are equally likely after both prompts, none."""
    apart = plain - plain[torch.arange(len(plain), device=plain.device) ^ 1]
    return torch.where(apart == 0, 0, (plain - exchanged) / torch.where(apart == 0, 1, apart))


def _logit_diff(dense: DenseSublayers, h: Tensor, part: TaskBatch) -> Tensor:
    return logit_diff(dense.unembed(h[torch.arange(len(h), device=h.device), part.last]), part)
