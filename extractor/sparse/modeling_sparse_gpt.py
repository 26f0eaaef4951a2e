"""The weight-sparse GPT as an ordinary transformers model. Travels with saved models: imports torch, numpy and transformers only.

Shapes: B sequences, T tokens, S model width, P position channels, M neurons, H heads, C channels per head, V vocabulary.

GPT-2's pre-norm blocks with biases, except: RMSNorm, untied unembedding, no positional embedding or a few position channels that every
read sees beside the residual, optional attention sinks, optional bigram logits, and AbsTopK at eight sites of every block, each a module
of its own so that hooks can read and edit it: `attn.act_in`, `attn.q`, `attn.k`, `attn.v`, `attn.resid_delta`, `mlp.act_in`,
`mlp.post_act`, `mlp.resid_delta`. Paper: Sec. 2.1, App. A.1.

For what it may be made from (ours): rotary positions, norms of queries and keys, gated MLPs with the sites `mlp.gate` and `mlp.up`, whose
product is `mlp.post_act`, and blocks whose attention and MLP read the same residual. Queries, keys and their sites are values before the
norm and the turn. Every head has keys and values of its own: a model with grouped queries becomes one whose groups are written out.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .abs_topk import abs_topk
from .bigram import BIGRAMS, Counts
from .configuration_sparse_gpt import SparseGPTConfig
from .observing import Observable
from .sink_attention import attend, causal_mask


@dataclass(frozen=True)
class Context:
    """What a sublayer needs besides the residual.

    mask        additive, (T, keys) or with padding (B, 1, T, keys); None: causal, no padding and nothing cached
    positions   the tokens' rows of the position table, (T, P) or (B, T, P), for models that have one
    cache       keys and values of earlier tokens, which attention adds to; None: none are kept
    angles      by which pairs of channels turn at the tokens, (T, pairs) or (B, 1, T, pairs), for models with rotary positions
    """

    mask: Tensor | None = None
    positions: Tensor | None = None
    cache: Cache | None = None
    angles: Tensor | None = None


class Site(nn.Module):
    """A place whose channels are nodes: AbsTopK over the width. Forward hooks on it see and replace node values."""

    def __init__(self, width: int, k: int):
        super().__init__()
        self.width, self.k = width, k

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

    def __init__(self, config: SparseGPTConfig, layer: int = 0):
        super().__init__()
        width, read, mixed = config.d_model, config.d_model + config.d_pos_emb, config.n_head * config.d_head
        self.d_head, self.layer, self.turn_scale = config.d_head, layer, config.rotary_scale
        self.c_attn = nn.Linear(read, 3 * mixed)  # rows q | k | v
        self.c_proj = nn.Linear(mixed, width)
        self.q_norm, self.k_norm = (RMSNorm(config.d_head, config.rms_norm_eps) if config.query_key_norm else None for _ in range(2))
        self.sink_logit = nn.Parameter(torch.zeros(config.n_head)) if config.sinks else None
        self.act_in = Site(read, config.kept("attn.act_in", read))
        self.q, self.k, self.v = (Site(mixed, config.kept(f"attn.{name}", mixed)) for name in "qkv")
        self.resid_delta = Site(width, config.kept("attn.resid_delta", width))
        self.pattern, self.z = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, context: Context) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.c_attn(self.act_in(x)).chunk(3, dim=-1)
        q, k, v = (
            site(t).view(batch, length, -1, self.d_head).transpose(1, 2)  # (B, H, T, C)
            for site, t in ((self.q, q), (self.k, k), (self.v, v))
        )
        q, k = self.turned(q, self.q_norm, context.angles), self.turned(k, self.k_norm, context.angles)
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.layer)
        if self.pattern._forward_hooks:
            mask = causal_mask(length, q.dtype, q.device) if context.mask is None else context.mask
            mixed = self.pattern(attention_pattern(q, k, mask, self.sink_logit)) @ v
        else:
            mixed = attend(q, k, v, context.mask, self.sink_logit)
        return self.resid_delta(self.c_proj(self.z(mixed.transpose(1, 2).flatten(2))))

    def turned(self, x: Tensor, norm: RMSNorm | None, angles: Tensor | None) -> Tensor:
        """Queries or keys (..., T, C) as they meet: normed where the model does that, turned by the angles (..., T, pairs)."""
        if norm is not None:
            x = norm(x)
        return x if angles is None else turn(x, angles, self.turn_scale)


def turn(x: Tensor, angles: Tensor, scale: float) -> Tensor:
    """The channels c and c + pairs of x (..., C) turned together by angles (..., pairs); channels beyond twice the pairs stay."""
    pairs = angles.shape[-1]
    cos, sin = (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def attention_pattern(q: Tensor, k: Tensor, mask: Tensor, sink_logit: Tensor | None) -> Tensor:
    """The weights (B, H, T, keys) with which `attend` mixes values."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
    if sink_logit is not None:
        scores = torch.cat([scores, sink_logit.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(dim=-1)[..., : k.shape[-2]]


class MLP(nn.Module):
    """Two linear layers around an activation, with nodes at its read, its neurons and its write; with gates a third one, `c_gate`."""

    def __init__(self, config: SparseGPTConfig):
        super().__init__()
        width, read = config.d_model, config.d_model + config.d_pos_emb
        self.c_fc = nn.Linear(read, config.d_mlp)
        self.c_gate = nn.Linear(read, config.d_mlp) if config.gated else None
        self.c_proj = nn.Linear(config.d_mlp, width)
        plain = {"relu": nn.ReLU(), "silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh")}
        self.activation = plain[config.activation]
        if config.gated:
            self.gate, self.up = (Site(config.d_mlp, config.kept(f"mlp.{name}", config.d_mlp)) for name in ("gate", "up"))
        self.act_in = Site(read, config.kept("mlp.act_in", read))
        self.resid_delta = Site(width, config.kept("mlp.resid_delta", width))
        self.post_act = Site(config.d_mlp, config.kept("mlp.post_act", config.d_mlp))

    @property
    def readers(self) -> dict[str, nn.Linear]:
        """The layers that read, by the site that follows: post_act, or with gates gate and up."""
        return {"post_act": self.c_fc} if self.c_gate is None else {"gate": self.c_gate, "up": self.c_fc}

    def activated(self, read: dict[str, Tensor]) -> Tensor:
        """Neurons before AbsTopK, of what follows the `readers`: their outputs, with gates the values of gate and up."""
        return self.activation(read["post_act"]) if self.c_gate is None else self.activation(read["gate"]) * read["up"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_in(x)
        read = {name: layer(x) for name, layer in self.readers.items()}
        if self.c_gate is not None:
            read = {"gate": self.gate(read["gate"]), "up": self.up(read["up"])}
        return self.resid_delta(self.c_proj(self.post_act(self.activated(read))))


class Block(nn.Module):
    def __init__(self, config: SparseGPTConfig, layer: int):
        super().__init__()
        width, eps = config.d_model, config.rms_norm_eps
        self.ln_1 = RMSNorm(width, eps)
        self.attn = Attention(config, layer)
        self.ln_2 = RMSNorm(width, eps)
        self.mlp = MLP(config)
        self.ln_p1, self.ln_p2 = (RMSNorm(config.d_pos_emb, eps) if config.d_pos_emb else None for _ in range(2))
        self.resid_pre, self.resid_mid, self.resid_post = nn.Identity(), nn.Identity(), nn.Identity()
        if not config.is_sparse(layer):
            for site in (module for module in self.modules() if isinstance(module, Site)):
                site.k = site.width

    def attention(self, h: Tensor, context: Context) -> Tensor:
        h = self.resid_pre(h)
        return h + self.attn(position_read(self.ln_1(h), self.ln_p1, context), context)

    def neurons(self, h: Tensor, context: Context) -> Tensor:
        h = self.resid_mid(h)
        return self.resid_post(h + self.mlp(position_read(self.ln_2(h), self.ln_p2, context)))

    def parallel(self, h: Tensor, context: Context) -> Tensor:
        """Attention and MLP, which both read the residual before the block."""
        h = self.resid_pre(h)
        attended = self.attn(position_read(self.ln_1(h), self.ln_p1, context), context)
        return self.resid_post(h + attended + self.mlp(position_read(self.ln_2(h), self.ln_p2, context)))


def position_read(x: Tensor, position_norm: RMSNorm | None, context: Context) -> Tensor:
    """A normed residual (B, T, S), with position channels behind it (B, T, S + P) where the model has some."""
    if position_norm is None:
        return x
    assert context.positions is not None
    return torch.cat([x, position_norm(context.positions).expand(*x.shape[:-1], -1)], dim=-1)


class Transformer(nn.Module):
    def __init__(self, config: SparseGPTConfig):
        super().__init__()
        positions = config.d_model if config.added_positions else config.d_pos_emb
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.wpe = nn.Embedding(config.n_ctx, positions) if positions else None


class SparseGPTForCausalLM(Observable, PreTrainedModel, GenerationMixin):
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
        self.bigram = BIGRAMS[config.bigram]
        self.bigram.install(self, config)
        self.logits_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.logits_bias else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices normal with std 1/sqrt(inputs), embeddings with config.initializer_range, positions waves, the rest as constructed.

        Embeddings of std 1 hardly move in a short training: they must be small beside what the learning rate adds in a few steps.
        """
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=1 / math.sqrt(module.weight.shape[1]))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif module is self.transformer.wpe and self.config.d_pos_emb:
            init.copy_(module.weight, waves(*module.weight.shape))
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Attention) and module.sink_logit is not None:
            init.zeros_(module.sink_logit)
        elif module is self:
            self.bigram.initialise(self)
            if self.logits_bias is not None:
                init.zeros_(self.logits_bias)

    @torch.no_grad()
    def set_bigram(self, counts) -> None:
        """Start the bigram at smoothed log frequencies of next tokens.

        counts: how often token j followed token i, a dense (V, V) array or a triple of arrays (i, j, count). Raises ValueError for others.
        """
        if self.config.bigram != "none":
            self.bigram.fill(self, Counts.of(counts, self.config.vocab_size))

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        self.transformer.wte = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """As in transformers, for models without logits by token. Raises ValueError for the others."""
        if new_num_tokens not in (None, self.config.vocab_size) and (self.config.bigram != "none" or self.logits_bias is not None):
            has = f"a {self.config.bigram} bigram" if self.config.bigram != "none" else "a logits bias"
            raise ValueError(f"the vocabulary of {self.config.vocab_size} cannot become {new_num_tokens}: the model has {has} over it")
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.transformer.h if isinstance(block, Block)]

    # The model as a list of sublayers: 2i is block i's attention, 2i + 1 its MLP; a parallel block is one sublayer.

    @property
    def n_sublayers(self) -> int:
        return self.config.n_layer * (1 if self.config.parallel else 2)

    def embed(self, ids: Tensor, context: Context | None = None) -> Tensor:
        """Residual before the first sublayer, (B, T, S)."""
        h = self.transformer.wte(ids)
        if self.config.added_positions:
            h = h + (context or self.context(ids.shape[1])).positions
        return h

    def context(
        self, length: int, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, cache: Cache | None = None
    ) -> Context:
        """What sublayers need for `length` new tokens. Causal; `attention_mask` (B, cached + T) is 0 at padding, on either side.

        Positions count from the first token that is not padding. Raises ValueError for masks of another shape and beyond n_ctx positions.
        """
        past = 0 if cache is None else int(cache.get_seq_length())
        keys = past + length if cache is None else int(cache.get_mask_sizes(length, 0)[0])
        if attention_mask is not None and (attention_mask.dim() != 2 or attention_mask.shape[1] != past + length):
            raise ValueError(f"attention_mask must be (batch, {past + length}), not {tuple(attention_mask.shape)}")
        mask, at = self._mask(past, length, keys, attention_mask), self._places(past, length, attention_mask, position_ids)
        return Context(mask, self._positions(at), cache, self.angles(at))

    def angles(self, places: Tensor) -> Tensor | None:
        """The angles (T, pairs), or (B, 1, T, pairs), at the places (T,) or (B, T) of tokens; None without rotary positions."""
        if self.config.rotary is None:
            return None
        per_token = torch.tensor(self.config.rotary, device=places.device, dtype=torch.float32)
        found = places[..., None].float() * per_token
        return found if found.dim() == 2 else found[:, None]

    def _mask(self, past: int, length: int, keys: int, attention_mask: Tensor | None) -> Tensor | None:
        padded = attention_mask is not None and not bool(attention_mask.all())
        if not padded and keys == length:
            return None
        device, dtype = self.lm_head.weight.device, self.lm_head.weight.dtype
        low = torch.finfo(dtype).min
        mask = torch.full((length, keys), low, device=device, dtype=dtype).triu(1 + past)
        if attention_mask is None or not padded:
            return mask
        padding = functional.pad((1 - attention_mask.to(dtype)) * low, (0, keys - past - length))
        # Clamped, or a masked place that is also padding would overflow to -inf and a fully masked row become NaN.
        return (mask + padding[:, None, None, :]).clamp(min=low)

    def _places(self, past: int, length: int, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """The places of the new tokens, (T,) or (B, T)."""
        if position_ids is not None:
            return position_ids
        if attention_mask is not None:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        return torch.arange(past, past + length, device=self.lm_head.weight.device)

    def _positions(self, position_ids: Tensor) -> Tensor | None:
        table = self.transformer.wpe
        if table is None:
            return None
        last = int(position_ids.max()) if position_ids.numel() else 0
        if last >= self.config.n_ctx:
            raise ValueError(f"{last + 1} tokens are too many: the model has positions for {self.config.n_ctx} (n_ctx)")
        return table(position_ids)

    def sublayer(self, index: int, h: Tensor, context: Context) -> Tensor:
        """Residual after sublayer `index`, given the residual before it, (B, T, S)."""
        if self.config.parallel:
            return self.blocks[index].parallel(h, context)
        block = self.blocks[index // 2]
        return block.attention(h, context) if index % 2 == 0 else block.neurons(h, context)

    def unembed(self, h: Tensor, ids: Tensor) -> Tensor:
        """Logits (..., V) from final residuals (..., S) and the token ids at the same places (...)."""
        logits = self.bigram.add(self, self.lm_head(self.transformer.ln_f(h)), ids)
        return logits if self.logits_bias is None else logits + self.logits_bias

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """See transformers. A cache is kept only where `use_cache` or `past_key_values` ask for one: `generate` does.

        Raises ValueError for inputs that the model has no use for: embeddings in place of ids, attention weights.
        """
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("a sparse GPT takes input_ids, not inputs_embeds: bigram logits belong to tokens")
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions is not supported; use model.record(['blocks.0.attn.hook_pattern'])")
        cache = DynamicCache(config=self.config) if use_cache and past_key_values is None else past_key_values
        context = self.context(input_ids.shape[1], attention_mask, position_ids, cache)
        h = self.embed(input_ids, context)
        seen, of_block = [h], self.n_sublayers // self.config.n_layer
        for index in range(self.n_sublayers):
            h = self.sublayer(index, h, context)
            if output_hidden_states and (index + 1) % of_block == 0:
                seen.append(h)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.unembed(h[:, kept], input_ids[:, kept])
        return CausalLMOutputWithPast(
            loss=None if labels is None else next_token_loss(logits, labels, num_items_in_batch),
            logits=logits,
            past_key_values=cache,
            hidden_states=(*seen[:-1], self.transformer.ln_f(h)) if output_hidden_states else None,
        )

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **_) -> Tensor | None:
        """The padding mask as it is: `context` makes the rest of it, for every kind of cache."""
        return attention_mask


def next_token_loss(logits: Tensor, labels: Tensor, items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of the next token, nats: mean over labels that are not -100, or the sum over `items` (accumulated gradients)."""
    flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if items is None:
        return functional.cross_entropy(flat, wanted)
    return functional.cross_entropy(flat, wanted, reduction="sum") / items


def waves(length: int, channels: int) -> Tensor:
    """A position table to start from, (length, channels): sines, then cosines, of periods from 4 to `length` tokens, evenly in logs."""
    periods = 4 * (max(length, 4) / 4) ** torch.linspace(0, 1, (channels + 1) // 2)
    angles = 2 * math.pi * torch.arange(length)[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :channels]
