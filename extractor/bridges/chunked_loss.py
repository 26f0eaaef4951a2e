"""Losses over next-token distributions that hold the logits of one chunk of tokens at a time.

The reference implementation computes all logits at once:

    loss, terms = body(inputs)                             # in_chunks
    kl = functional.kl_div(logits.log_softmax(-1), log_p, reduction="none", log_target=True).sum(-1)          # Target.kl
    kl_weight * kl + loss_weight * functional.cross_entropy(logits, next_token, reduction="none")             # Target.kl_and_loss

Here the logits of a chunk are computed, scored and differentiated before those of the next chunk. What remains is the gradient of the
residuals and of the unembedding. Shapes: `extractor.bridges`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 24  # numbers in one set of logits: 64 MiB in fp32

Inputs = TypeVar("Inputs", bound=NamedTuple)


def in_chunks(
    body: Callable[[Inputs], tuple[Tensor, Tensor]], inputs: Inputs, parameters: Sequence[Tensor], size: int
) -> tuple[Tensor, Tensor]:
    """`body(inputs)`, computed as the sum of body over chunks of `size` tokens: a scalar loss, and terms (k,) without gradient.

    inputs      a NamedTuple of token-wise tensors (N, ...); body is a sum over these tokens
    parameters  all other tensors that body uses and that require grad
    """
    if not torch.is_grad_enabled():
        parts = [body(inputs._make(t[start : start + size] for t in inputs)) for start in range(0, len(inputs[0]), size)]
        return torch.stack([loss for loss, _ in parts]).sum(), torch.stack([terms for _, terms in parts]).sum(0)
    return _InChunks.apply(lambda tensors: body(inputs._make(tensors)), size, len(inputs), *inputs, *parameters)


class _InChunks(torch.autograd.Function):
    """Replaces `loss, terms = body(inputs)`. Forward also computes the gradients, which backward scales."""

    @staticmethod
    def forward(ctx: Any, body: Callable[[list[Tensor]], tuple[Tensor, Tensor]], size: int, count: int, *tensors: Tensor):
        inputs, parameters = tensors[:count], list(tensors[count:])
        wanted = [i for i, t in enumerate(inputs) if t.requires_grad]
        input_grads = {i: torch.empty_like(inputs[i]) for i in wanted}
        parameter_grads: list[Tensor] | None = None
        loss, terms = torch.zeros((), device=inputs[0].device), None
        for start in range(0, len(inputs[0]), size):
            chunk = slice(start, start + size)
            leaves = [t[chunk].detach().requires_grad_(i in input_grads) for i, t in enumerate(inputs)]
            with torch.enable_grad():
                chunk_loss, chunk_terms = body(leaves)  # replaces body(inputs), for the tokens of this chunk
            # Replaces loss.backward(): a token's gradient comes from its own chunk, a parameter's is a sum over chunks.
            grads = torch.autograd.grad(chunk_loss, [leaves[i] for i in wanted] + parameters)
            for i, grad in zip(wanted, grads, strict=False):
                input_grads[i][chunk] = grad
            rest = list(grads[len(wanted) :])
            if parameter_grads is None:
                parameter_grads = rest
            else:
                for total, grad in zip(parameter_grads, rest, strict=True):
                    total += grad
            loss = loss + chunk_loss.detach()
            terms = chunk_terms.detach() if terms is None else terms + chunk_terms.detach()
            del leaves, chunk_loss, chunk_terms, grads, rest  # else the gradients of two chunks exist at once
        ctx.save_for_backward(*input_grads.values(), *(parameter_grads or []))
        ctx.wanted, ctx.count = wanted, count
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _terms: Tensor | None):
        saved = ctx.saved_tensors
        input_grads: list[Tensor | None] = [None] * ctx.count
        for i, value in zip(ctx.wanted, saved, strict=False):
            input_grads[i] = value.mul_(grad)
        return None, None, None, *input_grads, *(value.mul_(grad) for value in saved[len(ctx.wanted) :])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """sum a b over the last axis in the inputs' own precision, which autocast would lower."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.linalg.vecdot(a, b)


class _SoftCrossEntropy(torch.autograd.Function):
    """Replaces -(q * logits.log_softmax(-1)).sum(-1) for q (..., V) that sums to `weight` (...). Also returns logsumexp(logits)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, weight: Tensor, logits: Tensor):
        log_z = logits.logsumexp(-1)
        value = weight * log_z - _dot(q, logits)  # the same sum: log_softmax = logits - log_z, and q sums to weight
        # Replaces autograd through log_softmax: the gradient is weight * softmax - q.
        ctx.save_for_backward((logits - log_z[..., None]).exp_().mul_(weight[..., None]).sub_(q))
        return value, log_z

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _log_z: Tensor | None):
        (difference,) = ctx.saved_tensors
        return None, None, difference.mul_(grad[..., None])


@dataclass(frozen=True)
class Target:
    """The dense model's next-token distribution: p (..., V) and sum p log p (...), fp32."""

    p: Tensor
    negative_entropy: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Target:
        """From logits (..., V)."""
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        return cls(p, _dot(p, log_p))

    def kl(self, logits: Tensor) -> Tensor:
        """KL(target || softmax(logits)) in nats per token, (...), from logits (..., V). Differentiable once, in the logits."""
        # Replaces kl_div: sum p log p - sum p log q, the second sum with weight 1.
        value, _ = _SoftCrossEntropy.apply(self.p, torch.ones_like(self.negative_entropy), logits.float())
        return self.negative_entropy + value

    def kl_and_loss(self, logits: Tensor, next_token: Tensor, kl_weight: float, loss_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """kl_weight * KL + loss_weight * cross-entropy of `next_token`, in nats per token; then KL and cross-entropy without gradient.

        logits are (..., V); next_token, loss_weight and all results (...).
        """
        logits = logits.float()
        # Replaces kl_weight * kl + loss_weight * cross_entropy: one soft target, kl_weight * p plus loss_weight at the next token.
        q = (kl_weight * self.p).scatter_add_(-1, next_token[..., None], loss_weight[..., None])
        value, log_z = _SoftCrossEntropy.apply(q, kl_weight + loss_weight, logits)
        with torch.no_grad():
            loss = log_z - logits.gather(-1, next_token[..., None]).squeeze(-1)
            kl = self.negative_entropy + log_z - _dot(self.p, logits)
        return value + kl_weight * self.negative_entropy, kl, loss
