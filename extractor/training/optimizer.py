"""The optimiser of sparse training: Adam, projection to the L0 budget, weight decay. Bridge training uses it too. Paper: App. A.2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.spec.schema import OptimSpec, SparsitySpec
from extractor.training.projection import Projector, constraints
from extractor.training.schedule import sharkfin


class SparseOptimizer:
    """Adam on normalised gradients, then the projection, of the parameters that require a gradient. All sparse training uses it."""

    def __init__(self, model: SparseGPTForCausalLM, optim: OptimSpec, sparsity: SparsitySpec):
        self.model, self.optim, self.sparsity = model, optim, sparsity
        self.constrained = [each for each in constraints(model, sparsity) if each.tensor.requires_grad]
        self.projector = Projector(self.constrained, sparsity)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = {id(c.tensor) for c in self.constrained if c.tensor.dim() == 2}
        self.decayed = [p for p in self.parameters if id(p) in matrices]
        groups = [
            {"params": self.decayed, "weight_decay": optim.weight_decay if optim.decay_order == "adamw" else 0.0},
            {"params": [p for p in self.parameters if id(p) not in matrices], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)

    def step(self, index: int) -> dict[str, float]:
        """Apply the accumulated gradients, then project to the L0 of step `index`.

        Returns {gradient_rms, lr}: the RMS of the gradients of the L0-constrained tensors before scaling, and the learning rate. Where that
        RMS is not finite, the weights do not change.
        """
        optim = self.optim
        rms = scale_gradients([c.tensor for c in self.constrained], self.parameters, optim.gradient)
        lr = optim.lr * sharkfin(index, optim, self.sparsity)
        metrics = {"gradient_rms": rms.item(), "lr": lr}
        if not math.isfinite(metrics["gradient_rms"]):
            return metrics
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.projector.project(index, optim.steps)
        if optim.decay_order == "after_projection":
            with torch.no_grad():
                torch._foreach_mul_(list[Tensor](self.decayed), 1 - lr * optim.weight_decay)
        return metrics


def scale_gradients(measured: Sequence[Tensor], scaled: Sequence[Tensor], how: str = "normalise") -> Tensor:
    """Divide all gradients in `scaled` by the common RMS of those in `measured` ('normalise': always; 'clip': where it exceeds 1).

    Returns that RMS, a scalar. `measured` are the L0-constrained tensors: a bigram table holds most entries of a small model, and nearly
    all of its gradient is zero, so with it the RMS would depend on the vocabulary size.
    """
    grads = [p.grad for p in measured if p.grad is not None]
    total = torch.stack([g.square().sum() for g in grads]).sum()
    rms = (total / sum(g.numel() for g in grads)).sqrt()
    divisor = rms + 1e-5 if how == "normalise" else rms.clamp(min=1.0)
    torch._foreach_div_([p.grad for p in scaled if p.grad is not None], divisor)
    return rms
