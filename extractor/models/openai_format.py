"""Translate configs and tensors of the authors' published checkpoints to ours. No file access.

It relies on these facts of the published code (openai/circuit_sparsity): RMSNorm's epsilon is that of fp32; AbsTopK keeps
int(fraction * width) channels, position channels included; position channels are normed separately and follow the residual channels; sinks
act wherever the config enables them (the published loader refuses them without flash attention). Paper: Sec. 2.1, App. A.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from extractor.errors import BrokenArtifact, UnsupportedModel
from extractor.models.shape import sparse_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from extractor.sparse import SparseGPTForCausalLM

CONFIG = "beeg_config.json"
FP32_EPS = 2.0**-23

_SITES = {
    "attn_in": "attn.act_in",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_out": "attn.resid_delta",
    "mlp_in": "mlp.act_in",
    "mlp_neuron": "mlp.post_act",
    "mlp_out": "mlp.resid_delta",
}
_STREAM_SITES = ("resid_post_attn", "resid_post_mlp")
# The published code's defaults for keys that a config may lack.
_DEFAULTS: dict[str, Any] = {
    "block_size": 1024,
    "vocab_size": 50304,
    "n_layer": 12,
    "n_head": 12,
    "d_head": None,
    "d_model": 768,
    "d_mlp": None,
    "activation_type": "gelu",
    "afrac": None,
    "afrac_loctypes": "attn_in,attn_out,mlp_in,mlp_out",
    "d_pos_emb": None,
    "enable_bigram_table": False,
    "sink": False,
    "bias": True,
    "tied_unembed": True,
    "rms_norm": False,
    "residual_activation_type": "identity",
}
# Key -> (the values for which our model computes the same, what any other value would need).
_REQUIRED: dict[str, tuple[tuple[Any, ...], str]] = {
    "rms_norm": ((True,), "LayerNorm"),
    "residual_activation_type": (("identity", None), "a nonlinearity on the residual stream"),
    "use_tied_aux_matrix": ((False, None), "an auxiliary matrix beside every weight matrix"),
    "unembed_rank": ((None, 0), "a low-rank unembedding"),
    "mup": ((False, None), "muP's scaled attention and logits"),
    "scale_invariance": ((False, None), "scale-invariant weights"),
}
MOST_CLAIMED = 2  # times the numbers that a checkpoint holds; with more no model is built
_IGNORED = {
    "dropout": "acts in training only",
    "grad_checkpointing": "acts in training only",
    "debug_nans": "acts in training only",
    "enable_sparse_kernels": "chooses a kernel",
    "ln_bias": "RMSNorm has no bias",
    "dropout_cat_pos_emb": "acts in training only",
    "learnable_bigram_table": "acts in training only",
    "sinusoidal_cat_pos_emb": "says how the position table began; the table itself is imported",
    "bigram_table_rank": "the bigram table is stored whole",
    "n_embd": "d_model counts",
    "flash": "chooses a kernel; sinks are imported as on the flash path",
    "tokenizer_name": "names a tokenizer; give its files with --tokenizer",
}


def translate_config(published: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Fields of SparseGPTConfig from a published config; what is ignored goes to `notes`. Raises UnsupportedModel, BrokenArtifact."""
    old = dict(published)
    if "n_mlp" in old:
        old["d_mlp"] = old.pop("n_mlp")
        notes.append("config key n_mlp is an old name of d_mlp")
    if "d_model" not in old and "n_embd" in old:
        old["d_model"] = old["n_embd"]
        notes.append("config key n_embd is taken for d_model")
    for key, (allowed, asks_for) in _REQUIRED.items():
        value = old.get(key, _DEFAULTS.get(key))
        if value not in allowed:
            raise UnsupportedModel(f"{CONFIG}: {key} = {value!r} asks for {asks_for}, which this model does not have")
    for key, value in old.items():
        if key not in _DEFAULTS and key not in _REQUIRED:
            notes.append(f"config key {key} = {value!r} ignored: {_IGNORED.get(key, 'the published inference code does not read it')}")
    return _fields({**_DEFAULTS, **old})


def _fields(old: dict[str, Any]) -> dict[str, Any]:
    width, heads = _whole(old, "d_model"), _whole(old, "n_head")
    head = _whole(old, "d_head") if old["d_head"] is not None else width // heads
    neurons = _whole(old, "d_mlp") if old["d_mlp"] is not None else 4 * width
    positions = _whole(old, "d_pos_emb") if old["d_pos_emb"] is not None else 0
    if heads * head != width:
        raise UnsupportedModel(f"{CONFIG}: {heads} heads of {head} channels are not d_model = {width}, which this model needs")
    if old["activation_type"] not in ("gelu", "relu"):
        raise UnsupportedModel(f"{CONFIG}: activation_type = {old['activation_type']!r} is not gelu or relu")
    site_k = _site_k(old, width, width + positions, neurons)
    return {
        "vocab_size": _whole(old, "vocab_size"),
        "n_layer": _whole(old, "n_layer"),
        "d_model": width,
        "d_head": head,
        "d_mlp": neurons,
        "n_ctx": _whole(old, "block_size"),
        "activation": old["activation_type"],
        "activation_frac": 1.0 if site_k is None else float(old["afrac"]),
        "site_k": site_k,
        "d_pos_emb": positions,
        "added_positions": False,
        "sinks": bool(old["sink"]),
        "bigram": "dense" if old["enable_bigram_table"] else "none",
        "logits_bias": False,
        "rms_norm_eps": FP32_EPS,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _whole(config: dict[str, Any], key: str) -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BrokenArtifact(f"{CONFIG}: {key} = {value!r} is not a whole number of at least 1")
    return value


def _site_k(old: dict[str, Any], width: int, read: int, neurons: int) -> dict[str, int] | None:
    """Channels kept at each site, {'attn.q': 15}; None without AbsTopK."""
    share = old["afrac"]
    if share is None:
        return None
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise BrokenArtifact(f"{CONFIG}: afrac = {share!r} is not a fraction in (0, 1]")
    kinds = [kind for kind in str(old["afrac_loctypes"]).split(",") if kind]
    stream = [kind for kind in kinds if kind in _STREAM_SITES]
    if stream:
        raise UnsupportedModel(f"{CONFIG}: afrac_loctypes {stream[0]} needs AbsTopK on the residual stream, which this model does not have")
    unknown = [kind for kind in kinds if kind not in _SITES]
    if unknown:
        raise UnsupportedModel(f"{CONFIG}: afrac_loctypes {unknown[0]!r} is not a known site; known: {', '.join(_SITES)}")
    widths = {"attn.act_in": read, "mlp.act_in": read, "mlp.post_act": neurons}
    found = {_SITES[kind]: int(share * widths.get(_SITES[kind], width)) for kind in kinds}
    for place, k in found.items():
        if k < 1:
            raise UnsupportedModel(f"{CONFIG}: afrac = {share} keeps no channel of {place}")
    return found


def translate_tensors(found: dict[str, Tensor], settings: dict[str, Any], published: dict[str, Any], notes: list[str]) -> dict[str, Tensor]:
    """Our state dict in fp32 from theirs. Sets `added_positions` and `logits_bias` of `settings` by the tensors found.

    Raises BrokenArtifact for tensors that are missing, of a wrong shape or not finite, UnsupportedModel for unknown tensors.
    """
    found = _without_prefix(found, notes)
    _tie(found, published, notes)
    _optional_tensors(found, settings, notes)
    claimed, held = sparse_parameters(settings, "the checkpoint"), sum(tensor.numel() for tensor in found.values())
    if claimed > MOST_CLAIMED * held:
        raise BrokenArtifact(f"the checkpoint holds {held:,} numbers, its {CONFIG} describes {claimed:,}; the one is another model's")
    wanted = {name: tuple(tensor.shape) for name, tensor in empty_model(settings).state_dict().items()}
    if not published.get("bias", True):
        notes.append("the linear layers have no biases: imported as zeros")
        for name, shape in wanted.items():
            if name.endswith(".bias") and name not in found:
                found[name] = _zeros(shape)
    tensors = {}
    for name, shape in wanted.items():
        theirs = name.replace("attn.sink_logit", "attn.attn_imp.sink_logit").replace("logits_bias", "final_logits_bias")
        tensors[name] = _checked(found.pop(theirs, None), theirs, shape)
    _refuse_leftovers(found, notes)
    return tensors


def _without_prefix(found: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    for prefix in ("module.", "_orig_mod."):
        if found and all(name.startswith(prefix) for name in found):
            notes.append(f"all tensor names begin with {prefix}: removed")
            return _without_prefix({name.removeprefix(prefix): t for name, t in found.items()}, notes)
    return dict(found)


def _tie(found: dict[str, Tensor], published: dict[str, Any], notes: list[str]) -> None:
    """Untie the unembedding, which may be stored under one name or two."""
    if not published.get("tied_unembed", _DEFAULTS["tied_unembed"]):
        return
    # Their module assigns the unembedding's weight to the embedding: where both are stored and differ, the one loaded last counts, lm_head.
    for name, other in (("transformer.wte.weight", "lm_head.weight"), ("lm_head.weight", "transformer.wte.weight")):
        if other in found and (name not in found or name == "transformer.wte.weight"):
            found[name] = found[other]
    notes.append("embedding and unembedding were tied: imported as two equal tensors")


def _optional_tensors(found: dict[str, Tensor], settings: dict[str, Any], notes: list[str]) -> None:
    """Tensors whose presence depends on more than the config: an added position table, a logits bias, a shared sink."""
    table = found.get("transformer.wpe.weight")
    if not settings["d_pos_emb"] and table is not None:
        if bool(table.any()):
            settings["added_positions"] = True
        else:
            found.pop("transformer.wpe.weight")
            notes.append("the added position table is zero: left out")
    bias = found.get("final_logits_bias")
    if bias is not None and bool(bias.any()):
        settings["logits_bias"] = True
    elif bias is not None:
        found.pop("final_logits_bias")
        notes.append("final_logits_bias is zero: left out")
    heads = settings["d_model"] // settings["d_head"]
    for name, value in found.items():
        if settings["sinks"] and name.endswith("attn_imp.sink_logit") and value.numel() == 1 and heads > 1:
            found[name] = value.reshape(1).expand(heads).clone()
            notes.append(f"{name} is one number: given to all {heads} heads")


def empty_model(settings: dict[str, Any]) -> SparseGPTForCausalLM:
    """A model with these settings on the meta device: shapes without memory. Raises UnsupportedModel."""
    import torch

    from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM

    try:
        config = SparseGPTConfig(**settings)
    except ValueError as error:
        raise UnsupportedModel(f"{CONFIG}: {error}") from None
    with torch.device("meta"):
        return SparseGPTForCausalLM(config)


def _zeros(shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.zeros(shape)


def _checked(tensor: Tensor | None, name: str, shape: tuple[int, ...]) -> Tensor:
    import torch

    if tensor is None:
        raise BrokenArtifact(f"the checkpoint has no tensor {name}, which its config needs")
    if tuple(tensor.shape) != shape:
        raise BrokenArtifact(f"tensor {name} is {tuple(tensor.shape)}, its config needs {shape}")
    if not tensor.is_floating_point():
        raise BrokenArtifact(f"tensor {name} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers")
    dense = (tensor.to_dense() if tensor.layout != torch.strided else tensor).to(torch.float32)
    if not bool(dense.isfinite().all()):
        raise BrokenArtifact(f"tensor {name} holds values that are not finite")
    return dense.clone(memory_format=torch.contiguous_format)  # tied tensors share memory, ours must not


def _refuse_leftovers(found: dict[str, Tensor], notes: list[str]) -> None:
    """Refuse remaining tensors that would change the computation; causal masks, sinks that the config switches off and zeros do not."""
    for name, tensor in found.items():
        if name.endswith("attn.bias") and tensor.dim() == 4:
            why = "a causal mask"
        elif name.endswith("attn_imp.sink_logit"):
            why = "the config has no sink"
        elif name == "bigram_table":
            why = "the config has no bigram table"
        elif not bool(tensor.any()):
            why = "all zero"
        else:
            raise UnsupportedModel(f"the checkpoint has a tensor {name} {tuple(tensor.shape)} for which this model has no place")
        notes.append(f"tensor {name} ignored: {why}")
