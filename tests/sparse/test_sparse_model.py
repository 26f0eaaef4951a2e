"""The weight-sparse GPT: its parts against reference implementations and hand-worked numbers, and as a transformers model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from worlds import python

import extractor.sparse  # noqa: F401 - registers the architecture
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM
from extractor.sparse.abs_topk import abs_topk, abs_topk_mask
from extractor.sparse.modeling_sparse_gpt import Attention, Context, RMSNorm


def small_model(seed: int = 0, **changes) -> SparseGPTForCausalLM:
    torch.manual_seed(seed)
    shape = {"vocab_size": 50, "n_layer": 2, "d_model": 32, "d_head": 8, "d_mlp": 64, "n_ctx": 16}
    model = SparseGPTForCausalLM(SparseGPTConfig(**(shape | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sink_logit", "bigram_table")):
                parameter.normal_()
    return model


def tokens(rows: int = 2, length: int = 10, seed: int = 1) -> torch.Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(seed))


def plain_topk(x: torch.Tensor, k: int) -> torch.Tensor:
    """The textbook AbsTopK: topk, then scatter."""
    where = x.abs().topk(k, dim=-1).indices
    return torch.zeros_like(x).scatter(-1, where, x.gather(-1, where))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    width=st.integers(1, 40),
    share=st.floats(0, 1),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_abs_topk_equals_topk_and_scatter_in_values_and_gradients(shape, width, share, double, seed):
    k = max(1, round(share * width))
    generator = torch.Generator().manual_seed(seed)
    fast = torch.randn(*shape, width, generator=generator).to(torch.float64 if double else torch.float32).requires_grad_()
    plain = fast.detach().clone().requires_grad_()
    gradient = torch.randn(*shape, width, generator=generator).to(fast.dtype)
    one, two = abs_topk(fast, k), plain_topk(plain, k)
    assert torch.equal(one, two)
    one.backward(gradient)
    two.backward(gradient)
    assert torch.equal(fast.grad, plain.grad)


def test_abs_topk_takes_strided_input():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).T
    assert not x.is_contiguous()
    assert torch.equal(abs_topk(x, 2), plain_topk(x, 2))


def test_abs_topk_keeps_ties_with_the_kth():
    assert abs_topk_mask(torch.tensor([1.0, -1.0, 0.5]), 1).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_abs_topk_by_hand(dtype: torch.dtype):
    assert abs_topk(torch.tensor([3.0, -4.0, 0.5, -0.1], dtype=dtype), 2).tolist() == [3.0, -4.0, 0.0, 0.0]


def test_rms_norm_by_hand_and_zero_stays_zero():
    norm = RMSNorm(2, 0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    x = torch.tensor([[3.0, 4.0], [0.0, 5.0]])  # RMS sqrt(12.5), both
    root = math.sqrt(12.5)
    assert torch.allclose(norm(x), torch.tensor([[3 / root, 8 / root], [0.0, 10 / root]]), atol=1e-6)
    assert torch.equal(RMSNorm(4, 1e-5)(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_attention_with_a_sink_by_hand():
    config = SparseGPTConfig(d_model=2, d_head=2, n_layer=1, d_mlp=4, vocab_size=4, activation_frac=1.0, sinks=True)
    attention = Attention(config)
    with torch.no_grad():
        attention.c_attn.weight.copy_(torch.cat([torch.eye(2), torch.eye(2), 2 * torch.eye(2)]))
        attention.c_attn.bias.zero_()
        attention.c_proj.weight.copy_(torch.eye(2))
        attention.c_proj.bias.copy_(torch.tensor([0.0, 0.5]))
        attention.sink_logit.fill_(math.log(3))
    x = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    mask = torch.tensor([[0.0, torch.finfo(torch.float32).min], [0.0, 0.0]])
    # Token 0: score 1/sqrt(2) with itself. Token 1: 1/sqrt(2) with token 0, 2/sqrt(2) with itself. The sink weighs 3 and gives zero.
    one, two = math.exp(1 / math.sqrt(2)), math.exp(math.sqrt(2))
    first = [2 * one / (one + 3), 0.5]
    second = [2 * (one + two) / (one + two + 3), 2 * two / (one + two + 3) + 0.5]
    assert torch.allclose(attention(x, Context(mask))[0], torch.tensor([first, second]), atol=1e-6)


def test_attention_without_a_sink_sums_to_one():
    config = SparseGPTConfig(d_model=2, d_head=2, n_layer=1, d_mlp=4, vocab_size=4, activation_frac=1.0, sinks=False)
    attention = Attention(config)
    with torch.no_grad():
        attention.c_attn.weight.zero_()
        attention.c_attn.bias.copy_(torch.tensor([0.0, 0, 0, 0, 7, -3]))  # v is constant: any mixture of it is itself
        attention.c_proj.weight.copy_(torch.eye(2))
        attention.c_proj.bias.zero_()
    assert attention.sink_logit is None
    out = attention(torch.randn(1, 3, 2), Context(torch.zeros(3, 3)))
    assert torch.allclose(out, torch.tensor([7.0, -3.0]).expand(1, 3, 2), atol=1e-6)


@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize("bigram", ["dense", "none"])
def test_sinks_and_bigram_are_parts_one_can_leave_out(sinks: bool, bigram: str):
    model = small_model(sinks=sinks, bigram=bigram)
    names = [name for name, _ in model.named_parameters()]
    assert any("sink_logit" in n for n in names) == sinks
    assert ("bigram_table" in names) == (bigram == "dense")
    ids = tokens()
    logits = model(input_ids=ids).logits
    if bigram == "dense":
        table = model.bigram_table.detach().clone()
        model.bigram_table.data.zero_()
        assert torch.allclose(logits - model(input_ids=ids).logits, table[ids], atol=1e-5)
    if sinks:
        with torch.no_grad():
            for block in model.blocks:
                block.attn.sink_logit.add_(5)
        assert not torch.allclose(logits, model(input_ids=ids).logits)


def test_the_list_of_sublayers_is_the_forward_pass():
    model, ids = small_model(), tokens()
    h, context = model.embed(ids), model.context(ids.shape[1])
    for index in range(model.n_sublayers):
        h = model.sublayer(index, h, context)
    assert model.n_sublayers == 4
    assert torch.equal(model.unembed(h, ids), model(input_ids=ids).logits)


def test_every_site_keeps_its_share_of_channels():

    model = small_model(activation_frac=0.25)
    with model.record() as values:
        model(input_ids=tokens())
    assert len(values) == 16
    for site, x in values.items():
        assert int(x.count_nonzero(-1).max()) <= x.shape[-1] / 4, site
        assert int(x.count_nonzero(-1).max()) > 0, site


def test_changing_a_token_leaves_all_earlier_logits_alone():
    model, ids = small_model(), tokens(1, 8)
    before = model(input_ids=ids).logits
    for position in range(8):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 1) % 50
        after = model(input_ids=changed).logits
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position], before[:, position])


def test_an_earlier_token_reaches_later_logits():
    model, ids = small_model(), tokens(1, 8)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 50
    assert not torch.equal(model(input_ids=ids).logits[:, -1], model(input_ids=changed).logits[:, -1])


def test_right_padding_leaves_the_logits_before_it_alone():
    model, ids = small_model(), tokens(2, 6)
    padded = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    alone = model(input_ids=ids).logits
    mask = (torch.arange(10) < 6).long().expand(2, 10)
    assert torch.allclose(model(input_ids=padded).logits[:, :6], alone, atol=1e-5)
    assert torch.allclose(model(input_ids=padded, attention_mask=mask).logits[:, :6], alone, atol=1e-5)


def test_left_padding_with_a_mask_leaves_the_last_logits_alone():
    model, ids = small_model(), tokens(2, 6)
    padded = torch.cat([torch.full((2, 4), 7), ids], dim=1)
    mask = (torch.arange(10) >= 4).long().expand(2, 10)
    with_mask = model(input_ids=padded, attention_mask=mask).logits
    assert torch.allclose(with_mask[:, -1], model(input_ids=ids).logits[:, -1], atol=1e-5)
    assert not torch.allclose(model(input_ids=padded).logits[:, -1], with_mask[:, -1], atol=1e-3)
    assert with_mask.isfinite().all()


def test_the_loss_is_next_token_cross_entropy():
    model, ids = small_model(), tokens()
    out = model(input_ids=ids, labels=ids)
    log_p = out.logits.log_softmax(-1)
    by_hand = -torch.stack([log_p[b, t, ids[b, t + 1]] for b in range(2) for t in range(9)]).mean()
    assert out.loss.item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_labels_of_minus_100_do_not_count():
    model, ids = small_model(), tokens()
    labels = ids.clone()
    labels[:, 5:] = -100
    short = model(input_ids=ids[:, :5], labels=ids[:, :5]).loss
    assert model(input_ids=ids, labels=labels).loss.item() == pytest.approx(short.item(), abs=1e-5)


def test_only_the_last_logits_can_be_asked_for():
    model, ids = small_model(), tokens()
    assert torch.allclose(model(input_ids=ids, logits_to_keep=1).logits, model(input_ids=ids).logits[:, -1:], atol=1e-6)


def test_greedy_generation_appends_the_largest_logit():
    model, ids = small_model(), tokens(1, 4)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    by_hand = ids
    for _ in range(5):
        by_hand = torch.cat([by_hand, model(input_ids=by_hand).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, by_hand)


def test_generation_with_left_padding_equals_generation_alone():
    model, ids = small_model(), tokens(1, 4)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(7) >= 3).long()[None]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], alone)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="multiple of d_head"):
        SparseGPTConfig(d_model=30, d_head=16)
    with pytest.raises(ValueError, match="activation_frac"):
        SparseGPTConfig(activation_frac=0.0)


@pytest.mark.parametrize("changes", [{}, {"sinks": False, "bigram": "none", "activation_frac": 1.0}], ids=["default", "plain"])
def test_saving_and_loading_gives_the_same_bits(tmp_path: Path, changes: dict):
    model, ids = small_model(**changes), tokens()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is SparseGPTForCausalLM
    assert loaded.config.activation_frac == model.config.activation_frac
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_saved_model_loads_through_its_own_code_where_we_are_not_installed(tmp_path: Path):
    model, ids = small_model(), tokens()
    model.save_pretrained(tmp_path / "model")
    torch.save(model(input_ids=ids).logits, tmp_path / "logits.pt")
    out = python(
        """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
here = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(here / 'model', trust_remote_code=True).eval()
ids = torch.randint(50, (2, 10), generator=torch.Generator().manual_seed(1))
assert 'extractor' not in sys.modules
print(type(model).__name__, torch.equal(model(input_ids=ids).logits, torch.load(here / 'logits.pt')))
""",
        str(tmp_path),
        isolated=True,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert out.split() == ["SparseGPTForCausalLM", "True"]


def test_a_saved_model_does_not_run_its_code_unasked(tmp_path: Path):
    small_model().save_pretrained(tmp_path / "model")
    out = python(
        """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    print('trust_remote_code' in str(error))
""",
        str(tmp_path / "model"),
        isolated=True,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert out.strip().endswith("True")


def test_initial_weights_have_fan_in_scale():
    model = small_model(d_model=64, d_mlp=256)
    mlp = model.blocks[0].mlp
    assert mlp.c_fc.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert mlp.c_proj.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert model.transformer.wte.weight.std().item() == pytest.approx(0.1, rel=0.05)
