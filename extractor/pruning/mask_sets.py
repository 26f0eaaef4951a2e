"""Rank nodes or edges by learning masks (Sec. 2.2, App. A.5), many mask sets at once.

1. One mask logit tau per element and set, starting at +0.1 with a little noise; mask = 1 where tau > 0, else 0 (forward: Heaviside;
   backward: the derivative of a sigmoid at temperature T). q and k of one channel share a mask.
2. AdamW on   task loss + k_coef * sum(masks),   with the same fresh pairs for all sets and each set's own hyper-parameters; gradient norm
   of a set clipped to 1; linear warm-up and decay; tau clamped to [-1, 1].
3. Elements that were off in every set for a while are removed for good, and the network shrinks to the rest (ours).
4. Half-way the worse half of the sets stops (ours), if `measure` is given.
5. Rank by the final tau; removed elements by the step at which they were last on (ours: at the clamp their tau carries no information).

P sets, E elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extractor.circuits.masks import MaskedModel
from extractor.data.prompts import TaskBatch
from extractor.pruning.elements import Elements
from extractor.pruning.problem import PruningProblem
from extractor.training.checkpoints import TrainState
from extractor.training.loop import Loop, LoopEnvironment, run_loop

PATIENCE = 0.05  # fraction of the steps that an element may be off in every set before it is removed
SHRINK = 0.9  # the network is cut again when at most this fraction of its elements remains
HALVED_AT = 0.5  # fraction of the steps after which the worse half of the sets stops


@dataclass(frozen=True)
class MaskTrial:
    """The hyper-parameters of one mask set; see `PruneSpec`."""

    k_coef: float
    lr: float
    weight_decay: float
    beta2: float
    warmup: float
    temperature: float
    seed: int


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tau: Tensor, temperature: Tensor) -> Tensor:
        ctx.save_for_backward(tau, temperature)
        return (tau > 0).to(tau.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        tau, temperature = ctx.saved_tensors
        s = torch.sigmoid(tau / temperature)
        return grad * s * (1 - s) / temperature, None


class MaskPopulation:
    """All mask sets: their logits, optimiser, and which sets still run."""

    def __init__(self, problem: PruningProblem, elements: Elements, trials: Sequence[MaskTrial], steps: int):
        device, spec, count = problem.model.device, problem.spec, len(elements)
        self.problem, self.elements, self.trials, self.steps = problem, elements, trials, steps
        self.mask_logits: list[Tensor] = [torch.nn.Parameter(_start(count, t.seed, spec).to(device)) for t in trials]
        self.adam = torch.optim.AdamW([_group(tau, trial) for tau, trial in zip(self.mask_logits, trials, strict=True)])
        self.temperature = torch.tensor([[t.temperature] for t in trials], device=device)
        self.k_coef = torch.tensor([t.k_coef for t in trials], device=device)
        self.last_on = torch.zeros(len(trials), count, device=device)
        self.kept = torch.ones(count, device=device)
        self.alive = torch.ones(len(trials), device=device)
        self._network: MaskedModel | None = None

    def state(self) -> TrainState:
        own = {"last_on": self.last_on, "kept": self.kept, "alive": self.alive}
        return TrainState({}, [self.adam], own | {f"tau{i}": tau.data for i, tau in enumerate(self.mask_logits)})

    def scores(self, step: int) -> Tensor:
        """Scores (P, E) after `step` steps, higher is more needed: tau where the element is on, else minus the steps since it was on."""
        tau = torch.stack(self.mask_logits).detach()
        return torch.where((tau > 0) & (self.kept > 0), tau, self.last_on - step - 1)[:, self.elements.ties]

    def network(self, step: int) -> MaskedModel:
        """The masked model for this step, cut again when enough elements were removed."""
        recent = (self.last_on > step - max(1, PATIENCE * self.steps))[self.alive > 0].any(0)
        wanted = recent[self.elements.ties] * self.kept
        if step and wanted.sum() <= SHRINK * self.kept.sum():
            self.kept.copy_(wanted)
            self._network = None
        if self._network is None:
            self._network = self.problem.network(self.elements.graph(self.kept > 0).nodes)
        return self._network

    def halve(self, values: Tensor) -> None:
        """Stop the worse half of the sets; values (P,), lower is better."""
        self.alive[values.argsort(stable=True)[(len(values) + 1) // 2 :]] = 0.0

    def _effects(self, on: Tensor, network: MaskedModel, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """Task losses (P',) of masks (P', E), and their derivatives by the masks. Equal masks run once: at first all are equal."""
        different, which = torch.unique(on.detach(), dim=0, return_inverse=True)
        different.requires_grad_()
        diffs = network.logit_diffs(network.prepare(batch), self.elements.masks(different))
        losses = self.problem.standard.objective(diffs, batch.sign)
        (effects,) = torch.autograd.grad(losses.sum(), different)
        return losses.detach()[which], effects[which]

    def step(self, step: int) -> dict[str, float]:
        """One step of all live sets: steps 1 to 3 of the module's docstring."""
        batch, network = self.problem.draw(step, self.problem.spec.pairs), self.network(step)
        live = self.alive.nonzero().flatten().tolist()
        on = _Heaviside.apply(torch.stack([self.mask_logits[i] for i in live]), self.temperature[live])[:, self.elements.ties] * self.kept
        losses, effects = self._effects(on, network, batch)
        count = on.sum(-1)
        self.adam.zero_grad()
        on.backward(effects + self.k_coef[live, None])
        for i in live:
            trial = self.trials[i]
            torch.nn.utils.clip_grad_norm_([self.mask_logits[i]], 1.0)
            warm = min(1.0, (step + 1) / max(1.0, trial.warmup * self.steps))
            self.adam.param_groups[i]["lr"] = trial.lr * warm * (1 - step / self.steps)
        self.adam.step()
        with torch.no_grad():
            for i in live:
                self.last_on[i][(self.mask_logits[i].clamp_(-1, 1) > 0) & (self.kept > 0)] = step + 1
        return {"loss": losses.min().item(), "on": count.min().item(), "kept": self.kept.sum().item()}


def learn_scores(
    problem: PruningProblem,
    elements: Elements,
    trials: Sequence[MaskTrial],
    steps: int,
    env: LoopEnvironment,
    measure: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(scores (P, E), alive (P,) bool) of one mask set per trial.

    measure   scores (P, E) -> (P,), lower is better; None: all sets run to the end
    """
    problem.model.requires_grad_(False)
    sets = MaskPopulation(problem, elements, trials, steps)

    def step(number: int) -> dict[str, float]:
        if measure is not None and len(trials) > 1 and number == int(HALVED_AT * steps):
            sets.halve(measure(sets.scores(number)))
        return sets.step(number)

    run_loop(Loop(env.checkpoints.stage, steps, step), sets.state(), env)
    return sets.scores(steps), sets.alive > 0


def _start(count: int, seed: int, spec: Any) -> Tensor:
    return spec.init_mean + spec.init_noise * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def _group(tau: Tensor, trial: MaskTrial) -> dict:
    return {"params": [tau], "lr": trial.lr, "betas": (0.9, trial.beta2), "weight_decay": trial.weight_decay}
