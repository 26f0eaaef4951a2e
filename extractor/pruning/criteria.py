"""When a circuit counts: what it may lose alone, what the model must lose without it, and how sure both are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.circuits.scorer import CircuitScorer
from extractor.circuits.standard import Measured, Name
from extractor.data.prompts import TaskBatch
from extractor.pruning.problem import PruningProblem
from extractor.spec.thresholds import FULL_MODEL_FAILS, MOST_DEMANDED_LOSS

FEW_PAIRS = 128  # select pairs by which starts are cut, candidates compared, and necessity is checked on the way


@dataclass(frozen=True)
class PrunedCircuit:
    """A circuit. loss: select split, nats; target: the loss it was chosen for, nats; met: sufficient and necessary by its standard."""

    graph: CircuitMask
    edges: int
    loss: float
    calibration: Calibration
    target: float
    met: bool
    standard: Name = "paper"


class CircuitCriteria:
    """When a circuit counts: the loss that it may have alone, and the loss that the model without it must have.

    full_loss            loss of the full model, select split, nats
    prefixes             scorer of starts and of candidates: on few select pairs where the spec is confident, since `holds` measures all
    least_loss_without   calibrated loss that the model without the circuit must reach, nats; 0 where necessity is not asked for
    """

    def __init__(self, problem: PruningProblem):
        def few(pairs: int) -> TaskBatch:
            return problem.select.pick(torch.arange(min(pairs, problem.select.pairs)))

        copies, some = problem.standard.copies, few(FEW_PAIRS)
        self.scorer, self.is_confident = problem.scorer(problem.select), problem.spec.confident
        self.prefixes = problem.scorer(some) if self.is_confident else self.scorer
        if copies > 1:
            self.prefixes = problem.scorer(few(max(1, problem.select.pairs // copies)))
        self.without, self.without_few = CircuitScorer(problem.paper, problem.select), CircuitScorer(problem.paper, some)
        self.full_loss = self.scorer.loss(problem.full_mask())
        necessity = problem.spec.necessity
        full = self.full_loss if problem.standard is problem.paper else self.without.loss(problem.full_mask())
        self.least_loss_without = 0.0 if necessity == 0 else min(full + necessity, MOST_DEMANDED_LOSS)

    def measured(self, mask: CircuitMask) -> tuple[Measured, Calibration]:
        """The circuit on all select pairs, and its calibration."""
        standard, sign = self.scorer.standard, self.scorer.batch.sign
        diff = self.scorer.logit_diffs([mask])[0]
        calibration = standard.calibration(diff, sign)
        return standard.measured(diff, sign, calibration), calibration

    def holds(self, mask: CircuitMask, target: float) -> bool:
        """Whether it meets the target at the upper end of its interval (unless the spec is not confident), and is necessary."""
        return (not self.is_confident or self.measured(mask)[0].upper <= target) and self.is_necessary(mask)

    def is_sufficient(self, mask: CircuitMask, loss: float) -> bool:
        return self.prefixes.loss(mask) <= loss

    def is_necessary(self, mask: CircuitMask) -> bool:
        return self.least_loss_without == 0 or self.without.loss(mask.complement()) >= self.least_loss_without

    def is_roughly_necessary(self, mask: CircuitMask, extra: float = 0.0) -> bool:
        """`is_necessary` on few pairs. extra: fraction of the way from the demanded loss to that of a model that fails, demanded too."""
        demanded = self.least_loss_without + extra * max(0.0, FULL_MODEL_FAILS - self.least_loss_without)
        return self.least_loss_without == 0 or self.without_few.loss(mask.complement()) >= demanded
