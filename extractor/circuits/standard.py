"""What a circuit must hold under, and how its loss is read from logit differences.

paper    ablated nodes have one kind of replacement value (`PruneSpec.ablation`), and the logit difference is calibrated: its best scale
         and shift (Sec. 2.2, App. A.5)
robust   the worst of the conditions of conditions.py, at the model's own scale: no scale and no shift are fitted (ours)

Shapes: P circuits; R logit differences, of n prompts in each of K conditions (paper: K = 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from extractor.circuits.calibration import calibrate, calibrate_all
from extractor.circuits.circuit import Calibration
from extractor.circuits.conditions import CONDITIONS, Conditions
from extractor.circuits.masks import MaskedModel
from extractor.circuits.mean_activations import at_tokens
from extractor.circuits.network import FastMaskedModel
from extractor.circuits.prompt_network import PromptMaskedModel
from extractor.circuits.prompt_values import OnePrompt, PromptValues
from extractor.circuits.reference import resampled
from extractor.data.prompts import TaskBatch

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

NEARLY_WORST = 0.02  # nats: conditions within about this of the worst one share the gradient
CONFIDENCE = 2.0  # standard errors above a mean loss that count as its upper end
KEPT_BATCHES = 3  # batches whose replacement values are kept: the select split and its parts
OWN_SCALE = Calibration(1.0, 0.0)
Name = Literal["paper", "robust"]


@dataclass(frozen=True)
class Measured:
    """A circuit on one batch. loss, and the upper end of its interval over pairs, nats; accuracy, a fraction."""

    loss: float
    upper: float
    accuracy: float


class Standard(Protocol):
    """What a circuit must hold under.

    copies   K
    """

    name: Name
    copies: int

    def network(self, kept_nodes: Tensor) -> MaskedModel:
        """The masked model of the nodes in kept_nodes (N,) bool; all others are ablated."""

    def losses(self, diffs: Tensor, sign: Tensor) -> Tensor:
        """Task losses (P,), nats, fp64, of logit differences (P, R); sign (n,)."""

    def held(self, diffs: Tensor, sign: Tensor) -> tuple[float, Tensor]:
        """(the loss of one circuit (1, R), the same as a function of its logit differences, with what is fitted held fixed)."""

    def objective(self, diffs: Tensor, sign: Tensor) -> Tensor:
        """(P,): what rankings and learned masks reduce, differentiable; nothing is fitted."""

    def calibration(self, diffs: Tensor, sign: Tensor) -> Calibration:
        """The scale and shift of the circuit with these logit differences (R,)."""

    def measured(self, diffs: Tensor, sign: Tensor, calibration: Calibration) -> Measured:
        """Loss and accuracy of logit differences (R,) with a given calibration; rows of `sign` are pairs."""


class PaperStandard:
    """One ablation, and the best scale and shift.

    means   {site: (width,)} of every node over the pretraining text
    """

    name: Name = "paper"
    copies = 1

    def __init__(self, model: SparseGPTForCausalLM, means: Mapping[str, Tensor], ablation: str):
        self.model, self.ablation = model, ablation
        self.values = {site: torch.zeros_like(mean) for site, mean in means.items()} if ablation == "zero" else means
        self._resample = _kept(lambda batch: (batch, PromptValues(model, resampled(model, batch))))

    def network(self, kept_nodes: Tensor) -> MaskedModel:
        if self.ablation == "resample":
            return PromptMaskedModel(self.model, self._resample, kept_nodes)
        if not self.model.config.is_plain:
            return PromptMaskedModel(self.model, self._constant, kept_nodes)
        return FastMaskedModel(self.model, self.values, kept_nodes)

    def _constant(self, batch: TaskBatch) -> tuple[TaskBatch, OnePrompt]:
        """The same replacement values for every prompt."""
        length = batch.ids.shape[1]
        one = {site: value.expand(1, length, -1) for site, value in at_tokens(self.values, length).items()}
        return batch, OnePrompt(PromptValues(self.model, one))

    def losses(self, diffs: Tensor, sign: Tensor) -> Tensor:
        return calibrate_all(diffs, sign)[0]

    def held(self, diffs: Tensor, sign: Tensor) -> tuple[float, Tensor]:
        loss, scale, shift = calibrate_all(diffs, sign)
        return loss.item(), softplus(-sign * Calibration(scale.item(), shift.item()).apply(diffs[0])).mean()

    def objective(self, diffs: Tensor, sign: Tensor) -> Tensor:
        return softplus(-sign * diffs).mean(-1)

    def calibration(self, diffs: Tensor, sign: Tensor) -> Calibration:
        return calibrate(diffs, sign)

    def measured(self, diffs: Tensor, sign: Tensor, calibration: Calibration) -> Measured:
        return _measured(calibration.apply(diffs), sign)


class RobustStandard:
    """The worst of several conditions, at the model's own scale.

    means      as above
    demanded   the conditions that count; all run
    """

    name: Name = "robust"
    copies = len(CONDITIONS)

    def __init__(self, model: SparseGPTForCausalLM, means: Mapping[str, Tensor], seed: int, demanded: Sequence[str] = CONDITIONS):
        self.model, self._conditions = model, _kept(Conditions(model, means, seed))
        self.demanded = [CONDITIONS.index(name) for name in demanded]

    def network(self, kept_nodes: Tensor) -> MaskedModel:
        return PromptMaskedModel(self.model, self._conditions, kept_nodes)

    def by_condition(self, diffs: Tensor, sign: Tensor) -> Tensor:
        """Task losses (P, demanded), nats."""
        return softplus(-sign * diffs.unflatten(-1, (self.copies, -1))[..., self.demanded, :]).mean(-1)

    def losses(self, diffs: Tensor, sign: Tensor) -> Tensor:
        return self.by_condition(diffs.double(), sign.double()).amax(-1).cpu()

    def held(self, diffs: Tensor, sign: Tensor) -> tuple[float, Tensor]:
        losses = self.by_condition(diffs, sign)[0]
        share = (losses.detach() / NEARLY_WORST).softmax(-1)
        return losses.max().item(), (share * losses).sum()

    def objective(self, diffs: Tensor, sign: Tensor) -> Tensor:
        return self.by_condition(diffs, sign).mean(-1)

    def calibration(self, diffs: Tensor, sign: Tensor) -> Calibration:
        return OWN_SCALE

    def measured(self, diffs: Tensor, sign: Tensor, calibration: Calibration) -> Measured:
        every = [_measured(one, sign) for one in calibration.apply(diffs).unflatten(-1, (self.copies, -1))[self.demanded]]
        return Measured(max(one.loss for one in every), max(one.upper for one in every), min(one.accuracy for one in every))


def _measured(diffs: Tensor, sign: Tensor) -> Measured:
    losses = softplus(-sign.double() * diffs.double())
    by_pair = losses.unflatten(0, (-1, 2)).mean(-1)
    error = (by_pair.std() / len(by_pair) ** 0.5).item() if len(by_pair) > 1 else 0.0
    loss = losses.mean().item()
    return Measured(loss, loss + CONFIDENCE * error, (sign * diffs > 0).double().mean().item())


def _kept(make: Callable[[TaskBatch], tuple]) -> Callable[[TaskBatch], tuple]:
    """`make`, with what it gave for the last batches kept: a search scores the same ones often."""
    found: list[tuple[TaskBatch, tuple]] = []

    def kept(batch: TaskBatch) -> tuple:
        place = next((i for i, (some, _) in enumerate(found) if some is batch), None)
        entry = (batch, make(batch)) if place is None else found.pop(place)
        found.append(entry)
        del found[:-KEPT_BATCHES]
        return entry[1]

    return kept
