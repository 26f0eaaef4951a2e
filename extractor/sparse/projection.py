"""L0 projection of weights: after every optimiser step each tensor keeps only its largest magnitudes.

Every matrix keeps the same fraction, exactly `round(fraction * entries)` entries (fewer only where fewer are nonzero), among them at least
`min_per_neuron` per neuron or attention channel, counted on its own side: rows of c_fc and c_attn, columns of the two output projections.
Paper: Sec. 2.1, App. A.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.sparse.schedule import annealed_fraction
from extractor.specs import SparsitySpec

_ROWS, _COLUMNS = 1, 0  # the axis along which a neuron's own weights lie, in (out, in) layout


@dataclass(frozen=True)
class Constraint:
    """One L0-constrained tensor: its final fraction and, for matrices with neurons, the axis of a neuron's weights."""

    name: str
    tensor: Tensor
    target: float
    neuron_axis: int | None

    def kept(self, fraction: float, min_per_neuron: int) -> int:
        """Entries kept at this fraction; never fewer than the protected ones."""
        protected = 0
        if self.neuron_axis is not None:
            length = self.tensor.shape[self.neuron_axis]
            protected = self.tensor.numel() // length * min(min_per_neuron, length)
        return max(1, protected, round(fraction * self.tensor.numel()))


def constraints(model: SparseGPTForCausalLM, sparsity: SparsitySpec) -> list[Constraint]:
    """All constrained tensors: matrices, embedding, unembedding, biases. Norms, sinks and the bigram table are free."""
    found = []
    for name, parameter in model.named_parameters():
        if name.endswith(("c_attn.weight", "c_fc.weight")):
            found.append(Constraint(name, parameter, sparsity.weight_frac, _ROWS))
        elif name.endswith("c_proj.weight"):
            found.append(Constraint(name, parameter, sparsity.weight_frac, _COLUMNS))
        elif name.endswith(("wte.weight", "lm_head.weight")):
            found.append(Constraint(name, parameter, sparsity.embedding_frac, None))
        elif name.endswith(".bias"):
            found.append(Constraint(name, parameter, sparsity.bias_frac, None))
    return found


@torch.no_grad()
def project(model_constraints: list[Constraint], step: int, steps: int, sparsity: SparsitySpec) -> None:
    """Zero everything beyond this step's L0 in every constrained tensor, in place."""
    for item in model_constraints:
        fraction = annealed_fraction(step, steps, item.target, sparsity)
        kept = item.kept(fraction, sparsity.min_per_neuron)
        item.tensor.mul_(keep_mask(item.tensor, kept, item.neuron_axis, sparsity.min_per_neuron))


def keep_mask(weight: Tensor, kept: int, neuron_axis: int | None, min_per_neuron: int) -> Tensor:
    """True at the `kept` largest magnitudes of a tensor, protected ones first. Ties at zero may add entries that are zero anyway."""
    magnitude = weight.detach().abs()
    if kept >= weight.numel():
        return torch.ones_like(magnitude, dtype=torch.bool)
    if neuron_axis is not None and min_per_neuron:
        count = min(min_per_neuron, weight.shape[neuron_axis])
        strongest = magnitude.topk(count, dim=neuron_axis).indices
        magnitude = magnitude.scatter(neuron_axis, strongest, torch.inf)
    return magnitude >= _kth_largest(magnitude, kept)


def _kth_largest(magnitude: Tensor, k: int) -> Tensor:
    flat = magnitude.flatten()
    if flat.device.type == "cpu" and flat.dtype == torch.float32:
        # As for AbsTopK: non-negative floats order like their bits, and numpy partitions integers fast.
        bits = flat.view(torch.int32).numpy()
        return torch.from_numpy(np.partition(bits, len(bits) - k)[len(bits) - k : len(bits) - k + 1]).view(torch.float32)
    return flat.topk(k).values[-1]


def nonzeros(model: SparseGPTForCausalLM, sparsity: SparsitySpec) -> dict[str, int]:
    """Nonzero entries of every constrained tensor, by name."""
    return {item.name: int(item.tensor.count_nonzero()) for item in constraints(model, sparsity)}
