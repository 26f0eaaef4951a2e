"""Rank nodes by learning masks (Sec. 2.2, App. A.5), many mask sets at once.

1. One real number tau per node and set, starting at +0.1 with a little noise; a node is on where tau > 0 (forward: Heaviside; backward: the
   derivative of a sigmoid at temperature T). q and k of one channel share theirs.
2. AdamW on task loss + k_coef x (number of nodes on), the same fresh pairs for all sets, each set with hyper-parameters of its own;
   gradient norm of a set clipped to 1; linear warm-up and decay; tau clamped to [-1, 1].
3. Nodes that were off in every set for a while are cut out of the network for good (ours): most of the steps cost little.
4. Rank by the final tau; nodes that fell out by how late they were last on (ours: at the clamp their tau says nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from extractor.objective import TaskBatch
from extractor.pruning.graph import NodeIndex
from extractor.pruning.layers import Base, Masks
from extractor.pruning.network import Network
from extractor.training import Loop, LoopEnvironment, TrainState, run_loop

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.specs import PruneSpec

PATIENCE = 0.05  # share of the steps that a node may be off in every set before it is cut out
SHRINK = 0.9  # the network is cut again when at most this share of its nodes is still wanted


@dataclass(frozen=True)
class Trial:
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


def tied(index: NodeIndex) -> Tensor:
    """(N,) for every node the node whose mask it shares: k has that of q, all others their own."""
    own = torch.arange(len(index))
    starts = index.starts()
    for site, width in index.widths.items():
        if site.endswith("attn.k"):
            own[starts[site] : starts[site] + width] = torch.arange(width) + starts[site[:-1] + "q"]
    return own


def learn_scores(
    model: SparseGPTForCausalLM,
    base: Base,
    batch_of: Callable[[int], TaskBatch],
    trials: Sequence[Trial],
    spec: PruneSpec,
    env: LoopEnvironment,
    stage: str,
) -> Tensor:
    """Scores (P, N), the higher the more needed, of one mask set per trial. `batch_of(step)` gives that step's pairs."""
    index, device = NodeIndex.of(model), model.device
    ties = tied(index).to(device)
    temperature = torch.tensor([[trial.temperature] for trial in trials], device=device)
    k_coef = torch.tensor([trial.k_coef for trial in trials], device=device)
    taus: list[Tensor] = [torch.nn.Parameter(_start(len(index), trial.seed, spec).to(device)) for trial in trials]
    adam = torch.optim.AdamW([_group(tau, trial) for tau, trial in zip(taus, trials, strict=True)])
    last_on = torch.zeros(len(trials), len(index), device=device)
    kept = torch.ones(len(index), device=device)
    model.requires_grad_(False)
    cut: list[Network] = []

    def network(number: int) -> Network:
        wanted = (last_on > number - max(1, PATIENCE * spec.steps)).any(0)[ties] * kept
        if number and wanted.sum() <= SHRINK * kept.sum():
            kept.copy_(wanted)
            cut.clear()
        if not cut:
            cut.append(Network(model, base, kept > 0))
        return cut[0]

    def step(number: int) -> dict[str, float]:
        batch, here = batch_of(number), network(number)
        on = _Heaviside.apply(torch.stack(taus), temperature)[:, ties] * here.kept
        margins = here.margins(here.prepare(batch), Masks(on))
        losses = functional.softplus(-batch.sign * margins).mean(-1)
        nodes = on.sum(-1)
        adam.zero_grad()
        (losses + k_coef * nodes).sum().backward()
        for tau, group, trial in zip(taus, adam.param_groups, trials, strict=True):
            torch.nn.utils.clip_grad_norm_([tau], 1.0)
            warm = min(1.0, (number + 1) / max(1.0, trial.warmup * spec.steps))
            group["lr"] = trial.lr * warm * (1 - number / spec.steps)
        adam.step()
        with torch.no_grad():
            for row, tau in zip(last_on, taus, strict=True):
                row[(tau.clamp_(-1, 1) > 0) & (kept > 0)] = number + 1
        return {"loss": losses.min().item(), "nodes": nodes.min().item(), "computed": float(len(here))}

    state = TrainState({}, [adam], {"last_on": last_on, "kept": kept} | {f"tau{i}": tau.data for i, tau in enumerate(taus)})
    run_loop(Loop(stage, spec.steps, step), state, env)
    tau = torch.stack(taus).detach()
    # Nodes still on rank by tau (at most 1), nodes that left by when (their step, made negative).
    return torch.where((tau > 0) & (kept > 0), tau, last_on - spec.steps - 1)[:, ties]


def _start(nodes: int, seed: int, spec: PruneSpec) -> Tensor:
    return spec.init_mean + spec.init_noise * torch.randn(nodes, generator=torch.Generator().manual_seed(seed))


def _group(tau: Tensor, trial: Trial) -> dict:
    return {"params": [tau], "lr": trial.lr, "betas": (0.9, trial.beta2), "weight_decay": trial.weight_decay}
