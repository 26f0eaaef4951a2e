"""What is said of a model's inside: counted by hand on a model that a person can compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from micro import A, B, micro_model
from worlds import VOCABULARY, environment

from extractor.spec.schema import OptimSpec, SparseModelSpec, SparsitySpec, TrainSpec
from extractor.training.projection import constraints
from extractor.training.statistics import activation_statistics, kurtosis, weight_statistics
from extractor.training.train_sparse import train_sparse


def test_weights_and_dead_channels_of_the_model_on_paper():
    model = micro_model()
    found = weight_statistics(model, constraints(model, SparsitySpec()))
    # embeddings 2, v.0 and its write 2, neurons 0 to 3 read 4, write 2, one output bias, unembedding 3
    assert found["nonzeros"] == 14
    # neurons 2 and 3 write nothing; of the values only v.0 is read into and written out
    assert found["dead_neurons"] == pytest.approx((2 + 3) / 8)
    assert found["nonzero_share"] == pytest.approx(14 / sum(c.tensor.numel() for c in constraints(model, SparsitySpec())))


def test_activations_of_the_model_on_paper():
    model = micro_model()
    found = activation_statistics(model, torch.tensor([[A], [B]]))
    # neuron 0 speaks at A, neuron 1 at B, neuron 2 at A; neuron 3 reads what attention's bias leaves alone: nothing
    assert found["silent_neurons"] == pytest.approx(1 / 4)
    assert found["activation_sparsity"] == pytest.approx(count_zeros(model, torch.tensor([[A], [B]])))


def count_zeros(model, ids: torch.Tensor) -> float:
    """By hooks of our own."""
    shares: list[float] = []
    from extractor.circuits.sites import sites

    handles = [
        site.register_forward_hook(lambda _m, _i, x: shares.append(sum(v == 0 for v in x.flatten().tolist()) / x.numel()))
        for site in sites(model).values()
    ]
    model(input_ids=ids)
    for handle in handles:
        handle.remove()
    assert len(shares) == 8
    return sum(shares) / 8


def test_kurtosis_is_three_for_a_gaussian_and_the_width_for_one_channel():
    torch.manual_seed(0)
    assert kurtosis(torch.randn(200, 4096)) == pytest.approx(3.0, abs=0.05)
    assert kurtosis(torch.eye(8)[:3]) == pytest.approx(8.0)
    assert kurtosis(torch.ones(5, 7)) == pytest.approx(1.0)
    assert kurtosis(torch.cat([torch.ones(1, 4), torch.zeros(1, 4)])) == pytest.approx(1.0)  # a token without residual is left out


def test_every_logged_step_counts_the_weights(corpus, tmp_path: Path):
    spec = TrainSpec(
        model=SparseModelSpec(n_layer=1, d_model=16, d_head=8, mlp_ratio=2, n_ctx=16),
        sparsity=SparsitySpec(weight_frac=0.3, embedding_frac=0.2),
        optim=OptimSpec(steps=10, batch=4, context=16, lr=0.05),
    )
    model = train_sparse(spec, corpus, VOCABULARY, 0, environment(tmp_path))
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    constrained = constraints(model, spec.sparsity)
    matrices, biases = (sum(c.kept(c.target, 4) for c in constrained if c.tensor.dim() == dim) for dim in (2, 1))
    assert log[-1]["nonzeros"] == sum(int(c.tensor.count_nonzero()) for c in constrained)
    assert matrices <= log[-1]["nonzeros"] <= matrices + biases  # a bias may hold zeros of its own
    assert [entry["nonzeros"] for entry in log] == sorted((entry["nonzeros"] for entry in log), reverse=True)
    assert {"loss", "gradient_rms", "lr", "nonzeros", "nonzero_share", "dead_neurons"} <= log[0].keys()
