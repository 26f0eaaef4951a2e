"""Rank nodes by integrated gradients (Sec. 3.1's control): what each node's mask is worth between all nodes off and all on.

score = sum over alpha of (1 - 2 alpha's midpoint grid) d(task loss) / d(mask), masks all at alpha: how much the loss would fall.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from extractor.objective import TaskBatch
from extractor.pruning.graph import NodeIndex
from extractor.pruning.layers import Base, Masks
from extractor.pruning.network import Network

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

POINTS = 8


def integrated_gradients(model: SparseGPTForCausalLM, base: Base, batch: TaskBatch) -> Tensor:
    """(N,): by how much turning each node on lowers the task loss, nats, to first order and averaged over the way from none to all."""
    index = NodeIndex.of(model)
    network = Network(model, base, torch.ones(len(index), dtype=torch.bool, device=model.device))
    prompts = network.prepare(batch)
    total = torch.zeros(len(index), device=model.device)
    for point in range(POINTS):
        masks = torch.full((1, len(index)), (point + 0.5) / POINTS, device=model.device, requires_grad=True)
        loss = functional.softplus(-batch.sign * network.margins(prompts, Masks(masks))).mean()
        total -= torch.autograd.grad(loss, masks)[0][0] / POINTS
    return total
