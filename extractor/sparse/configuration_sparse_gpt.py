"""Configuration of the weight-sparse GPT. Travels with saved models, so it imports nothing of this project."""

from transformers import PreTrainedConfig


class SparseGPTConfig(PreTrainedConfig):
    """Shape of a SparseGPT (Gao et al. 2025, arXiv 2511.13653, Sec. 2.1 and App. A.1).

    vocab_size, n_layer, d_model, d_head, d_mlp   the usual GPT shape; d_model / d_head heads
    n_ctx             tokens it was trained on; without position channels longer inputs run too
    activation        'gelu' (exact) or 'relu'
    activation_frac   AbsTopK keeps this share of the channels of every site
    d_pos_emb         position channels, normed apart and concatenated to every read before its AbsTopK; 0: none
    sinks             one learned logit per head in the softmax denominator, its value zero
    bigram            logits added by current token: 'none', 'dense' (V, V), 'counts' (bigram_top entries a row), 'low_rank' (bigram_rank)
    """

    model_type = "sparse_gpt"

    vocab_size: int = 1024
    n_layer: int = 2
    d_model: int = 128
    d_head: int = 16
    d_mlp: int = 512
    n_ctx: int = 64
    activation: str = "gelu"
    activation_frac: float = 0.25
    d_pos_emb: int = 0
    sinks: bool = True
    bigram: str = "dense"
    bigram_top: int = 32
    bigram_rank: int = 64
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.1
    tie_word_embeddings: bool = False
    use_cache: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0

    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}  # noqa: RUF012

    def __post_init__(self, **kwargs):
        if self.d_model % self.d_head:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of d_head ({self.d_head})")
        if not 0 < self.activation_frac <= 1:
            raise ValueError(f"activation_frac ({self.activation_frac}) must lie in (0, 1]")
        super().__post_init__(**kwargs)

    @property
    def n_head(self) -> int:
        return self.d_model // self.d_head
