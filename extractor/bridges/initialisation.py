"""Where bridge training starts: normalised sites, and (`init='dense'`) a sparse model that is the dense one.

Dense residuals have any scale, and in GPT-2 a few channels and the first position are a hundred times larger than the rest. So while
bridges are trained, a site sees (h - mean) / scale, per channel over training text; afterwards this is folded into its linear maps.

A GPT-2 becomes a sparse GPT of width S >= D exactly (see `basis`): without norms' gains and biases, and turned into the basis in which its
weights are sparsest. Channels, heads and neurons beyond the dense model's read at random and write nothing. AbsTopK keeps all channels at
first and is annealed with the weights. Encoders start as centring and turning, decoders as their inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extractor.bridges.as_sparse import copy_weights
from extractor.bridges.basis import centred, fold_norms, residual_vectors, rotated, sparsest_basis, with_sparse_heads
from extractor.bridges.pair import BridgedPair
from extractor.bridges.tuner import Scaling
from extractor.data.corpus import Corpus
from extractor.errors import SpecError
from extractor.models.dense.base import residuals
from extractor.sparse.modeling_sparse_gpt import Site
from extractor.spec.schema import SparsitySpec
from extractor.training.schedule import annealed_fraction

MEASURED_TOKENS = 16_384
SAMPLED_TOKENS = 4096
MEASURED_ROWS = 8  # sequences a pass
SMALLEST_SCALE = 1e-2  # of a site's median scale: a channel that hardly varies is not blown up
_PURPOSE = 1 << 41  # a step number that no training reaches: the text for measuring


@torch.no_grad()
def normalise_sites(pair: BridgedPair, corpus: Corpus, context: int, seed: int) -> list[Tensor]:
    """Give every site the mean and the standard deviation of its channels over training text; returns some residuals of each, (N, D)."""
    device = pair.sparse.device
    rows = max(MEASURED_ROWS, MEASURED_TOKENS // context)
    sums = [torch.zeros(2, pair.dense.width, dtype=torch.float64, device=device) for _ in pair.sites]
    samples: list[list[Tensor]] = [[] for _ in pair.sites]
    for ids in corpus.batch(seed, _PURPOSE, rows, context).split(MEASURED_ROWS):
        for total, sample, h in zip(sums, samples, residuals(pair.dense, ids.to(device)), strict=True):
            if sum(map(len, sample)) < SAMPLED_TOKENS:
                sample.append(h.flatten(0, 1))
            h = h.double()
            total += torch.stack([h.sum((0, 1)), h.square().sum((0, 1))])
    for site, total in zip(pair.sites, sums, strict=True):
        mean, square = total / (rows * context)
        scale = (square - mean.square()).clamp_min(0).sqrt()
        scale = scale.clamp_min(SMALLEST_SCALE * float(scale.median())).clamp_min(1e-12)
        site.scaling[site.active_adapters[0]] = Scaling(mean.float(), scale.float())
    return [torch.cat(sample) for sample in samples]


@torch.no_grad()
def start_from_dense(pair: BridgedPair, samples: list[Tensor]) -> None:
    """Make the sparse model and the bridges compute what the dense model does. Raises SpecError where that cannot be.

    samples   some residuals of every site, (N, D) each: the axes are chosen such that they are sparse too
    """
    weights, config = pair.dense.weights(), pair.sparse.config
    if weights is None:
        raise SpecError(f"{pair.name} has blocks that a sparse GPT cannot start from; use --init scratch")
    neurons = len(weights.blocks[0].fc)
    if config.d_mlp < neurons:
        raise SpecError(f"--init dense needs {neurons} neurons a layer, the spec has {config.d_mlp}; set bridge.model.mlp_ratio higher")
    plain = fold_norms(weights)
    turn = sparsest_basis(residual_vectors(plain, samples))
    reads = [centred(h, 1) @ turn.T for h in samples[:-1:2]]
    copy_weights(pair.sparse, with_sparse_heads(rotated(plain, turn), reads), weights.unembedding @ weights.final_norm.bias)
    width = len(turn)
    into = torch.zeros(config.d_model, width, device=turn.device)
    into[:width] = turn
    for site in pair.sites:
        site.set_maps(centred(into, 1), into.T)


class ActivationAnnealing:
    """AbsTopK of the sparse model and of the encoders, from all channels to their numbers, as the weights go."""

    def __init__(self, pair: BridgedPair, sparsity: SparsitySpec):
        self.pair, self.sparsity = pair, sparsity
        self.sites = [(m, m.k) for m in pair.sparse.modules() if isinstance(m, Site)]
        self.encoders = [(s, s.kept[s.active_adapters[0]]) for s in pair.sites]

    def set(self, step: int, steps: int) -> None:
        """Keep the channels of step `step`."""
        for module, k in self.sites:
            module.k = self._kept(k, module.width, step, steps)
        for site, k in self.encoders:
            site.kept[site.active_adapters[0]] = self._kept(k, self.pair.sparse.config.d_model, step, steps)

    def finish(self) -> None:
        """Keep the final numbers of channels."""
        self.set(1, 1)

    def _kept(self, k: int, width: int, step: int, steps: int) -> int:
        return max(k, round(width * annealed_fraction(step, steps, k / width, self.sparsity)))
