"""The shape of a dense model, from its config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extractor.errors import SpecError
from extractor.jobs.cost.constants import ACTIVATIONS_PER_NEURON, DEFAULT_ACTIVATIONS_PER_NEURON


@dataclass(frozen=True)
class DenseShape:
    """Sizes of a dense model.

    positions            rows of its table of positions; 0 with rotary positions
    parameters           of the model, tied embeddings counted once
    block_parameters     of the blocks, without embeddings and final norm
    kept_per_neuron      numbers per neuron of an MLP that autograd keeps
    """

    layers: int
    width: int
    heads: int
    neurons: int
    vocabulary: int
    positions: int
    parameters: int
    block_parameters: int
    kept_per_neuron: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DenseShape:
        """From the config of a GPT-2, GPT-Neo or Llama, or of a family with the same layout. Raises SpecError for a missing number."""
        width = _read(config, "n_embd", "hidden_size", "d_model")
        heads = _read(config, "n_head", "num_heads", "num_attention_heads")
        layers = _read(config, "n_layer", "num_layers", "num_hidden_layers")
        vocabulary, neurons = _read(config, "vocab_size"), _read(config, "n_inner", "intermediate_size", default=4 * width)
        rotary = config.get("model_type") not in ("gpt2", "gpt_neo")
        positions = 0 if rotary else _read(config, "n_positions", "max_position_embeddings")
        block = _rotary_block(config, width, heads, neurons) if rotary else 4 * width**2 + 2 * width * neurons + 4 * width + width + neurons
        if not rotary:  # biases of attention; GPT-Neo has one on its output only
            block += width * (1 if config.get("model_type") == "gpt_neo" else 4)
        tied = config.get("tie_word_embeddings", not rotary)
        outside = (vocabulary * (1 if tied else 2) + positions + (1 if rotary else 2)) * width
        activation = str(config.get("activation_function") or config.get("hidden_act") or "gelu_new")
        kept = ACTIVATIONS_PER_NEURON.get(activation, DEFAULT_ACTIVATIONS_PER_NEURON)
        return cls(layers, width, heads, neurons, vocabulary, positions, layers * block + outside, layers * block, kept)


def _rotary_block(config: Mapping[str, Any], width: int, heads: int, neurons: int) -> int:
    """Parameters of a block with RMSNorms, grouped queries and a gated MLP."""
    head = config.get("head_dim") or width // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    attention = 2 * width * (queries + keys) + (queries + 2 * keys + width if config.get("attention_bias") else 0)
    return attention + 3 * width * neurons + (2 * neurons + width if config.get("mlp_bias") else 0) + 2 * width


def _read(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these fields that is a whole number, else the default. Raises SpecError without either."""
    for name in names:
        if isinstance(config.get(name), int):
            return config[name]
    if default is None:
        raise SpecError(f"the dense model's config.json has no {names[-1]}; save the model again with transformers")
    return default
