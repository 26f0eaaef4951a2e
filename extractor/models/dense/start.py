"""What config.json alone says of a dense model: whether it can be bridged at all, and whether a sparse GPT can start from its weights.

No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
# Hugging Face's name of an activation -> that of a sparse GPT
ACTIVATIONS = {name: "gelu" if name == "gelu" else "gelu_tanh" for name in GELUS} | {"relu": "relu", "silu": "silu", "swish": "silu"}
GPT_NEO_WINDOW = 256  # tokens; transformers' default
FIXED_TURNS = ("default", "linear", "llama3", "yarn", "proportional")  # kinds of rotary positions whose angles do not depend on the text
ROTARY_CONTEXT = 256  # tokens of text that are read at once where a dense model without a table of positions is pruned itself
Config = Mapping[str, Any]


def refused(model_type: str, config: Config) -> str | None:
    """Why a model of a supported type cannot be bridged at all; None where it can."""
    if model_type != "opt":
        return None
    if not config.get("do_layer_norm_before", True) or config.get("_remove_final_layer_norm"):
        return "its norms follow its sublayers (do_layer_norm_before), so that none reads the residual"
    if config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):
        return "its embeddings are projected (word_embed_proj_dim)"
    return None


def obstacle(config: Config, context: int) -> str | None:
    """Why `DenseSublayers.weights` cannot describe the model with this config.json; None where it can.

    context: the most tokens that are read at once
    """
    model_type = str(config.get("model_type"))
    if model_type not in _BY_TYPE:
        return f"a {model_type} has other blocks than a GPT-2, which a sparse GPT cannot start from"
    return _BY_TYPE[model_type](config, context)


def _gpt2(config: Config, context: int) -> str | None:
    if why := _activation(config, "activation_function", "gelu_new", GELUS):
        return why
    if not config.get("scale_attn_weights", True) or config.get("scale_attn_by_inverse_layer_idx"):
        return "its attention does not divide scores by the root of the head's width (scale_attn_weights, scale_attn_by_inverse_layer_idx)"
    return "its blocks have cross-attention" if config.get("add_cross_attention") else None


def _gpt_neo(config: Config, context: int) -> str | None:
    if why := _activation(config, "activation_function", "gelu_new", GELUS):
        return why
    layers = [config.get("attention_layers"), config.get("attention_types", None if config.get("attention_layers") else "local")]
    return _window(config.get("window_size", GPT_NEO_WINDOW), context) if "local" in json.dumps(layers) else None


def _opt(config: Config, context: int) -> str | None:
    if not config.get("layer_norm_elementwise_affine", True):
        return "its norms have no gains (layer_norm_elementwise_affine)"
    return refused("opt", config) or _activation(config, "activation_function", "relu")


def _gpt_neox(config: Config, context: int) -> str | None:
    return _turns(config) or _activation(config, "hidden_act", "gelu")


def _phi(config: Config, context: int) -> str | None:
    if config.get("qk_layernorm"):
        return "it norms queries and keys with LayerNorms (qk_layernorm)"
    return _turns(config) or _activation(config, "hidden_act", "gelu_new")


def _llama(config: Config, context: int) -> str | None:
    return _turns(config) or _activation(config, "hidden_act", "silu")


def _mistral(config: Config, context: int) -> str | None:
    window = config.get("sliding_window")
    return (None if window is None else _window(window, context)) or _llama(config, context)


def _qwen(config: Config, context: int) -> str | None:
    slides = "sliding_attention" in (config.get("layer_types") or ()) or config.get("use_sliding_window")
    return (_window(config.get("sliding_window"), context) if slides else None) or _llama(config, context)


def _gemma2(config: Config, context: int) -> str | None:
    capped = [name for name in ("final_logit_softcapping", "attn_logit_softcapping") if config.get(name, 1.0) is not None]
    if capped:
        return f"its logits have a soft cap ({', '.join(capped)}), which a sparse GPT has not"
    return "it also norms what attention and MLP write, which a sparse GPT does not"


def _activation(config: Config, name: str, default: str, known: tuple[str, ...] = tuple(ACTIVATIONS)) -> str | None:
    activation = config.get(name, default)
    return None if activation in known else f"its MLP has the activation {str(activation)[:40]!r}, not one of {', '.join(known)}"


def _window(window: object, context: int) -> str | None:
    """A local window that is shorter than the context. One that is not is plain attention."""
    if type(window) is int and window >= context:
        return None
    return f"its local attention sees {window} tokens, fewer than the {context} that are read at once"


def _turns(config: Config) -> str | None:
    """Rotary positions whose angles depend on the length of the text."""
    place = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers takes the former where both are there
    kind = place.get("rope_type", place.get("type", "default")) if isinstance(place, Mapping) else "default"
    return None if kind in FIXED_TURNS else f"its rotary positions depend on the length of the text (rope_type {str(kind)[:40]!r})"


_BY_TYPE: dict[str, Callable[[Config, int], str | None]] = {
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "opt": _opt,
    "phi": _phi,
    "qwen2": _qwen,
    "qwen3": _qwen,
}
