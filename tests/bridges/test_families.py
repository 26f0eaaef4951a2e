"""Of every family of dense models: the sparse GPT that starts from its weights computes what it does, alone and through the bridges."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, MistralConfig, Qwen2Config, Qwen3Config

from extractor.bridges.as_sparse import dense_as_sparse
from extractor.bridges.basis import sparsest_basis, sparsest_turns
from extractor.bridges.initialisation import start_from_dense
from extractor.bridges.pair import new_pair
from extractor.errors import UnsupportedModel
from extractor.models.dense.base import residuals, tail
from extractor.models.load import DenseModel
from extractor.spec.schema import BridgeSpec, OptimSpec, SparseModelSpec
from tests.models.test_dense import gpt2, gpt_neo, llama, neox, opt, phi, rotary, tokens

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 100.0}
FAMILIES = {
    "gpt2": lambda: gpt2(tie_word_embeddings=False, activation_function="gelu"),
    "gpt_neo": lambda: gpt_neo(activation_function="gelu"),
    "gpt_neox": lambda: neox(False),
    "gpt_neox-partly": lambda: neox(False, rotary_pct=0.5, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
    "gpt_neox-parallel": lambda: neox(True, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
    "phi": lambda: phi(num_key_value_heads=2, hidden_act="gelu"),
    "opt": opt,
    "llama": llama,
    "llama-biases": lambda: llama("eager", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-llama3": lambda: llama(rope_parameters={**LLAMA3, "rope_theta": 100.0}),
    "llama-yarn": lambda: llama(rope_parameters=YARN),
    "mistral": lambda: rotary(MistralConfig, sliding_window=256),
    "qwen2": lambda: rotary(Qwen2Config),
    "qwen3": lambda: rotary(Qwen3Config, head_dim=16),
}
every_family = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())


def given(model) -> DenseModel:
    return DenseModel(model.eval().requires_grad_(False), "a model", {"model": "a model"})


@every_family
@torch.no_grad()
def test_a_dense_model_as_a_sparse_one_has_its_logits(make):
    model, ids = make(), tokens()
    sparse = dense_as_sparse(given(model))
    assert sparse.config.activation_frac == 1
    torch.testing.assert_close(sparse(input_ids=ids).logits, model(ids).logits, rtol=2e-4, atol=2e-4)
    assert (sparse.config.bos_token_id, sparse.config.eos_token_id) == (0, 0)


@every_family
@pytest.mark.parametrize("width", [32, 48], ids=["as wide", "wider"])
@torch.no_grad()
def test_training_starts_where_the_dense_model_is(make, width: int):
    """Alone, and in passes that cross at every site, both ways."""
    model, ids = make(), tokens()
    shape = SparseModelSpec(d_model=width, n_ctx=16, activation_frac=1.0, bigram="none")
    pair = new_pair(given(model), BridgeSpec(init="dense", encoder_frac=1.0, model=shape, optim=OptimSpec(context=12)), 0)
    samples = [h.flatten(0, 1) for h in residuals(pair.dense, ids)]
    start_from_dense(pair, samples)
    wanted = model(ids).logits
    torch.testing.assert_close(pair.sparse(input_ids=ids).logits, wanted, rtol=1e-3, atol=1e-3)
    context, own = pair.sparse.context(ids.shape[1]), pair.dense.context(ids)
    h = pair.sparse.embed(ids, context)
    for index, (site, dense) in enumerate(zip(pair.sites, residuals(pair.dense, ids), strict=True)):
        crossed = pair.sparse.unembed(tail(pair.sparse, index, site.encode(dense), context), ids)
        torch.testing.assert_close(crossed, wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(pair.dense.unembed(tail(pair.dense, index, site.decode(h), own)), wanted, rtol=1e-3, atol=1e-3)
        if index < pair.sparse.n_sublayers:
            h = pair.sparse.sublayer(index, h, context)


def test_what_a_sparse_gpt_has_no_blocks_for_is_refused():
    with pytest.raises(UnsupportedModel, match="cannot be pruned as it is"):
        dense_as_sparse(given(rotary(Gemma2Config, "eager")))


def test_pairs_that_turn_are_rotated_in_themselves_and_no_angle_is_sparser():
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) ** 3 @ torch.linalg.qr(torch.randn(6, 6))[0]
    found = sparsest_turns(vectors, 2)
    assert torch.allclose(found @ found.T, torch.eye(6), atol=1e-5)
    allowed = torch.eye(6)
    allowed[[0, 2, 1, 3], [2, 0, 3, 1]] = 1
    allowed[4:, 4:] = 1
    assert not found[allowed == 0].any()
    best = (vectors @ found.T).pow(4).sum(0)
    for angle in torch.linspace(0, torch.pi, 50):
        turn = torch.eye(6)
        turn[0, 0] = turn[2, 2] = angle.cos()
        turn[0, 2], turn[2, 0] = -angle.sin(), angle.sin()
        assert (vectors @ turn.T).pow(4).sum(0)[[0, 2]].sum() <= best[[0, 2]].sum() * (1 + 1e-5)
    assert torch.equal(sparsest_turns(vectors, 0), sparsest_basis(vectors))
