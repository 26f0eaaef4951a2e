"""The weight-sparse GPT as an ordinary transformers model. Travels with saved models: imports torch, numpy and transformers only.

Shapes: B sequences, T tokens, S model width, M neurons, H heads, C channels per head, V vocabulary.

GPT-2's pre-norm blocks with exact GELU and biases, except: RMSNorm, untied unembedding, no positional embedding, optional attention
sinks, an optional bigram table, and AbsTopK at eight sites of every block, each a module of its own so that hooks can read and edit it:
`attn.act_in`, `attn.q`, `attn.k`, `attn.v`, `attn.resid_delta`, `mlp.act_in`, `mlp.post_act`, `mlp.resid_delta`.
Paper: Sec. 2.1, App. A.1.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from .abs_topk import abs_topk
from .configuration_sparse_gpt import SparseGPTConfig
from .sink_attention import attend


class Site(nn.Module):
    """A place whose channels are nodes: AbsTopK over the width. Forward hooks on it see and replace node values."""

    def __init__(self, width: int, frac: float):
        super().__init__()
        self.width = width
        self.k = max(1, round(frac * width))

    def forward(self, x: Tensor) -> Tensor:
        return abs_topk(x, self.k)


class RMSNorm(nn.Module):
    """x / RMS(x) times a gain: zero stays zero."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with nodes at its read, q, k, v and its write."""

    def __init__(self, config: SparseGPTConfig):
        super().__init__()
        width, frac = config.d_model, config.activation_frac
        self.d_head = config.d_head
        self.c_attn = nn.Linear(width, 3 * width)  # rows q | k | v
        self.c_proj = nn.Linear(width, width)
        self.sink_logit = nn.Parameter(torch.zeros(config.n_head)) if config.sinks else None
        self.act_in, self.q, self.k, self.v, self.resid_delta = (Site(width, frac) for _ in range(5))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.c_attn(self.act_in(x)).split(width, dim=-1)
        q, k, v = (
            site(t).view(batch, length, -1, self.d_head).transpose(1, 2)  # (B, H, T, C)
            for site, t in ((self.q, q), (self.k, k), (self.v, v))
        )
        mixed = attend(q, k, v, mask, self.sink_logit).transpose(1, 2).reshape(batch, length, width)
        return self.resid_delta(self.c_proj(mixed))


class MLP(nn.Module):
    """Two linear layers around an exact GELU, with nodes at its read, its neurons and its write."""

    def __init__(self, config: SparseGPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.d_model, config.d_mlp)
        self.c_proj = nn.Linear(config.d_mlp, config.d_model)
        self.act_in, self.resid_delta = (Site(config.d_model, config.activation_frac) for _ in range(2))
        self.post_act = Site(config.d_mlp, config.activation_frac)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.post_act(functional.gelu(self.c_fc(self.act_in(x))))
        return self.resid_delta(self.c_proj(hidden))


class Block(nn.Module):
    def __init__(self, config: SparseGPTConfig):
        super().__init__()
        self.ln_1 = RMSNorm(config.d_model, config.rms_norm_eps)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config.d_model, config.rms_norm_eps)
        self.mlp = MLP(config)


class Transformer(nn.Module):
    def __init__(self, config: SparseGPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)


class SparseGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids (B, T) in, logits (B, T, V) out; with labels also the mean next-token loss in nats."""

    config_class = SparseGPTConfig
    base_model_prefix = "transformer"
    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: SparseGPTConfig):
        super().__init__(config)
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.bigram_table = nn.Parameter(torch.zeros(config.vocab_size, config.vocab_size)) if config.bigram == "dense" else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices normal with std 1/sqrt(inputs), embeddings with config.initializer_range, the rest as in the constructor.

        Embeddings of std 1 hardly move in a short training: they must be small beside what the learning rate adds in a few steps.
        """
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=1 / math.sqrt(module.weight.shape[1]))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Attention) and module.sink_logit is not None:
            init.zeros_(module.sink_logit)
        elif isinstance(module, SparseGPTForCausalLM) and module.bigram_table is not None:
            init.uniform_(module.bigram_table, 0.0, 0.02)

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.transformer.h if isinstance(block, Block)]

    # The model as a list of sublayers: 2i is block i's attention, 2i + 1 its MLP.

    @property
    def n_sublayers(self) -> int:
        return 2 * self.config.n_layer

    def embed(self, ids: Tensor) -> Tensor:
        """Residual before the first sublayer, (B, T, S)."""
        return self.transformer.wte(ids)

    def causal_mask(self, length: int, attention_mask: Tensor | None = None) -> Tensor:
        """Additive mask, (T, T) or with padding (B, 1, T, T)."""
        device, dtype = self.lm_head.weight.device, self.lm_head.weight.dtype
        low = torch.finfo(dtype).min
        mask = torch.full((length, length), low, device=device, dtype=dtype).triu(1)
        if attention_mask is None or bool(attention_mask.all()):
            return mask
        padding = (1 - attention_mask.to(dtype)) * low
        # Clamped, or a masked place that is also padding would overflow to -inf and a fully masked row become NaN.
        return (mask + padding[:, None, None, :]).clamp(min=low)

    def sublayer(self, index: int, h: Tensor, mask: Tensor) -> Tensor:
        """Residual after sublayer `index`, given the residual before it, (B, T, S)."""
        block = self.blocks[index // 2]
        if index % 2 == 0:
            return h + block.attn(block.ln_1(h), mask)
        return h + block.mlp(block.ln_2(h))

    def unembed(self, h: Tensor, ids: Tensor) -> Tensor:
        """Logits (..., V) from final residuals (..., S) and the token ids at the same places (...)."""
        logits = self.lm_head(self.transformer.ln_f(h))
        if self.bigram_table is not None:
            logits = logits + functional.embedding(ids, self.bigram_table)
        return logits

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutput:
        h = self.embed(input_ids)
        mask = self.causal_mask(input_ids.shape[1], attention_mask)
        for index in range(self.n_sublayers):
            h = self.sublayer(index, h, mask)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.unembed(h[:, kept], input_ids[:, kept])
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, attention_mask: Any = None, **kwargs: Any) -> dict:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}
