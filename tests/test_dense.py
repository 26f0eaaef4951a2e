"""GPT-2 as a list of sublayers."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel
from worlds import VOCABULARY, random_gpt2

from extractor.dense.base import residuals, wrap_dense
from extractor.dense.train import cosine
from extractor.errors import UnsupportedModel

either_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(2))


@either_attention
@torch.no_grad()
def test_the_sublayers_give_hugging_faces_logits_bit_for_bit(attention: str):
    model, ids = random_gpt2(attention=attention), tokens()
    dense = wrap_dense(model)
    found = residuals(dense, ids)
    assert len(found) == 2 * 2 + 1
    assert {tuple(h.shape) for h in found} == {(3, 12, 32)}
    assert torch.equal(dense.unembed(found[-1]), model(input_ids=ids).logits)


@either_attention
@torch.no_grad()
def test_every_tail_from_every_residual_gives_the_same_logits(attention: str):
    model, ids = random_gpt2(attention=attention), tokens()
    dense, logits = wrap_dense(model), model(input_ids=ids).logits
    for start, h in enumerate(residuals(dense, ids)):
        mask = dense.mask(h)
        for index in range(start, dense.n_sublayers):
            h = dense.sublayer(index, h, mask)
        assert torch.equal(dense.unembed(h), logits), start


@either_attention
@torch.no_grad()
def test_the_residuals_are_those_of_hugging_face(attention: str):
    model, ids = random_gpt2(attention=attention), tokens()
    theirs = model(input_ids=ids, output_hidden_states=True).hidden_states
    ours = residuals(wrap_dense(model), ids)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[2], theirs[1])


@either_attention
@torch.no_grad()
def test_the_sublayers_are_causal(attention: str):
    model, ids = random_gpt2(attention=attention), tokens()
    dense, changed = wrap_dense(model), ids.clone()
    changed[:, 6] = (ids[:, 6] + 1) % VOCABULARY
    before, after = residuals(dense, ids)[-1], residuals(dense, changed)[-1]
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_other_families_are_refused():
    model = BertLMHeadModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(UnsupportedModel, match="'bert' cannot be bridged; supported: gpt2"):
        wrap_dense(model)


def test_a_model_type_that_is_no_name_is_refused():
    model = random_gpt2(n_layer=1)
    model.config.model_type = "../gpt2"
    with pytest.raises(UnsupportedModel):
        wrap_dense(model)


def test_the_cosine_by_hand():
    factors = [cosine(step, 100, 0.1) for step in (0, 4, 9, 10, 55, 100)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1])
