"""L0 projection: after every optimiser step each constrained tensor keeps only its entries of largest magnitude.

Every matrix keeps the same fraction, exactly `round(fraction * entries)` entries (fewer only where fewer are nonzero). Among them are the
`min_per_neuron` largest of every neuron or attention channel, counted on its own side: rows of c_fc and c_attn, columns of the two output
projections. Of equal magnitudes the first in memory are kept, so the number is exact with ties too. `project` is the reference
implementation, one sort for each tensor; `Projector` computes the same bits without sorting. Paper: Sec. 2.1, App. A.2.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.spec.schema import SparsitySpec
from extractor.spec.sizes import MatrixSize, kept_entries
from extractor.training.schedule import annealed_fraction

_ROWS, _COLUMNS = 1, 0  # the axis along which a neuron's own weights lie, in (out, in) layout
_SIGNLESS = np.int32(0x7FFFFFFF)
_BEYOND = 0x7FFFFFFF  # above the bit patterns of all finite magnitudes
_SAMPLE = 1 << 14  # entries from which a threshold is estimated; smaller tensors are searched completely
_BLOCK = 1 << 17  # entries processed at once: with their copies they fit a core's cache
_NEAR = 1 << 15  # smallest half-width of a bracket around the last threshold, in bit patterns: 0.4 % of the threshold


@dataclass(frozen=True)
class Constraint:
    """One L0-constrained tensor: its final nonzero fraction and, for matrices with neurons, the axis of a neuron's weights."""

    name: str
    tensor: Tensor
    target: float
    neuron_axis: int | None

    def protected(self, min_per_neuron: int) -> int:
        """Number of entries that are kept as the largest of their neuron."""
        if self.neuron_axis is None:
            return 0
        length = self.tensor.shape[self.neuron_axis]
        return MatrixSize(self.tensor.numel() // length, length).protected(min_per_neuron)

    def kept(self, fraction: float, min_per_neuron: int) -> int:
        """Number of entries kept at a nonzero fraction; never fewer than the protected ones."""
        return kept_entries(self.tensor.numel(), fraction, self.protected(min_per_neuron))


def constraints(model: SparseGPTForCausalLM, sparsity: SparsitySpec) -> list[Constraint]:
    """All constrained tensors: matrices, embeddings, added positions, unembedding, biases; not norms, sinks and the bigram table."""
    embeddings = ("wte.weight", "lm_head.weight", *(["wpe.weight"] if model.config.added_positions else []))
    found = []
    for name, parameter in model.named_parameters():
        if name.endswith(("c_attn.weight", "c_fc.weight", "c_gate.weight")):
            found.append(Constraint(name, parameter, sparsity.weight_frac, _ROWS))
        elif name.endswith("c_proj.weight"):
            found.append(Constraint(name, parameter, sparsity.weight_frac, _COLUMNS))
        elif name.endswith(embeddings):
            found.append(Constraint(name, parameter, sparsity.embedding_frac, None))
        elif name.endswith(".bias"):
            found.append(Constraint(name, parameter, sparsity.bias_frac, None))
    return found


def nonzeros(model: SparseGPTForCausalLM, sparsity: SparsitySpec) -> dict[str, int]:
    """Number of nonzero entries of every constrained tensor, by name."""
    return {item.name: int(item.tensor.count_nonzero()) for item in constraints(model, sparsity)}


# The reference implementation.


@torch.no_grad()
def project(model_constraints: list[Constraint], step: int, steps: int, sparsity: SparsitySpec) -> None:
    """In every constrained tensor, zero the entries beyond the L0 of `step` (of `steps`), in place."""
    for item in model_constraints:
        fraction = annealed_fraction(step, steps, item.target, sparsity)
        kept = item.kept(fraction, sparsity.min_per_neuron)
        item.tensor.mul_(keep_mask(item.tensor, kept, item.neuron_axis, sparsity.min_per_neuron))


def keep_mask(weight: Tensor, kept: int, neuron_axis: int | None, min_per_neuron: int) -> Tensor:
    """True at exactly `kept` entries (or all): the largest of every neuron, then the largest of the tensor; of equal ones the first."""
    score = weight.detach().abs()
    if neuron_axis is not None and min_per_neuron:
        order = score.argsort(dim=neuron_axis, descending=True, stable=True)
        strongest = order.narrow(neuron_axis, 0, min(min_per_neuron, weight.shape[neuron_axis]))
        score = score.scatter(neuron_axis, strongest, torch.inf)
    order = score.flatten().argsort(descending=True, stable=True)
    return torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device).index_fill(0, order[:kept], True).view_as(weight)


# The fast paths. Magnitudes are ordered as their bit patterns without the sign bit, so thresholds are integers.


class Projector:
    """Replaces `project`: the same entries are kept, whatever earlier calls were.

    On a CPU the threshold of a tensor is searched near the last one, then near an estimate from a sample, then everywhere. Only entries
    inside the bracket are partitioned, and only neurons with too few entries above it are searched one by one. On a GPU all tensors of one
    shape are searched together, without a copy to the host.
    """

    def __init__(self, constrained: list[Constraint], sparsity: SparsitySpec):
        self.constrained, self.sparsity = constrained, sparsity
        self._brackets: dict[str, tuple[int, int]] = {}  # name -> last threshold and its change; only speed depends on it

    @torch.no_grad()
    def project(self, step: int, steps: int) -> None:
        """In every constrained tensor, zero the entries beyond the L0 of `step` (of `steps`), in place."""
        on_cpu: list[tuple[Constraint, int]] = []
        groups: dict[tuple, list[tuple[Constraint, int]]] = defaultdict(list)
        for item in self.constrained:
            kept = item.kept(annealed_fraction(step, steps, item.target, self.sparsity), self.sparsity.min_per_neuron)
            tensor = item.tensor
            if kept >= tensor.numel():
                continue
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                tensor.mul_(keep_mask(tensor, kept, item.neuron_axis, self.sparsity.min_per_neuron))
            elif tensor.device.type == "cpu":
                on_cpu.append((item, kept))
            else:
                groups[tensor.shape, item.neuron_axis, tensor.device].append((item, kept))
        for group in groups.values():
            tensors, counts = [item.tensor for item, _ in group], [kept for _, kept in group]
            project_together(tensors, counts, group[0][0].neuron_axis, self.sparsity.min_per_neuron)
        threads = min(torch.get_num_threads(), len(on_cpu))
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(self._project_on_cpu, *zip(*on_cpu, strict=True)))
        else:
            for item, kept in on_cpu:
                self._project_on_cpu(item, kept)

    def _project_on_cpu(self, item: Constraint, kept: int) -> None:
        search = _Search(item, kept, self.sparsity.min_per_neuron)
        last = self._brackets.get(item.name)
        for low, high in search.brackets(last):
            threshold = search.keep(low, high)
            if threshold is not None:
                break
        else:
            raise AssertionError("the widest bracket holds every threshold")
        self._brackets[item.name] = threshold, threshold - last[0] if last else 0


class _Search:
    """The projection of one tensor on the CPU: finds the threshold above which `free` entries lie that no neuron protects."""

    def __init__(self, item: Constraint, kept: int, min_per_neuron: int):
        self.weight = item.tensor.detach().numpy().reshape(-1)
        self.bits = self.weight.view(np.int32)
        self.shape, self.axis = tuple(item.tensor.shape), item.neuron_axis
        self.protected = item.protected(min_per_neuron)
        self.least = 0 if self.axis is None else min(min_per_neuron, self.shape[self.axis])
        self.kept, self.free = kept, kept - self.protected

    def brackets(self, last: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
        """Brackets [low, high) of bit patterns for the threshold, from the cheapest guess to one that always holds it."""
        if len(self.bits) > _SAMPLE and self.free:
            if last is not None:
                threshold, drift = last
                near = max(_NEAR, 2 * abs(drift))
                low = min(max(0, threshold + drift - near), _BEYOND - 1)
                yield low, min(max(low + 1, threshold + drift + near), _BEYOND)
            yield self._sampled()
        yield 0, _BEYOND

    def _sampled(self) -> tuple[int, int]:
        """A bracket of five standard deviations around a sample's quantiles: between `free` and `kept` entries lie above the threshold."""
        size = len(self.bits)
        sample = np.sort(self.bits[:: size // _SAMPLE | 1] & _SIGNLESS)[::-1]
        most, fewest = (len(sample) * count / size for count in (self.kept, self.free))
        last, first = (round(rank + sign * (5 * math.sqrt(rank) + 1)) for rank, sign in ((most, 1), (fewest, -1)))
        return int(sample[last]) if last < len(sample) else 0, min(int(sample[first]) + 1, _BEYOND) if first >= 0 else _BEYOND

    def keep(self, low: int, high: int) -> int | None:
        """Project the tensor and return the threshold, if it lies in [low, high); else return None and change nothing.

        Comments name the lines of `keep_mask` that a step replaces.
        """
        mask, inside = self._compare(low, high)  # entries above the bracket, which order[:kept] holds; candidates inside it
        above, weak = self._beyond_protection(mask)
        wanted = self.free - above
        if wanted < 1 and self.free:
            return None
        if len(weak):  # replaces score.scatter(neuron_axis, strongest, torch.inf), for the neurons whose entries are not all above
            mask[self._strongest(weak)] = True
            inside = inside[~mask[inside]]
        if len(inside) < wanted:
            return None
        threshold = high
        if wanted:  # replaces the rest of order[:kept]: the largest candidates, of equal ones the first
            values = self.bits[inside] & _SIGNLESS
            place = len(values) - wanted
            threshold = np.partition(values, place)[place]
            mask[inside[values > threshold]] = True
            ties = inside[values == threshold]
            mask[ties[: wanted - np.count_nonzero(values > threshold)]] = True
        np.multiply(self.weight, mask, out=self.weight)  # replaces tensor.mul_(keep_mask(...))
        return int(threshold)

    def _compare(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """A mask of the entries at or above `high`, and the indices of those in [low, high), ascending."""
        mask, inside = np.empty(len(self.bits), np.bool_), []
        for start in range(0, len(self.bits), _BLOCK):
            block = self.bits[start : start + _BLOCK] & _SIGNLESS
            np.greater_equal(block, np.int32(high), out=mask[start : start + _BLOCK])
            block -= np.int32(low)  # entries below `low` become the largest unsigned numbers
            inside.append(np.flatnonzero(block.view(np.uint32) < np.uint32(high - low)) + start)
        return mask, np.concatenate(inside)

    def _beyond_protection(self, mask: np.ndarray) -> tuple[int, np.ndarray]:
        """The number of entries of the mask that no neuron protects, and the neurons with fewer than `least` entries in the mask."""
        if not self.least:
            return int(np.count_nonzero(mask)), np.empty(0, np.intp)
        counts = _count(mask.reshape(self.shape), self.axis)
        return int(np.maximum(counts - self.least, 0).sum()), np.flatnonzero(counts < self.least)

    def _strongest(self, neurons: np.ndarray) -> np.ndarray:
        """Indices of the `least` largest entries of these neurons; of equal ones the first."""
        bits = self.bits.reshape(self.shape)
        rows = (bits[neurons] if self.axis == _ROWS else np.take(bits, neurons, axis=1).T.copy()) & _SIGNLESS
        length = rows.shape[1]
        weakest = np.partition(rows, length - self.least, axis=1)[:, length - self.least, None]
        chosen = rows >= weakest
        tied = np.flatnonzero(np.count_nonzero(chosen, axis=1) > self.least)
        if len(tied):
            chosen[tied] = False
            first = np.argsort(-rows[tied], axis=1, kind="stable")[:, : self.least]
            chosen[tied[:, None], first] = True
        neuron, entry = np.nonzero(chosen)
        neuron = neurons[neuron]
        return neuron * self.shape[1] + entry if self.axis == _ROWS else entry * self.shape[1] + neuron


def _count(mask: np.ndarray, axis: int | None) -> np.ndarray:
    """True entries along an axis of a matrix, as int64."""
    if axis == _ROWS:
        return np.bitwise_count(np.packbits(mask, axis=1)).sum(axis=1, dtype=np.int64)
    columns, step = mask.view(np.uint8), 255  # sums of up to 255 fit a byte, the fastest type to add
    return sum(columns[i : i + step].sum(axis=0, dtype=np.uint8).astype(np.int64) for i in range(0, len(columns), step))


def project_together(tensors: list[Tensor], kept: list[int], neuron_axis: int | None, min_per_neuron: int) -> None:
    """Project float32 tensors of one shape on one device, in place, without a copy to the host. The fast path of a GPU.

    It bisects all thresholds together, bit by bit: 31 counts over the tensors. Comments name the lines of `keep_mask` that a step replaces.
    """
    shape = tensors[0].shape if tensors[0].dim() == 2 else (1, tensors[0].numel())
    bits = torch.stack([t.detach().view(shape) for t in tensors]).view(torch.int32).bitwise_and_(_BEYOND)  # (G, rows, columns)
    protected = torch.zeros_like(bits, dtype=torch.bool)
    free = torch.tensor(kept, device=bits.device)
    if neuron_axis is not None:  # replaces score.scatter(neuron_axis, strongest, torch.inf)
        least = min(min_per_neuron, shape[neuron_axis])
        for _ in range(least):
            strongest = bits.argmax(dim=1 + neuron_axis, keepdim=True)
            protected.scatter_(1 + neuron_axis, strongest, True)
            bits.scatter_(1 + neuron_axis, strongest, -1)
        free = free - least * (protected[0].numel() // shape[neuron_axis])
    # Replaces score.flatten().argsort(...)[:kept]: the largest threshold that at least `free` entries reach, then ties in order.
    threshold = torch.zeros_like(free, dtype=torch.int32)
    for bit in range(30, -1, -1):
        trial = threshold | (1 << bit)
        reached = (bits >= trial[:, None, None]).sum(dim=(1, 2))
        threshold = torch.where(reached >= free, trial, threshold)
    above, tied = bits > threshold[:, None, None], bits == threshold[:, None, None]
    wanted = free - above.sum(dim=(1, 2))
    first = tied.flatten(1).cumsum(1, dtype=torch.int32).view_as(bits) <= wanted[:, None, None]
    for tensor, mask in zip(tensors, protected | above | (tied & first), strict=True):
        tensor.mul_(mask.view_as(tensor))
