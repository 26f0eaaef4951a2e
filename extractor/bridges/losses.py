"""The bridge loss and its terms (App. A.3).

With hd_i, hs_i the dense and sparse residuals before sublayer i (i = 0..2L), f_i and g_i the encoder and decoder there:

1. ce              cross-entropy of the sparse model
2. nmse_encoder    sum over sites of NMSE(f_i(hd_i), hs_i);   nmse_decoder   of NMSE(g_i(hs_i), hd_i)
3. kl_to_sparse    sum over sites of KL(yd || sparse tail from site i fed f_i(hd_i))
4. kl_to_dense     sum over sites of KL(yd || dense tail from site i fed g_i(hs_i))
5. kl_plain        KL(yd || ys)

The tails are estimated: each sequence of the batch crosses at one site, stratified over the sites, and joins the stream there, so that
every sublayer runs once per direction on a growing batch. Site by site the mean over its rows is unbiased for the mean over all rows.
`path_kls` computes them exactly, without gradient. Sums over sites enter the loss, as in the paper; what is reported are means over sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from extractor.bridges.tuner import BridgeSite
from extractor.dense.base import DenseSublayers, residuals
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.specs import BridgeSpec


@dataclass(frozen=True)
class Coupled:
    """A frozen dense model, a sparse model with as many sublayers, and the bridge sites between them."""

    dense: DenseSublayers
    sparse: SparseGPTForCausalLM
    sites: list[BridgeSite]


def nmse(value: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the target's variance; the target is detached. Both (rows, T, width)."""
    target = target.detach()
    variance = (target - target.mean((0, 1))).square().mean()
    return functional.mse_loss(value, target) / variance.clamp_min(1e-12)


class _FusedKL(torch.autograd.Function):
    """KL per token with its gradient, softmax(logits) - p, made in the same pass; the plain twin is functional.kl_div."""

    @staticmethod
    def forward(ctx, p: Tensor, negative_entropy: Tensor, logits: Tensor) -> Tensor:
        log_z = logits.logsumexp(-1)
        value = negative_entropy - torch.linalg.vecdot(p, logits) + log_z
        ctx.save_for_backward((logits - log_z[..., None]).exp_().sub_(p))
        return value

    @staticmethod
    def backward(ctx, grad: Tensor):
        (difference,) = ctx.saved_tensors
        return None, None, difference.mul_(grad[..., None])


@dataclass(frozen=True)
class Target:
    """The dense model's next-token distribution: p (rows, T, V) and sum p log p (rows, T)."""

    p: Tensor
    negative_entropy: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Target:
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        return cls(p, torch.linalg.vecdot(p, log_p))

    def pick(self, rows: Tensor, positions: Tensor) -> Target:
        return Target(self.p[rows][:, positions], self.negative_entropy[rows][:, positions])

    def kl(self, logits: Tensor) -> Tensor:
        """KL(target || softmax(logits)) in nats per token, (rows, T). Differentiable once."""
        return _FusedKL.apply(self.p, self.negative_entropy, logits)


@dataclass(frozen=True)
class Crossing:
    """Where the sequences of one step cross over: for each site its rows of the batch, and the positions whose KL is scored."""

    rows: list[Tensor]
    positions: Tensor

    @classmethod
    def draw(cls, spec: BridgeSpec, sites: int, generator: torch.Generator, device: torch.device) -> Crossing:
        """Random rows, as many as crossing_share says but at least one a site, dealt over the sites as evenly as can be; random positions.

        Needs batch >= sites.
        """
        batch, context = spec.optim.batch, spec.optim.context
        crossing = max(sites, round(spec.crossing_share * batch))
        rows = torch.randperm(batch, generator=generator)[:crossing].to(device).tensor_split(sites)
        count = max(1, round(spec.kl_share * context))
        positions = torch.randperm(context, generator=generator)[:count].sort().values.to(device)
        return cls(list(rows), positions)

    @property
    def order(self) -> Tensor:
        return torch.cat(self.rows)

    def sum_over_sites(self, per_token: Tensor) -> Tensor:
        """Sum over sites of the mean over a site's rows, from (rows in crossing order, positions)."""
        return torch.stack([part.mean() for part in per_token.split([len(rows) for rows in self.rows])]).sum()


def bridge_loss(pair: Coupled, ids: Tensor, crossing: Crossing, spec: BridgeSpec) -> tuple[Tensor, dict[str, float]]:
    """The whole loss (scalar, with gradient) and its terms by name, for ids (B, T)."""
    with torch.no_grad():
        dense_h = residuals(pair.dense, ids)
        target = Target.of(pair.dense.unembed(dense_h[-1]))
    crossed = target.pick(crossing.order, crossing.positions)
    sparse_h, sparse_logits, kl_to_sparse = _sparse_pass(pair, ids, dense_h, crossed, crossing)
    kl_to_dense = _dense_pass(pair, sparse_h, crossed, crossing)
    encoder = torch.stack([nmse(s.encode(d), h) for s, d, h in zip(pair.sites, dense_h, sparse_h, strict=True)])
    decoder = torch.stack([nmse(s.decode(h), d) for s, d, h in zip(pair.sites, dense_h, sparse_h, strict=True)])
    ce = functional.cross_entropy(sparse_logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    kl_plain = target.kl(sparse_logits).mean()
    loss = (
        ce
        + spec.nmse_coef * (encoder.sum() + decoder.sum())
        + spec.kl_to_sparse_coef * kl_to_sparse
        + spec.kl_to_dense_coef * kl_to_dense
        + spec.kl_plain_coef * kl_plain
    )
    sites = len(crossing.rows)
    terms = {
        "loss": loss,
        "ce": ce,
        "nmse_encoder": encoder.mean(),
        "nmse_decoder": decoder.mean(),
        "kl_to_sparse": kl_to_sparse / sites,
        "kl_to_dense": kl_to_dense / sites,
        "kl_plain": kl_plain,
    }
    return loss, {name: value.item() for name, value in terms.items()}


def _sparse_pass(
    pair: Coupled, ids: Tensor, dense_h: list[Tensor], crossed: Target, crossing: Crossing
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Own residuals, own logits, and the sum over sites of the KL of rows that crossed over from the dense model."""
    batch = len(ids)
    context = pair.sparse.context(ids.shape[1])
    stream = pair.sparse.embed(ids)
    own = []
    for index, (site, rows) in enumerate(zip(pair.sites, crossing.rows, strict=True)):
        if index:
            stream = pair.sparse.sublayer(index - 1, stream, context)
        own.append(stream[:batch])
        stream = torch.cat([stream, site.encode(dense_h[index][rows])])
    logits = pair.sparse.unembed(stream[:batch], ids)
    at = crossing.positions
    hybrid = pair.sparse.unembed(stream[batch:, at], ids[crossing.order][:, at])
    return own, logits, crossing.sum_over_sites(crossed.kl(hybrid))


def _dense_pass(pair: Coupled, sparse_h: list[Tensor], crossed: Target, crossing: Crossing) -> Tensor:
    """Sum over sites of the KL of rows that crossed over from the sparse model."""
    mask = pair.dense.mask(sparse_h[0])
    rows = crossing.rows
    stream = pair.sites[0].decode(sparse_h[0][rows[0]])
    for index in range(1, len(rows)):
        stream = pair.dense.sublayer(index - 1, stream, mask)
        stream = torch.cat([stream, pair.sites[index].decode(sparse_h[index][rows[index]])])
    return crossing.sum_over_sites(crossed.kl(pair.dense.unembed(stream[:, crossing.positions])))


@torch.no_grad()
def path_kls(pair: Coupled, ids: Tensor) -> dict[str, list[float]]:
    """Exact KL of every single-crossing path on ids (B, T), nats per token: 'to_sparse' and 'to_dense', one number a site."""
    dense_h = residuals(pair.dense, ids)
    target = Target.of(pair.dense.unembed(dense_h[-1]))
    context = pair.sparse.context(ids.shape[1])
    sparse_h = [pair.sparse.embed(ids)]
    for index in range(pair.sparse.n_sublayers):
        sparse_h.append(pair.sparse.sublayer(index, sparse_h[-1], context))
    found: dict[str, list[float]] = {"to_sparse": [], "to_dense": []}
    for start, site in enumerate(pair.sites):
        h = site.encode(dense_h[start])
        for index in range(start, pair.sparse.n_sublayers):
            h = pair.sparse.sublayer(index, h, context)
        found["to_sparse"].append(target.kl(pair.sparse.unembed(h, ids)).mean().item())
        h = site.decode(sparse_h[start])
        dense_mask = pair.dense.mask(h)
        for index in range(start, pair.dense.n_sublayers):
            h = pair.dense.sublayer(index, h, dense_mask)
        found["to_dense"].append(target.kl(pair.dense.unembed(h)).mean().item())
    return found
