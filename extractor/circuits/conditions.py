"""What ablated nodes may be: conditions under which a circuit should still do its task. A batch runs once under each of them.

mean     every ablated node has its mean over the pretraining text
zero     it is zero
same     it has its value in another prompt of the same length with the same answer, at the same token
other    the same of a prompt with the other answer
subset   a random share of the ablated nodes have their own value in this prompt, all others their mean; one draw for 32 pairs

Circuits found under the mean alone are often at chance under the others: what is ablated then still carries, or hides, the answer. One
subset for many pairs cannot be fitted, unlike noise for each prompt; several in a large batch make its loss that of subsets, not of one.
Draws are functions of the seed and of the batch's prompts. App. A.5 of the paper has the mean; the others are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from extractor.circuits.graph import Link, NodeIndex
from extractor.circuits.mean_activations import at_tokens
from extractor.circuits.prompt_values import PromptValues, ReplacedStream
from extractor.data.prompts import TaskBatch

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

CONDITIONS = ("mean", "zero", "same", "other", "subset")  # in the order in which a batch is repeated
SUBSET_PROMPTS = 64  # prompts in a row that share one random subset


class ConditionValues:
    """`PromptValues` of a batch of n prompts that is repeated for each condition.

    Rows of the repeated batch are asked for as the same prompts of every condition, in the order of `CONDITIONS`.

    own       the full model's values of prompts of the batch
    subset    values of the n prompts where only the nodes of a subset keep their own
    mean      of one prompt: the mean of every node at each of the T tokens
    partner   {same, other: (n,) the prompt in `own` whose values are taken}
    """

    def __init__(self, own: PromptValues, subset: PromptValues, mean: PromptValues, partner: Mapping[str, Tensor]):
        self.own, self.subset, self.mean, self.partner = own, subset, mean, partner
        self.streams: dict[tuple[int, int], ReplacedStream] = {}

    def of(self, site: str, rows: Tensor, length: int, channels: Tensor) -> Tensor:
        return self._joined(rows, lambda part, some: part.of(site, some, length, channels))

    def sent(self, link: Link, rows: Tensor, length: int, targets: Tensor) -> Tensor:
        return self._joined(rows, lambda part, some: part.sent(link, some, length, targets))

    def mixed(self, layer: int, rows: Tensor, length: int, channels: Tensor) -> Tensor:
        return self._joined(rows, lambda part, some: part.mixed(layer, some, length, channels))

    def _joined(self, rows: Tensor, take: Callable[[PromptValues, Tensor], Tensor]) -> Tensor:
        """The values (rows, length, channels) of rows of the repeated batch; `take` gives those of prompts."""
        prompts = rows[: len(rows) // len(CONDITIONS)]
        mean = take(self.mean, rows[:1].new_zeros(1)).expand(len(prompts), -1, -1)
        found = {name: take(self.own, self.partner[name][prompts]) for name in ("same", "other")}
        found |= {"mean": mean, "zero": torch.zeros_like(mean), "subset": take(self.subset, prompts)}
        return torch.cat([found[name] for name in CONDITIONS])


class Draws(NamedTuple):
    """What is random of the conditions of n prompts.

    same, other   (n,) the prompt whose values an ablated node has under the condition of this name
    subset        (subsets, N) bool: the nodes that keep their own values; prompts i * SUBSET_PROMPTS and on have the i-th
    """

    same: Tensor
    other: Tensor
    subset: Tensor


class Conditions:
    """Makes the replacement values of each condition for a batch: `ablate` of a `PromptMaskedModel`.

    means   {site: (width,)} of every node over the pretraining text
    """

    def __init__(self, model: SparseGPTForCausalLM, means: Mapping[str, Tensor], seed: int):
        self.model, self.means, self.seed = model, means, seed
        self.index = NodeIndex.of(model)

    def __call__(self, batch: TaskBatch) -> tuple[TaskBatch, ConditionValues]:
        """(the batch once for each condition, their replacement values)."""
        return self.of_rows(batch, torch.arange(len(batch.ids), device=batch.ids.device), self.draws(batch))

    @torch.no_grad()
    def of_rows(self, batch: TaskBatch, rows: Tensor, draws: Draws) -> tuple[TaskBatch, ConditionValues]:
        """The same of a part of a batch, prompts at rows (n,) of it: they have the replacement values that they have in the batch.

        draws   `self.draws(batch)`
        """
        partner = {"same": draws.same[rows], "other": draws.other[rows]}
        chosen = draws.subset[rows.cpu() // SUBSET_PROMPTS].to(rows.device)
        needed = torch.cat([rows, *partner.values()]).unique()
        part, ids = batch.rows(rows), batch.ids[needed, : int(batch.last[needed].max()) + 1]
        with self.model.record() as own:
            self.model(input_ids=ids, logits_to_keep=1)
        here, kept = torch.searchsorted(needed, rows), self.index.split(chosen)
        means = at_tokens(self.means, ids.shape[1])
        subset = {site: torch.where(kept[site][:, None], x[here], means[site]) for site, x in own.items()}
        mean = {site: x.expand(1, ids.shape[1], -1) for site, x in means.items()}
        of_own, of_subset, of_mean = (PromptValues(self.model, some) for some in (own, subset, mean))
        places = {name: torch.searchsorted(needed, some) for name, some in partner.items()}
        return part.repeat(len(CONDITIONS)), ConditionValues(of_own, of_subset, of_mean, places)

    def draws(self, batch: TaskBatch) -> Draws:
        """A function of the seed and of the batch's prompts."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + _number_of(batch))
        same, other = (partners(batch, is_same, generator) for is_same in (True, False))
        count = -(-len(batch.ids) // SUBSET_PROMPTS)
        subset = torch.rand(count, len(self.index), generator=generator) < torch.rand(count, 1, generator=generator)
        return Draws(same, other, subset)


def partners(batch: TaskBatch, same: bool, generator: torch.Generator) -> Tensor:
    """(n,): for each prompt a random other one of its length with the same answer, or with the other one.

    Where there is none, a prompt is its own partner.
    """
    found = torch.arange(len(batch.ids))
    last, sign = batch.last.cpu(), batch.sign.cpu() > 0
    for length in last.unique():
        groups = [((last == length) & (sign == side)).nonzero().flatten() for side in (True, False)]
        for rows, others in zip(groups, groups if same else groups[::-1], strict=True):
            if same:
                shuffled = rows[torch.randperm(len(rows), generator=generator)]
                found[shuffled] = shuffled.roll(1)
            elif len(others):
                found[rows] = others[torch.randint(len(others), (len(rows),), generator=generator)]
    return found.to(batch.ids.device)


def _number_of(batch: TaskBatch) -> int:
    """A number that depends on the prompts of a batch."""
    places = torch.arange(1, batch.ids.numel() + 1, device=batch.ids.device)
    return int((batch.ids.flatten() * places).sum() % (1 << 31))
