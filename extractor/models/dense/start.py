"""Whether a sparse GPT can start from a dense model's weights, decided by config.json alone. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
GPT_NEO_WINDOW = 256  # tokens; transformers' default


def obstacle(config: Mapping[str, Any], context: int) -> str | None:
    """Why `DenseSublayers.weights` cannot describe the model with this config.json; None where it can.

    context: the most tokens that are read at once
    """
    model_type = config.get("model_type")
    if model_type not in ("gpt2", "gpt_neo"):
        return f"a {model_type} has other blocks than a GPT-2, which a sparse GPT cannot start from"
    activation = config.get("activation_function", "gelu_new")
    if activation not in GELUS:
        return f"its MLP has the activation {str(activation)[:40]!r}, not one of {', '.join(GELUS)}"
    if model_type == "gpt_neo":
        return _window(config, context)
    if not config.get("scale_attn_weights", True) or config.get("scale_attn_by_inverse_layer_idx"):
        return "its attention does not divide scores by the root of the head's width (scale_attn_weights, scale_attn_by_inverse_layer_idx)"
    return "its blocks have cross-attention" if config.get("add_cross_attention") else None


def _window(config: Mapping[str, Any], context: int) -> str | None:
    """A local window that is shorter than the context. One that is not is plain attention."""
    layers = [config.get("attention_layers"), config.get("attention_types", None if config.get("attention_layers") else "local")]
    window = config.get("window_size", GPT_NEO_WINDOW)
    if "local" not in json.dumps(layers) or (type(window) is int and window >= context):
        return None
    return f"its local attention sees {window} tokens, fewer than the {context} that are read at once"
