"""How many weights a sparse GPT of a given shape has, and how many stay nonzero after training. No torch, no model.

`training.projection` keeps these numbers in a real model; a test compares the two. Paper: Sec. 2.1, App. A.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from extractor.spec.schema import MAX_BIGRAM_VOCABULARY, SparseModelSpec, SparsitySpec


class MatrixSize(NamedTuple):
    """A weight matrix of a block: `neurons` neurons or attention channels, each with `length` weights on its own side."""

    neurons: int
    length: int

    @property
    def entries(self) -> int:
        return self.neurons * self.length

    def protected(self, min_per_neuron: int) -> int:
        """Entries that stay because they are among the `min_per_neuron` largest of their neuron."""
        return self.neurons * min(min_per_neuron, self.length)


class TensorSize(NamedTuple):
    """Entries of one tensor, and those of them that are nonzero after training."""

    entries: int
    kept: int


def kept_entries(entries: int, fraction: float, protected: int = 0) -> int:
    """Entries of one tensor that stay nonzero: the fraction, but at least the protected ones, and at least one."""
    return max(1, protected, round(fraction * entries))


def block_matrices(shape: SparseModelSpec) -> tuple[MatrixSize, ...]:
    """The matrices of one block in order: c_attn, c_proj of attention, c_fc, with gates c_gate, c_proj of the MLP."""
    width, neurons, read, mixed = shape.d_model, shape.d_mlp, shape.d_model + shape.d_pos_emb, shape.n_head * shape.d_head
    into = (MatrixSize(neurons, read),) * (2 if shape.gated else 1)
    return MatrixSize(3 * mixed, read), MatrixSize(mixed, width), *into, MatrixSize(neurons, width)


def block_entries(shape: SparseModelSpec) -> int:
    """Entries of the matrices of all blocks."""
    return shape.n_layer * sum(matrix.entries for matrix in block_matrices(shape))


def kept_in_blocks(shape: SparseModelSpec, sparsity: SparsitySpec) -> int:
    """Nonzero entries of the matrices of all blocks after training."""
    return shape.n_layer * sum(_kept(matrix, sparsity) for matrix in block_matrices(shape))


def tensor_sizes(shape: SparseModelSpec, sparsity: SparsitySpec, vocab_size: int, logits_bias: bool = False) -> Iterator[TensorSize]:
    """Every tensor of the model except the bigram's. Norms, sinks, position channels and the bias of the logits stay dense."""
    width, read = shape.d_model, shape.d_model + shape.d_pos_emb

    def constrained(entries: int, fraction: float) -> TensorSize:
        return TensorSize(entries, kept_entries(entries, fraction))

    def dense(entries: int) -> TensorSize:
        return TensorSize(entries, entries)

    for _ in ("embedding", "unembedding"):
        yield constrained(vocab_size * width, sparsity.embedding_frac)
    if shape.added_positions:
        yield constrained(shape.n_ctx * width, sparsity.embedding_frac)
    elif shape.d_pos_emb:
        yield dense(shape.n_ctx * shape.d_pos_emb)
    for _ in range(shape.n_layer):
        for matrix in block_matrices(shape):
            yield TensorSize(matrix.entries, _kept(matrix, sparsity))
        for biases in (3 * shape.n_head * shape.d_head, width, *[shape.d_mlp] * (2 if shape.gated else 1), width):
            yield constrained(biases, sparsity.bias_frac)
        yield dense(2 * read + (shape.n_head if shape.sinks else 0))  # two norms, a sink for each head
    yield dense(width + (vocab_size if logits_bias else 0))


def _kept(matrix: MatrixSize, sparsity: SparsitySpec) -> int:
    return kept_entries(matrix.entries, sparsity.weight_frac, matrix.protected(sparsity.min_per_neuron))


def bigram_kind(shape: SparseModelSpec, vocab_size: int) -> str:
    """The kind of bigram of a model: the spec's, except that a dense table becomes 'counts' where the vocabulary is too large for one."""
    return "counts" if shape.bigram == "dense" and vocab_size > MAX_BIGRAM_VOCABULARY else shape.bigram


def bigram_entries(shape: SparseModelSpec, vocab_size: int) -> int:
    """Trained entries of the bigram."""
    return {
        "none": 0,
        "dense": vocab_size**2,
        "counts": vocab_size * min(shape.bigram_top, vocab_size),
        "low_rank": 2 * vocab_size * min(shape.bigram_rank, vocab_size),
    }[bigram_kind(shape, vocab_size)]
