"""The sizes that a model's config.json gives, each within bounds, and the number of parameters that they imply. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extractor.errors import UnsupportedModel

# Far above every published model. They bound the work that a config.json can cause before its weights are looked at.
MAX_LAYERS = 1000
MAX_WIDTH = 1 << 17
MAX_NEURONS = 1 << 20
MAX_VOCABULARY = 1 << 22
MAX_POSITIONS = 1 << 24
MAX_LABELS = 1 << 20  # transformers makes a name for each, also where the model has no use for them
MAX_BIGRAM = 1 << 16  # entries per row, or rank
REALS = {
    "layer_norm_epsilon": (0.0, 1.0),
    "layer_norm_eps": (0.0, 1.0),
    "rms_norm_eps": (0.0, 1.0),
    "rope_theta": (1e-6, 1e12),
    "factor": (1e-6, 1e6),
}


@dataclass(frozen=True)
class DenseShape:
    """Sizes of a dense model.

    heads, d_head        of queries, and channels of each
    gated                whether its MLPs have a gate
    parallel             whether attention and MLP of a block read the same residual
    positions            rows of its table of positions; 0 with rotary positions
    parameters           of the model, tied embeddings counted once
    block_parameters     of the blocks, without embeddings and final norm
    """

    layers: int
    width: int
    heads: int
    neurons: int
    vocabulary: int
    positions: int
    parameters: int
    block_parameters: int
    d_head: int
    gated: bool
    parallel: bool = False

    @property
    def sites(self) -> int:
        """Residuals that a bridge can read: before every sublayer and before the final norm."""
        return self.layers * (1 if self.parallel else 2) + 1

    @property
    def has_positions(self) -> bool:
        """Whether absolute positions are added to the embedding."""
        return bool(self.positions)

    @classmethod
    def of(cls, config: Mapping[str, Any], model: str = "the dense model") -> DenseShape:
        """From a config.json. A family that is not in `_TABLES` and `_BIASED_ROTARY` is counted as a Llama.

        model: how an error names it. Raises UnsupportedModel for a number that is missing or that no model can have.
        """
        sizes, family = _Sizes(config, model), str(config.get("model_type"))
        sizes.read("num_labels", most=MAX_LABELS, least=0, default=0)
        sizes.read_repeats("attention_types", most=MAX_LAYERS)
        sizes.check_reals()
        width = sizes.read("n_embd", "hidden_size", "d_model", most=MAX_WIDTH)
        heads = sizes.read("n_head", "num_heads", "num_attention_heads", most=MAX_WIDTH)
        layers = sizes.read("n_layer", "num_layers", "num_hidden_layers", most=MAX_LAYERS)
        vocabulary = sizes.read("vocab_size", most=MAX_VOCABULARY)
        neurons = sizes.read("n_inner", "ffn_dim", "intermediate_size", most=MAX_NEURONS, default=4 * width)
        in_table = family in _TABLES
        positions = sizes.read("n_positions", "max_position_embeddings", most=MAX_POSITIONS) if in_table else 0
        counted = _table_block if in_table else _biased_rotary_block if family in _BIASED_ROTARY else _rotary_block
        block = counted(sizes, family, width, heads, neurons)
        tied = config.get("tie_word_embeddings", in_table or family == "gemma2")
        outside = (vocabulary * (1 if tied else 2) + positions + (2 if family == "opt" else 0)) * width  # OPT's table has two rows more
        outside += (1 if counted is _rotary_block else 2) * width + (vocabulary if family == "phi" else 0)
        is_parallel = family == "phi" or (family == "gpt_neox" and bool(config.get("use_parallel_residual", True)))
        is_gated = counted is _rotary_block
        head = _head(sizes, family, width, heads) if is_gated else width // heads
        return cls(
            layers, width, heads, neurons, vocabulary, positions, layers * block + outside, layers * block, head, is_gated, is_parallel
        )


def sparse_parameters(config: Mapping[str, Any], model: str = "the sparse model") -> int:
    """Number of parameters of a sparse GPT, without norms and biases. Raises UnsupportedModel as `DenseShape.of`."""
    sizes = _Sizes(config, model)
    width = sizes.read("d_model", most=MAX_WIDTH)
    layers, neurons = sizes.read("n_layer", most=MAX_LAYERS), sizes.read("d_mlp", most=MAX_NEURONS)
    vocabulary, positions = sizes.read("vocab_size", most=MAX_VOCABULARY), sizes.read("n_ctx", most=MAX_POSITIONS)
    head = sizes.read("d_head", most=MAX_WIDTH)
    if config.get("heads") is None:
        sizes.divide(width, head, "d_model", "d_head")
    mixed = head * sizes.read("heads", most=MAX_WIDTH, default=max(1, width // head))
    extra = sizes.read("d_pos_emb", most=MAX_WIDTH, least=0, default=0)
    top, rank = (sizes.read(name, most=MAX_BIGRAM, default=1) for name in ("bigram_top", "bigram_rank"))
    bigram = {"dense": vocabulary, "counts": min(top, vocabulary), "low_rank": 2 * min(rank, vocabulary)}
    table = positions * (width if config.get("added_positions") else extra)
    block = (3 * mixed + (2 if config.get("gated") else 1) * neurons) * (width + extra) + mixed * width + neurons * width
    return layers * block + 2 * vocabulary * width + table + vocabulary * bigram.get(str(config.get("bigram")), 0)


_TABLES = ("gpt2", "gpt_neo", "opt")  # families with a table of positions
_BIASED_ROTARY = ("gpt_neox", "phi")  # rotary positions, LayerNorms, biases, an MLP without gate
_HEADS = {"gemma2": 256, "qwen3": 128}  # transformers' channels of a head where the config does not say


def _head(sizes: _Sizes, family: str, width: int, heads: int) -> int:
    """Channels of a head of a model with a gated MLP."""
    return sizes.read("head_dim", most=MAX_WIDTH, default=_HEADS.get(family, max(1, width // heads)))


def _table_block(sizes: _Sizes, family: str, width: int, heads: int, neurons: int) -> int:
    """Parameters of a block with LayerNorms and a plain MLP; GPT-Neo's attention has a bias on its output only."""
    sizes.divide(width, heads)
    return 4 * width**2 + 2 * width * neurons + 4 * width + width + neurons + width * (1 if family == "gpt_neo" else 4)


def _biased_rotary_block(sizes: _Sizes, family: str, width: int, heads: int, neurons: int) -> int:
    """The same without a table; Phi has one norm a block and may group its queries."""
    sizes.divide(width, heads)
    groups = sizes.read("num_key_value_heads", most=MAX_WIDTH, default=heads)
    sizes.divide(heads, groups, "num_attention_heads", "num_key_value_heads")
    keys = width // heads * groups
    attention = 2 * width * (width + keys) + (2 * width + 2 * keys if sizes.config.get("attention_bias", True) else 0)
    return attention + 2 * width * neurons + neurons + width + (2 if family == "phi" else 4) * width


def _rotary_block(sizes: _Sizes, family: str, width: int, heads: int, neurons: int) -> int:
    """Parameters of a block with RMSNorms, grouped queries and a gated MLP."""
    config = sizes.config
    head = _head(sizes, family, width, heads)
    groups = sizes.read("num_key_value_heads", most=MAX_WIDTH, default=heads)
    if config.get("head_dim") is None and family not in _HEADS:
        sizes.divide(width, heads)
    sizes.divide(heads, groups, "num_attention_heads", "num_key_value_heads")
    queries, keys = heads * head, groups * head
    attention = 2 * width * (queries + keys) + (queries + 2 * keys + width if config.get("attention_bias") else 0)
    attention += {"qwen2": queries + 2 * keys, "qwen3": 2 * head}.get(family, 0)
    norms = 4 if family == "gemma2" else 2
    return attention + 3 * width * neurons + (2 * neurons + width if config.get("mlp_bias") else 0) + norms * width


@dataclass(frozen=True)
class _Sizes:
    """The numbers of a config. `model`: how errors name its model."""

    config: Mapping[str, Any]
    model: str

    def read(self, *names: str, most: int, least: int = 1, default: int | None = None) -> int:
        """The first of these fields that is set, else the default. Raises UnsupportedModel unless it is a whole number in bounds."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if type(value) is not int or not least <= value <= most:
                shown = repr(value)[:40]
                raise UnsupportedModel(
                    f"{self.model} has {name} {shown} in its config.json, no whole number from {least} to {most:,}; correct the config"
                )
            return value
        if default is None:
            raise UnsupportedModel(f"{self.model} has no {names[-1]} in its config.json; save the model again with transformers")
        return default

    def check_reals(self) -> None:
        """Raise UnsupportedModel for an epsilon or a rotary setting with which predictions are no numbers."""
        places = {"": self.config} | {f"{name}.": self.config.get(name) for name in ("rope_parameters", "rope_scaling")}
        for prefix, place in places.items():
            if not isinstance(place, Mapping):
                continue
            for name, (least, most) in REALS.items():
                value = place.get(name)
                if value is None or (type(value) in (int, float) and least <= value <= most):
                    continue
                raise UnsupportedModel(
                    f"{self.model} has {prefix}{name} {repr(value)[:40]} in its config.json, no number from {least:g} to {most:g}; "
                    "correct the config"
                )

    def read_repeats(self, name: str, most: int) -> None:
        """Raise UnsupportedModel where GPT-Neo's [[kinds, times], ...] repeats kinds of attention more often than there can be layers."""
        for pair in self.config.get(name) or ():
            times = pair[-1] if isinstance(pair, list) and pair else None
            if type(times) is not int or not 0 <= times <= most:
                raise UnsupportedModel(
                    f"{self.model} has {name} in its config.json that repeats {repr(times)[:40]} times, no whole number up to {most:,}; "
                    "correct the config"
                )

    def divide(self, whole: int, parts: int, name: str = "hidden_size", divisor: str = "num_attention_heads") -> None:
        """Raise UnsupportedModel unless `whole` is a multiple of `parts`."""
        if whole % parts:
            raise UnsupportedModel(
                f"{self.model} has {name} {whole} in its config.json, no multiple of {divisor}, {parts}; correct the config"
            )
