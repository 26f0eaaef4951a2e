"""Rank nodes for a task by learning masks (Sec. 2.2, App. A.5).

1. One real number tau per node, starting at +0.1 with a little noise; the node is on where tau > 0 (forward: Heaviside; backward: the
   derivative of a sigmoid at temperature T).
2. AdamW on task loss + k_coef x (number of nodes on), fresh pairs of the train split every step; gradient norm clipped to 1; linear
   warm-up and decay; tau clamped to [-1, 1].
3. Rank by the final tau; nodes that fell out are ranked by how late they were last on (ours: at the clamp their tau says nothing).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from extractor.ablation import Masks, masked_margin
from extractor.objective import TaskBatch, task_loss
from extractor.sites import widths
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.specs import PruneSpec
from extractor.training import Loop, LoopEnvironment, TrainState, run_loop


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tau: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(tau)
        ctx.temperature = temperature
        return (tau > 0).to(tau.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (tau,) = ctx.saved_tensors
        s = torch.sigmoid(tau / ctx.temperature)
        return grad * s * (1 - s) / ctx.temperature, None


@dataclass(frozen=True)
class NodeIndex:
    """All nodes of a model in one flat order: site by site, forward."""

    widths: dict[str, int]

    @classmethod
    def of(cls, model: SparseGPTForCausalLM) -> NodeIndex:
        return cls(widths(model))

    def __len__(self) -> int:
        return sum(self.widths.values())

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """{site: (width,)} views of a flat (N,) tensor."""
        return dict(zip(self.widths, flat.split(list(self.widths.values())), strict=True))

    def masks(self, nodes: Tensor) -> Masks:
        """Masks with exactly these flat node indices on."""
        flat = torch.zeros(len(self), device=nodes.device)
        flat[nodes] = 1.0
        return self.split(flat)


def learn_ranking(
    model: SparseGPTForCausalLM,
    means: dict[str, Tensor],
    batch_of: Callable[[int], TaskBatch],
    spec: PruneSpec,
    k_coef: float,
    seed: int,
    env: LoopEnvironment,
    stage: str,
) -> Tensor:
    """All nodes, most needed first, as flat indices (N,). `batch_of(step)` gives that step's pairs."""
    index = NodeIndex.of(model)
    device = model.device
    generator = torch.Generator().manual_seed(seed)
    start = spec.init_mean + spec.init_noise * torch.randn(len(index), generator=generator)
    tau = torch.nn.Parameter(start.to(device))
    last_on = torch.zeros(len(index), device=device)
    model.requires_grad_(False)
    adam = torch.optim.AdamW([tau], lr=spec.lr, betas=(0.9, spec.beta2), weight_decay=spec.weight_decay)

    def step(number: int) -> dict[str, float]:
        batch = batch_of(number)
        flat = _Heaviside.apply(tau, spec.temperature)
        loss = task_loss(masked_margin(model, batch, index.split(flat), means), batch.sign)
        nodes = flat.sum()
        adam.zero_grad()
        (loss + k_coef * nodes).backward()
        torch.nn.utils.clip_grad_norm_([tau], 1.0)
        warm = min(1.0, (number + 1) / max(1.0, spec.warmup * spec.steps))
        adam.param_groups[0]["lr"] = spec.lr * warm * (1 - number / spec.steps)
        adam.step()
        with torch.no_grad():
            tau.clamp_(-1, 1)
            last_on[tau > 0] = number + 1
        return {"loss": loss.item(), "nodes": nodes.item()}

    run_loop(Loop(stage, spec.steps, step), TrainState({}, [adam], {"tau": tau.data, "last_on": last_on}), env)
    # Nodes still on rank by tau (at most 1), nodes that left by when (their step, made negative), ties by index.
    score = torch.where(tau > 0, tau, (last_on - spec.steps - 1))
    return score.detach().argsort(descending=True, stable=True)
