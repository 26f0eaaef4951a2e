"""Configuration of the weight-sparse GPT. Travels with saved models, so it imports nothing of this project."""

from transformers import PreTrainedConfig

GATED_PLACES = ("mlp.gate", "mlp.up")  # only in models with gated MLPs
PLACES = (
    *("attn.act_in", "attn.q", "attn.k", "attn.v", "attn.resid_delta"),
    *("mlp.act_in", *GATED_PLACES, "mlp.post_act", "mlp.resid_delta"),
)
_COUNTS = ("vocab_size", "n_layer", "d_model", "d_head", "d_mlp", "n_ctx", "bigram_top", "bigram_rank")


class SparseGPTConfig(PreTrainedConfig):
    """Shape of a SparseGPT (Gao et al. 2025, arXiv 2511.13653, Sec. 2.1 and App. A.1).

    vocab_size, n_layer, d_model, d_head, d_mlp   the usual GPT shape
    heads             number of heads; None: d_model / d_head
    n_ctx             tokens it was trained on; without positions longer inputs run too
    activation        'gelu' (exact), 'gelu_tanh' (GPT-2's approximation), 'relu' or 'silu'
    gated             MLPs with a gate: activation(gate) times up, both nodes of their own (ours, as in Llama)
    rotary            rotary positions: the angle by which each pair of channels of a head turns per token, in radians; None: none
    rotary_scale      factor of the turned queries and keys
    query_key_norm    RMSNorms of the queries and keys of every head before they turn (as in Qwen3)
    parallel          attention and MLP of a block read the same residual (as in Pythia)
    activation_frac   AbsTopK keeps this share of the channels of every site, rounded to the nearest number
    site_k            the numbers themselves instead, by site: {'attn.q': 15}; a site that is not named keeps all
    sparse_layers     [first, last]: at the sites of other layers AbsTopK keeps all channels; None: as said for every layer
    d_pos_emb         position channels, normed apart and concatenated to every read before its AbsTopK; 0: none
    added_positions   a table (n_ctx, d_model) added to the embeddings (published checkpoints; the paper: none)
    sinks             one learned logit per head in the softmax denominator, its value zero
    bigram            logits added by current token: 'none', 'dense' (V, V), 'counts' (bigram_top entries a row), 'low_rank' (bigram_rank)
    logits_bias       one number per token added to all logits (published checkpoints; the paper: none)

    Raises ValueError for shapes that no model can have.
    """

    model_type = "sparse_gpt"

    vocab_size: int = 1024
    n_layer: int = 2
    d_model: int = 128
    d_head: int = 16
    d_mlp: int = 512
    n_ctx: int = 64
    activation: str = "gelu"
    heads: int | None = None
    gated: bool = False
    rotary: list[float] | None = None
    rotary_scale: float = 1.0
    query_key_norm: bool = False
    parallel: bool = False
    activation_frac: float = 0.25
    site_k: dict[str, int] | None = None
    sparse_layers: list[int] | None = None
    d_pos_emb: int = 0
    added_positions: bool = False
    sinks: bool = True
    bigram: str = "dense"
    bigram_top: int = 32
    bigram_rank: int = 64
    logits_bias: bool = False
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.1
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0

    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_ctx",
    }

    def __post_init__(self, **kwargs):
        for name in _COUNTS:
            _check_count(name, getattr(self, name), 1)
        _check_count("d_pos_emb", self.d_pos_emb, 0)
        if self.heads is not None:
            _check_count("heads", self.heads, 1)
        elif self.d_model % self.d_head:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of d_head ({self.d_head})")
        if not 0 < self.activation_frac <= 1:
            raise ValueError(f"activation_frac ({self.activation_frac}) must lie in (0, 1]")
        if self.activation not in ("gelu", "gelu_tanh", "relu", "silu"):
            raise ValueError(f"activation ({self.activation!r}) must be 'gelu', 'gelu_tanh', 'relu' or 'silu'")
        if self.rotary is not None and not 0 < 2 * len(self.rotary) <= self.d_head:
            raise ValueError(f"rotary names {len(self.rotary)} pairs of channels; a head has {self.d_head} channels")
        if self.rotary is not None and (self.d_pos_emb or self.added_positions):
            raise ValueError("rotary positions and a position table exclude each other")
        if self.bigram not in ("none", "dense", "counts", "low_rank"):
            raise ValueError(f"bigram ({self.bigram!r}) must be 'none', 'dense', 'counts' or 'low_rank'")
        if self.d_pos_emb and self.added_positions:
            raise ValueError("d_pos_emb and added_positions exclude each other: there is one position table")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings: embedding and unembedding have their own sparsity and cannot be tied")
        for place, k in (self.site_k or {}).items():
            if place not in self.places:
                raise ValueError(f"site_k names {place!r}; the sites are {', '.join(self.places)}")
            _check_count(f"site_k[{place!r}]", k, 1)
        if self.sparse_layers is not None:
            if len(self.sparse_layers) != 2:
                raise ValueError(f"sparse_layers ({self.sparse_layers}) must be [first, last]")
            for layer in self.sparse_layers:
                _check_count("sparse_layers", layer, 0)
            if not self.sparse_layers[0] <= self.sparse_layers[1] < self.n_layer:
                raise ValueError(f"sparse_layers ({self.sparse_layers}) must be layers of the {self.n_layer}, the first not after the last")
        super().__post_init__(**kwargs)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer is one of `sparse_layers`."""
        return self.sparse_layers is None or self.sparse_layers[0] <= layer <= self.sparse_layers[1]

    @property
    def n_head(self) -> int:
        return self.d_model // self.d_head if self.heads is None else self.heads

    @property
    def places(self) -> tuple[str, ...]:
        """The sites of a block in forward order."""
        return PLACES if self.gated else tuple(place for place in PLACES if place not in GATED_PLACES)

    @property
    def is_plain(self) -> bool:
        """Whether its blocks are those of the paper: no gates, no rotary positions, no norms of queries and keys, not parallel."""
        return not (self.gated or self.rotary or self.query_key_norm or self.parallel)

    def kept(self, place: str, width: int) -> int:
        """How many of a site's channels AbsTopK keeps."""
        if self.site_k is not None:
            return min(self.site_k.get(place, width), width)
        return max(1, round(self.activation_frac * width))


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} ({value!r}) must be a whole number of at least {least}")
