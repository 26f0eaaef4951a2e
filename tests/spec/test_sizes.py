"""The sizes computed from a spec are those of a real model."""

from __future__ import annotations

import pytest

from extractor.spec.schema import MAX_BIGRAM_VOCABULARY, SparseModelSpec, SparsitySpec
from extractor.spec.sizes import bigram_entries, bigram_kind, block_entries, block_matrices, kept_in_blocks, tensor_sizes
from extractor.training.projection import constraints
from extractor.training.train_sparse import new_sparse_gpt

VOCABULARY = 60
SHAPE = {"n_layer": 2, "d_model": 32, "d_head": 8, "n_ctx": 16}


@pytest.mark.parametrize(
    ("shape", "sparsity"),
    [
        ({}, {}),
        ({"d_pos_emb": 4, "sinks": False, "mlp_ratio": 2}, {"weight_frac": 0.5}),
        ({"added_positions": True}, {"weight_frac": 0.001, "min_per_neuron": 40}),
        ({"bigram": "counts", "bigram_top": 8}, {"bias_frac": 0.001, "min_per_neuron": 0}),
        ({"bigram": "low_rank", "bigram_rank": 70}, {"embedding_frac": 1.0}),
        ({"bigram": "none"}, {"weight_frac": 1.0}),
    ],
    ids=["default", "position channels", "protected whole neurons", "counts", "low rank", "no bigram"],
)
@pytest.mark.parametrize("logits_bias", [False, True])
def test_sizes_are_those_of_the_model_and_its_constraints(shape: dict, sparsity: dict, logits_bias: bool):
    asked, kept = SparseModelSpec(**SHAPE, **shape), SparsitySpec(**sparsity)
    model = new_sparse_gpt(asked, asked.n_layer, VOCABULARY, 0, logits_bias)
    bigram = sum(getattr(model, name).numel() for name in model.bigram.tensors if name != "bigram_index")
    constrained = constraints(model, kept)
    sizes = list(tensor_sizes(asked, kept, VOCABULARY, logits_bias))

    found = [(c.tensor.numel(), c.kept(c.target, kept.min_per_neuron)) for c in constrained]
    dense = sum(p.numel() for p in model.parameters()) - bigram - sum(entries for entries, _ in found)
    assert sum(size.entries for size in sizes) == sum(entries for entries, _ in found) + dense
    assert sum(size.kept for size in sizes) == sum(count for _, count in found) + dense

    blocks = [c for c in constrained if c.neuron_axis is not None]
    neurons = [c.tensor.numel() // c.tensor.shape[c.neuron_axis] for c in blocks]
    assert [(c.tensor.numel(), n) for c, n in zip(blocks, neurons, strict=True)] == [
        (matrix.entries, matrix.neurons) for _ in range(asked.n_layer) for matrix in block_matrices(asked)
    ]
    assert block_entries(asked) == sum(c.tensor.numel() for c in blocks)
    assert kept_in_blocks(asked, kept) == sum(c.kept(c.target, kept.min_per_neuron) for c in blocks)

    assert (bigram_kind(asked, VOCABULARY), bigram_entries(asked, VOCABULARY)) == (model.config.bigram, bigram)


def test_a_dense_bigram_becomes_counts_beyond_the_largest_vocabulary_for_a_table():
    shape = SparseModelSpec(bigram_top=32)
    assert (bigram_kind(shape, MAX_BIGRAM_VOCABULARY), bigram_entries(shape, MAX_BIGRAM_VOCABULARY)) == ("dense", MAX_BIGRAM_VOCABULARY**2)
    assert (bigram_kind(shape, MAX_BIGRAM_VOCABULARY + 1), bigram_entries(shape, 10_000)) == ("counts", 320_000)
