"""The start of bridge training: normalised sites, and with init='dense' a sparse model that computes what the dense one does.

Normalisation: in GPT-2 a few channels and the first position are a hundred times larger than the rest. During training a site therefore
reads (h - mean) / scale, both per channel over training text (beside models with rotary positions without each text's first token);
afterwards `BridgeSite.fold_scaling` moves this into its linear maps.

init='dense': the dense model becomes a sparse GPT of width S >= D with the same logits (basis.py): norms folded into matrices, in the basis
in which the weights are sparsest. Further channels, heads and neurons read at random and write nothing. AbsTopK first keeps all
channels and is annealed with the weights. Encoders start as centring (for LayerNorms) and rotation, decoders as the inverse rotation. Ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extractor.bridges.as_sparse import copy_weights
from extractor.bridges.basis import centred, fold_norms, residual_vectors, rotated, sparsest_basis, with_sparse_heads
from extractor.bridges.pair import BridgedPair
from extractor.bridges.tuner import Scaling, site_parameters
from extractor.data.corpus import Corpus
from extractor.errors import SpecError
from extractor.models.dense.base import residuals
from extractor.sparse.modeling_sparse_gpt import Site
from extractor.spec.schema import SparsitySpec
from extractor.training.schedule import annealed_fraction

MEASURED_TOKENS = 16_384
SAMPLED_TOKENS = 4096  # of every site, at most
SAMPLED_NUMBERS = 1 << 25  # of all sites together, at most: 128 MiB
MEASURED_ROWS = 8  # sequences in one forward pass
SMALLEST_SCALE = 1e-2  # of a site's median scale: channels that hardly vary are not amplified
_PURPOSE = 1 << 41  # a step number beyond every training, which draws the text for measuring


@torch.no_grad()
def normalise_sites(pair: BridgedPair, corpus: Corpus, context: int, seed: int) -> list[Tensor]:
    """Set every site's mean and scale (standard deviation) of channels over training text; returns samples hd_i (N, D) for every site."""
    device = pair.sparse.device
    rows = max(MEASURED_ROWS, MEASURED_TOKENS // context)
    sampled = min(SAMPLED_TOKENS, max(1, SAMPLED_NUMBERS // (len(pair.sites) * pair.dense.width)))
    sums = [torch.zeros(2, pair.dense.width, dtype=torch.float64, device=device) for _ in pair.sites]
    samples: list[list[Tensor]] = [[] for _ in pair.sites]
    for ids in corpus.batch(seed, _PURPOSE, rows, context).split(MEASURED_ROWS):
        for total, sample, h in zip(sums, samples, pair.later_tokens(residuals(pair.dense, ids.to(device))), strict=True):
            if (missing := sampled - sum(map(len, sample))) > 0:
                sample.append(h.flatten(0, 1)[:missing].clone())  # else all of h stays in memory
            h = h.double()
            total += torch.stack([h.sum((0, 1)), h.square().sum((0, 1))])
    for site, total in zip(pair.sites, sums, strict=True):
        mean, square = total / (rows * (context if pair.dense.has_positions else max(1, context - 1)))
        scale = (square - mean.square()).clamp_min(0).sqrt()
        scale = scale.clamp_min(SMALLEST_SCALE * float(scale.median())).clamp_min(1e-12)
        site.scaling[site.active_adapters[0]] = Scaling(mean.float(), scale.float())
    return [torch.cat(sample) for sample in samples]


@torch.no_grad()
def start_from_dense(pair: BridgedPair, samples: list[Tensor]) -> None:
    """Make the sparse model and the bridges compute what the dense model does. Raises SpecError where their shapes do not allow it.

    `jobs.cost.bridging.start_obstacle` tells from config.json alone whether they do.

    samples   residuals hd_i (N, D) of every site; the basis is chosen such that they are sparse too
    """
    config = pair.sparse.config
    weights = pair.dense.weights(config.n_ctx)
    if weights is None:
        raise SpecError(f"{pair.name} has blocks that a sparse GPT cannot start from; use --init scratch")
    neurons = len(weights.blocks[0].fc)
    if config.d_mlp < neurons:
        raise SpecError(f"--init dense needs {neurons} neurons a layer, the spec has {config.d_mlp}; set bridge.model.mlp_ratio higher")
    plain = fold_norms(weights)
    turn = sparsest_basis(residual_vectors(plain, samples))
    reads = [(centred(h, 1) if weights.centred else h) @ turn.T for h in samples[: -1 : len(samples[:-1]) // len(weights.blocks)]]
    copy_weights(pair.sparse, with_sparse_heads(rotated(plain, turn), reads))
    width = len(turn)
    into = torch.zeros(config.d_model, width, device=turn.device)
    into[:width] = turn
    for site in pair.sites:
        site.set_maps(centred(into, 1) if weights.centred else into, into.T)


def freeze_dense_layers(pair: BridgedPair) -> None:
    """Leave only the sparse layers, and the bridges of the sites that passes cross at, to be trained; the others are the dense model's."""
    pair.sparse.requires_grad_(False)
    for layer, block in enumerate(pair.sparse.blocks):
        block.requires_grad_(pair.sparse.config.is_sparse(layer))
    for index, site in enumerate(pair.sites):
        for parameter in site_parameters([site]):
            parameter.requires_grad_(index in pair.crossed)


class ActivationAnnealing:
    """Anneals k of every AbsTopK of the sparse model and the encoders, from all channels to its final value, as the L0 of the weights."""

    def __init__(self, pair: BridgedPair, sparsity: SparsitySpec):
        self.pair, self.sparsity = pair, sparsity
        self.sites = [(m, m.k) for m in pair.sparse.modules() if isinstance(m, Site)]
        self.encoders = [(s, s.kept[s.active_adapters[0]]) for s in pair.sites]

    def set(self, step: int, steps: int) -> None:
        """Set every k for step `step` of `steps`."""
        for module, k in self.sites:
            module.k = self._kept(k, module.width, step, steps)
        for site, k in self.encoders:
            site.kept[site.active_adapters[0]] = self._kept(k, self.pair.sparse.config.d_model, step, steps)

    def finish(self) -> None:
        """Set every k to its final value."""
        self.set(1, 1)

    def _kept(self, k: int, width: int, step: int, steps: int) -> int:
        return max(k, round(width * annealed_fraction(step, steps, k / width, self.sparsity)))
