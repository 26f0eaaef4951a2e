"""The published models' forward pass as their description gives it, in plain torch and with nothing of this project.

A config is a dict with the keys of beeg_config.json, a state dict has the keys of final_model.pt. `random_checkpoint` makes a pair with
weights large enough that every part shows in the logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WHOLE = "attn_in,attn_out,mlp_in,mlp_out,mlp_neuron,attn_v,attn_k,attn_q"
CONFIG = {
    "block_size": 24,
    "vocab_size": 30,
    "n_layer": 2,
    "n_head": 4,
    "d_head": 8,
    "d_model": 32,
    "d_mlp": 128,
    "dropout": 0.0,
    "bias": True,
    "ln_bias": True,
    "rms_norm": True,
    "residual_activation_type": "identity",
    "activation_type": "gelu",
    "afrac": 0.3,
    "afrac_loctypes": WHOLE,
    "tied_unembed": False,
    "enable_bigram_table": True,
    "learnable_bigram_table": True,
    "d_pos_emb": None,
    "flash": True,
    "sink": False,
}


def random_checkpoint(seed: int = 0, **changes) -> tuple[dict, dict[str, Tensor]]:
    """(config, state dict) of a random model."""
    config = {**CONFIG, **changes}
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.5) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    width, vocabulary, neurons = config["d_model"], config["vocab_size"], config["d_mlp"]
    mixed, channels = config["n_head"] * config["d_head"], config["d_pos_emb"] or 0
    state = {
        "transformer.wte.weight": draw(vocabulary, width, scale=1.0),
        "transformer.wpe.weight": draw(config["block_size"], channels or width),
        "transformer.ln_f.weight": 1 + draw(width, scale=0.2),
        "lm_head.weight": draw(vocabulary, width),
        "final_logits_bias": draw(vocabulary),
    }
    if config["tied_unembed"]:
        state["transformer.wte.weight"] = state["lm_head.weight"]
    if config["enable_bigram_table"]:
        state["bigram_table"] = draw(vocabulary, vocabulary)
    for i in range(config["n_layer"]):
        shapes = {
            "attn.c_attn": (3 * mixed, width + channels),
            "attn.c_proj": (width, mixed),
            "mlp.c_fc": (neurons, width + channels),
            "mlp.c_proj": (width, neurons),
        }
        for name, shape in shapes.items():
            state[f"transformer.h.{i}.{name}.weight"] = draw(*shape, scale=1.5 / math.sqrt(shape[1]))
            if config["bias"]:
                state[f"transformer.h.{i}.{name}.bias"] = draw(shape[0])
        norms = {"ln_1": width, "ln_2": width} | ({"ln_p1": channels, "ln_p2": channels} if channels else {})
        for name, size in norms.items():
            state[f"transformer.h.{i}.{name}.weight"] = 1 + draw(size, scale=0.2)
        if config["sink"]:
            state[f"transformer.h.{i}.attn.attn_imp.sink_logit"] = draw(config["n_head"], scale=2.0)
    return config, state


def published_forward(config: dict, state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits (B, T, V) of token ids (B, T)."""
    length = ids.shape[1]
    positions = state["transformer.wpe.weight"][:length]
    h = state["transformer.wte.weight"][ids]
    if config["d_pos_emb"] is None:
        h, positions = h + positions, None
    for i in range(config["n_layer"]):
        block = {name.removeprefix(f"transformer.h.{i}."): t for name, t in state.items() if name.startswith(f"transformer.h.{i}.")}
        h = h + attention(config, block, read(block, "1", h, positions))
        h = h + mlp(config, block, read(block, "2", h, positions))
    logits = rms(h, state["transformer.ln_f.weight"]) @ state["lm_head.weight"].T + state.get("final_logits_bias", 0)
    return logits + state["bigram_table"][ids] if config["enable_bigram_table"] else logits


def read(block: dict[str, Tensor], number: str, h: Tensor, positions: Tensor | None) -> Tensor:
    x = rms(h, block[f"ln_{number}.weight"])
    if positions is None:
        return x
    p = rms(positions, block[f"ln_p{number}.weight"])
    return torch.cat([x, p[None].repeat(len(h), 1, 1)], dim=2)


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * gain


def sparsify(config: dict, x: Tensor, place: str) -> Tensor:
    if config["afrac"] is None or place not in config["afrac_loctypes"].split(","):
        return x
    kept = sorted_indices(x)[..., : int(config["afrac"] * x.shape[-1])]
    mask = torch.zeros_like(x)
    mask.scatter_(-1, kept, 1.0)
    return x * mask


def sorted_indices(x: Tensor) -> Tensor:
    return x.abs().argsort(dim=-1, descending=True)


def linear(block: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ block[f"{name}.weight"].T + block.get(f"{name}.bias", 0)


def attention(config: dict, block: dict[str, Tensor], x: Tensor) -> Tensor:
    rows, length, heads, head = len(x), x.shape[1], config["n_head"], config["d_head"]
    q, k, v = linear(block, "attn.c_attn", sparsify(config, x, "attn_in")).chunk(3, dim=-1)
    q, k, v = (sparsify(config, t, f"attn_{n}").reshape(rows, length, heads, head) for n, t in (("q", q), ("k", k), ("v", v)))
    out = x.new_zeros(rows, length, heads, head)
    for head_number in range(heads):
        for t in range(length):
            scores = (k[:, : t + 1, head_number] * q[:, t : t + 1, head_number]).sum(-1) / math.sqrt(head)
            weights = scores.exp()
            total = weights.sum(-1, keepdim=True)
            if config["sink"]:
                total = total + block["attn.attn_imp.sink_logit"][head_number].exp()
            out[:, t, head_number] = ((weights / total)[..., None] * v[:, : t + 1, head_number]).sum(1)
    return sparsify(config, linear(block, "attn.c_proj", out.reshape(rows, length, heads * head)), "attn_out")


def mlp(config: dict, block: dict[str, Tensor], x: Tensor) -> Tensor:
    x = linear(block, "mlp.c_fc", sparsify(config, x, "mlp_in"))
    x = x.clamp(min=0) if config["activation_type"] == "relu" else 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return sparsify(config, linear(block, "mlp.c_proj", sparsify(config, x, "mlp_neuron")), "mlp_out")
