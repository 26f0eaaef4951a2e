"""Bigram logits of every kind, against tables one can write down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_sparse_model import small_model, tokens

V = 50


def some_counts(seed: int = 0) -> np.ndarray:
    """A Zipfian (V, V) table, most of it zero, some rows empty."""
    generator = np.random.default_rng(seed)
    weight = 1 / np.arange(1, V + 1)
    found = generator.poisson(40 * np.outer(generator.permutation(weight), generator.permutation(weight))).astype(float)
    found[:3] = 0
    return found


def triple(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = counts.nonzero()
    shuffled = np.random.default_rng(1).permutation(len(rows))
    return rows[shuffled], columns[shuffled], counts[rows, columns][shuffled]


def smoothed(counts: np.ndarray) -> np.ndarray:
    """Probabilities of next tokens: 8 counts more a row, shared out by how common tokens are."""
    unigram = counts.sum(0) + 1
    found = counts + 8 * unigram / unigram.sum()
    return found / found.sum(1, keepdims=True)


def rows_of(model) -> torch.Tensor:
    """The whole table (V, V) a model adds to its logits."""
    with torch.no_grad():
        return model.bigram.add(model, torch.zeros(V, V), torch.arange(V))


@pytest.mark.parametrize("form", ["triple", "repeated pairs"])
@pytest.mark.parametrize("kind", ["dense", "counts", "low_rank"])
def test_dense_arrays_and_triples_fill_alike(kind: str, form: str):
    counts = some_counts()
    given = triple(counts)
    if form == "repeated pairs":
        rows, columns, halves = triple(counts / 2)
        given = (np.tile(rows, 2), np.tile(columns, 2), np.tile(halves, 2))
    first, second = (small_model(bigram=kind, bigram_rank=10, bigram_top=10) for _ in range(2))
    first.set_bigram(counts)
    second.set_bigram(given)
    assert torch.equal(rows_of(first), rows_of(second))


def test_dense_is_the_centred_log_of_the_smoothed_frequencies():
    model = small_model()
    model.set_bigram(some_counts())
    log = np.log(smoothed(some_counts()))
    assert np.abs(model.bigram_table.detach().numpy() - (log - log.mean(1, keepdims=True))).max() < 1e-5


@pytest.mark.parametrize("top", [1, 5, 12])
def test_counts_give_the_likeliest_tokens_their_share_and_the_rest_theirs(top: int):
    model = small_model(bigram="counts", bigram_top=top)
    model.set_bigram(some_counts())
    wanted = smoothed(some_counts())
    found = rows_of(model)
    shares = found.softmax(-1).numpy()
    for row in range(V):
        kept = model.bigram_index[row].tolist()
        assert len(set(kept)) == top
        assert min(wanted[row][kept]) >= np.sort(wanted[row])[-top] - 1e-12
        assert np.abs(shares[row][kept] - wanted[row][kept]).max() < 1e-5
    assert int(found.count_nonzero(-1).max()) <= top
    assert not found[torch.ones_like(found, dtype=torch.bool).scatter(1, model.bigram_index, False)].any(), "the rest of a row stays 0"


def test_every_entry_kept_is_the_whole_distribution():
    model = small_model(bigram="counts", bigram_top=V)
    model.set_bigram(some_counts())
    assert np.abs(rows_of(model).softmax(-1).numpy() - smoothed(some_counts())).max() < 1e-5


@pytest.mark.parametrize("rank", [1, 6, 20])
def test_low_rank_is_the_best_approximation_of_the_dense_table(rank: int):
    dense, model = small_model(), small_model(bigram="low_rank", bigram_rank=rank)
    dense.set_bigram(some_counts())
    model.set_bigram(some_counts())
    table = dense.bigram_table.detach().double()
    u, s, vh = torch.linalg.svd(table)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    # Subspace iteration has not quite converged where singular values are close; what counts is how well it does.
    error, least = (rows_of(model) - table).norm(), (best - table).norm()
    assert error <= least * 1.001
    assert torch.linalg.matrix_rank(rows_of(model)) <= rank


def test_filling_is_the_same_every_time():
    for kind in ("counts", "low_rank"):
        first, second = (small_model(seed, bigram=kind) for seed in (0, 1))
        first.set_bigram(some_counts())
        second.set_bigram(some_counts())
        assert torch.equal(rows_of(first), rows_of(second))


def test_large_vocabularies_are_filled_without_a_table_of_all_pairs():
    size = 40_000  # a dense table would be 6.4 GB
    generator = np.random.default_rng(0)
    pairs = (generator.integers(0, size, 200_000), generator.integers(0, size, 200_000) ** 2 // size, np.ones(200_000))
    shape = {"vocab_size": size, "n_layer": 1, "d_model": 8, "d_head": 8, "d_mlp": 8}
    counts = small_model(bigram="counts", bigram_top=8, **shape)
    counts.set_bigram(pairs)
    row = int(pairs[0][0])
    seen = set(pairs[1][pairs[0] == row].tolist())
    assert seen <= set(counts.bigram_index[row].tolist()) or len(seen) > 8
    low_rank = small_model(bigram="low_rank", bigram_rank=4, **shape)
    low_rank.set_bigram(pairs)
    added = low_rank.bigram.add(low_rank, torch.zeros(1, size), torch.tensor([row]))
    common, rare = np.bincount(pairs[1], minlength=size).argsort()[[-1, 0]]
    assert added[0, common] > added[0, rare] + 1


@pytest.mark.parametrize("kind", ["dense", "counts", "low_rank"])
def test_logits_and_gradients_are_those_of_the_table(kind: str):
    model, ids = small_model(bigram=kind, bigram_top=6, bigram_rank=5), tokens()
    plain = small_model(bigram="none")
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("bigram")})
    model.set_bigram(some_counts())
    table = rows_of(model)
    assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits + table[ids], atol=1e-4)
    weight = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
    (model.bigram.add(model, torch.zeros(*ids.shape, V), ids) * weight[ids]).sum().backward()
    seen = torch.bincount(ids.flatten(), minlength=V).float()[:, None]
    if kind == "dense":
        assert torch.allclose(model.bigram_table.grad, seen * weight, atol=1e-5)
    elif kind == "counts":
        assert torch.allclose(model.bigram_values.grad, seen * weight.gather(1, model.bigram_index), atol=1e-5)
    else:
        assert torch.allclose(model.bigram_left.grad, seen * (weight @ model.bigram_right.T), atol=1e-4)
        assert torch.allclose(model.bigram_right.grad, model.bigram_left.T @ (seen * weight), atol=1e-4)


def test_an_untrained_bigram_says_nothing_but_can_learn():
    for kind in ("counts", "low_rank"):
        torch.manual_seed(0)
        from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM

        model = SparseGPTForCausalLM(SparseGPTConfig(vocab_size=V, n_layer=1, d_model=8, d_head=8, d_mlp=8, bigram=kind))
        assert not rows_of(model).any()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        assert any(p.grad.any() for n, p in model.named_parameters() if n.startswith("bigram"))


def test_counts_of_another_vocabulary_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match=r"shape \(49, 50\)"):
        model.set_bigram(np.zeros((49, 50)))
    with pytest.raises(ValueError, match="outside the vocabulary of 50"):
        model.set_bigram((np.array([0]), np.array([50]), np.array([1.0])))
    with pytest.raises(ValueError, match=r"shapes \(2,\), \(1,\), \(1,\)"):
        model.set_bigram((np.array([0, 1]), np.array([5]), np.array([1.0])))


def test_a_model_without_a_bigram_takes_no_counts():
    model = small_model(bigram="none")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.set_bigram(some_counts())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
