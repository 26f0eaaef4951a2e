"""Losses over next-token distributions, without ever holding the logits of more than a chunk of tokens.

A chunk's logits are made, scored and differentiated before the next chunk's: what stays are gradients of the residuals and of the
unembedding's parameters. The reference implementation is the same body called on all tokens at once. N tokens, V vocabulary, S and D
widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 24  # numbers of one set of logits: 64 MiB in fp32

Body = Callable[..., tuple[Tensor, Tensor]]


def in_chunks(body: Body, streams: Sequence[Tensor], parameters: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Sums over chunks of `size` tokens of what `body(*chunks)` returns: a scalar loss and terms (k,), which get no gradient.

    streams     per-token inputs (N, ...); those that require grad get their gradient, once
    parameters  tensors that the body uses besides and that require grad
    """
    if not torch.is_grad_enabled():
        parts = [body(*(s[start : start + size] for s in streams)) for start in range(0, len(streams[0]), size)]
        return torch.stack([loss for loss, _ in parts]).sum(), torch.stack([terms for _, terms in parts]).sum(0)
    return _InChunks.apply(body, size, len(streams), *streams, *parameters)


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, body: Body, size: int, count: int, *tensors: Tensor):
        streams, parameters = tensors[:count], list(tensors[count:])
        wanted = [i for i, s in enumerate(streams) if s.requires_grad]
        of_streams = {i: torch.empty_like(streams[i]) for i in wanted}
        of_parameters: list[Tensor] | None = None
        loss, terms = torch.zeros((), device=streams[0].device), None
        for start in range(0, len(streams[0]), size):
            chunk = slice(start, start + size)
            leaves = [s[chunk].detach().requires_grad_(i in of_streams) for i, s in enumerate(streams)]
            with torch.enable_grad():
                here, told = body(*leaves)
            grads = torch.autograd.grad(here, [leaves[i] for i in wanted] + parameters)
            for i, grad in zip(wanted, grads, strict=False):
                of_streams[i][chunk] = grad
            rest = list(grads[len(wanted) :])
            if of_parameters is None:
                of_parameters = rest
            else:
                for total, grad in zip(of_parameters, rest, strict=True):
                    total += grad
            loss = loss + here.detach()
            terms = told.detach() if terms is None else terms + told.detach()
            del leaves, here, told, grads, rest  # or two chunks' gradients exist at once
        ctx.save_for_backward(*of_streams.values(), *(of_parameters or []))
        ctx.wanted, ctx.count = wanted, count
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    def backward(ctx, grad: Tensor, _terms: Tensor | None):
        saved = ctx.saved_tensors
        streams: list[Tensor | None] = [None] * ctx.count
        for i, value in zip(ctx.wanted, saved, strict=False):
            streams[i] = value.mul_(grad)
        return None, None, None, *streams, *(value.mul_(grad) for value in saved[len(ctx.wanted) :])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """sum a b over the last axis in the inputs' own precision, which autocast would lower."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.linalg.vecdot(a, b)


class _SoftCrossEntropy(torch.autograd.Function):
    """- sum q log softmax(logits) per token, with its gradient, weight * softmax - q, made in the same pass."""

    @staticmethod
    def forward(ctx, q: Tensor, weight: Tensor, logits: Tensor):
        log_z = logits.logsumexp(-1)
        value = weight * log_z - _dot(q, logits)
        ctx.save_for_backward((logits - log_z[..., None]).exp_().mul_(weight[..., None]).sub_(q))
        return value, log_z

    @staticmethod
    def backward(ctx, grad: Tensor, _log_z: Tensor | None):
        (difference,) = ctx.saved_tensors
        return None, None, difference.mul_(grad[..., None])


@dataclass(frozen=True)
class Target:
    """The dense model's next-token distribution: p (..., V) and sum p log p (...), fp32."""

    p: Tensor
    negative_entropy: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Target:
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        return cls(p, _dot(p, log_p))

    def kl(self, logits: Tensor) -> Tensor:
        """KL(target || softmax(logits)) in nats per token, (...). Differentiable once, in the logits."""
        value, _ = _SoftCrossEntropy.apply(self.p, torch.ones_like(self.negative_entropy), logits.float())
        return self.negative_entropy + value

    def kl_and_loss(self, logits: Tensor, following: Tensor, kl_weight: float, loss_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """kl_weight * KL + loss_weight * cross-entropy of the tokens `following`, all (...); then both by themselves, no gradient."""
        logits = logits.float()
        q = (kl_weight * self.p).scatter_add_(-1, following[..., None], loss_weight[..., None])
        value, log_z = _SoftCrossEntropy.apply(q, kl_weight + loss_weight, logits)
        with torch.no_grad():
            loss = log_z - logits.gather(-1, following[..., None]).squeeze(-1)
            kl = self.negative_entropy + log_z - _dot(self.p, logits)
        return value + kl_weight * self.negative_entropy, kl, loss
