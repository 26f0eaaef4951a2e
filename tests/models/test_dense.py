"""Every family of dense models as a list of sublayers, held against Hugging Face's own forward bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.activations import ACT2FN
from worlds import python, random_gpt2

from extractor.errors import UnsupportedModel
from extractor.models.dense.base import DenseSublayers, GPTWeights, Norm, dense_types, residuals, tail, unsupported, wrap_dense
from extractor.models.shape import DenseShape
from extractor.training.train_gpt2 import cosine

VOCABULARY = 50
SUPPORTED = "gemma2, gpt2, gpt_neo, gpt_neox, llama, mistral, opt, phi, qwen2, qwen3"
POSITIONS = 16
SHARED = {"vocab_size": VOCABULARY, "hidden_size": 32, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}


def built(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """A random model in which no gain is 1 and no bias 0."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p += 0.3 * torch.randn_like(p)
    return model


def gpt2(attention: str = "sdpa", **changes) -> PreTrainedModel:
    return built(GPT2Config(**SHARED, n_positions=POSITIONS, n_layer=2, n_head=4, **changes), attention)


def gpt_neo(types: tuple[str, ...] = ("global", "global"), window: int = 3, **changes) -> PreTrainedModel:
    shape = {"max_position_embeddings": POSITIONS, "num_layers": 2, "num_heads": 4, "window_size": window}
    return built(GPTNeoConfig(**SHARED, **shape, attention_types=[[list(types), 1]], **changes), "eager")


def llama(attention: str = "sdpa", **changes) -> PreTrainedModel:
    shape = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return built(LlamaConfig(**(SHARED | shape | {"max_position_embeddings": POSITIONS} | changes)), attention)


def rotary(kind: type[PreTrainedConfig], attention: str = "sdpa", **changes) -> PreTrainedModel:
    """A Llama's relative; the second layer sees a window of three tokens where `changes` say that layers slide."""
    shape = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return built(kind(**SHARED, **shape, max_position_embeddings=POSITIONS, **changes), attention)


def neox(parallel: bool, **changes) -> PreTrainedModel:
    shape = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": POSITIONS}
    return built(GPTNeoXConfig(**(SHARED | shape | {"use_parallel_residual": parallel} | changes)), "sdpa")


def phi(attention: str = "sdpa", **changes) -> PreTrainedModel:
    shape = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": POSITIONS}
    turns = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    return built(PhiConfig(**(SHARED | shape | {"rope_parameters": turns} | changes)), attention)


def opt(attention: str = "sdpa", **changes) -> PreTrainedModel:
    shape = {"ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": POSITIONS, "pad_token_id": 1}
    return built(OPTConfig(**SHARED, **shape, word_embed_proj_dim=32, **changes), attention)


SLIDING = {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2-sdpa": gpt2,
    "gpt2-eager": lambda: gpt2("eager"),
    "gpt2-upcast": lambda: gpt2("eager", scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt_neo-global": gpt_neo,
    "gpt_neo-local": lambda: gpt_neo(("global", "local")),
    "llama-sdpa": llama,
    "llama-eager": lambda: llama("eager", attention_bias=True),
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "mistral": lambda: rotary(MistralConfig, sliding_window=None),
    "mistral-window": lambda: rotary(MistralConfig, sliding_window=3),
    "qwen2": lambda: rotary(Qwen2Config),
    "qwen2-window": lambda: rotary(Qwen2Config, "eager", use_sliding_window=True, **SLIDING),
    "qwen3": lambda: rotary(Qwen3Config, head_dim=16),
    "qwen3-window": lambda: rotary(Qwen3Config, use_sliding_window=True, **SLIDING),
    "gemma2": lambda: rotary(Gemma2Config, "eager", head_dim=16, query_pre_attn_scalar=9, **SLIDING),
    "gemma2-uncapped": lambda: rotary(Gemma2Config, "eager", attn_logit_softcapping=None, final_logit_softcapping=None),
    "gpt_neox-sequential": lambda: neox(False),
    "gpt_neox": lambda: neox(True),
    "gpt_neox-partly": lambda: neox(True, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
    "phi": phi,
    "phi-eager": lambda: phi("eager", num_key_value_heads=2),
    "opt": opt,
    "opt-eager": lambda: opt("eager", tie_word_embeddings=False),
    "llama-dynamic": lambda: llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


def sublayers_of_block(dense: DenseSublayers) -> int:
    """1 where attention and MLP read the same residual."""
    return len(dense.norms) - 1


def tokens(count: int = 12) -> Tensor:
    return torch.randint(VOCABULARY, (3, count), generator=torch.Generator().manual_seed(2))


def padded(side: str) -> Tensor:
    """An attention mask (3, 12) of rows with 12, 7 and 1 tokens."""
    mask = (torch.arange(12) < torch.tensor([[12], [7], [1]])).long()
    return mask if side == "right" else mask.flip(1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@every_model
@torch.no_grad()
def test_residuals_and_logits_are_hugging_faces(make):
    model, ids = make(), tokens()
    dense, theirs = wrap_dense(model), model(ids, output_hidden_states=True)
    found = residuals(dense, ids)
    of_block = sublayers_of_block(dense)
    assert len(found) == dense.n_sublayers + 1 == 2 * of_block + 1
    assert {tuple(h.shape) for h in found} == {(3, 12, dense.width)}
    assert_same(found[0], theirs.hidden_states[0])
    assert_same(found[of_block], theirs.hidden_states[1])
    assert_same(dense.unembed(found[-1]), theirs.logits)


@every_model
@torch.no_grad()
def test_the_norms_read_exactly_the_residuals(make):
    model, ids, read = make(), tokens(), []
    dense = wrap_dense(model)
    found = residuals(dense, ids)
    *of_block, last = dense.norms
    for name, module in model.named_modules():
        if (short := name.rpartition(".")[2]) in dense.norms:
            module.register_forward_pre_hook(lambda _, inputs, short=short: read.append((short, inputs[0])))
    model(ids)
    assert [name for name, _ in read] == [*of_block, *of_block, last]
    for (_, theirs), ours in zip(read, found, strict=True):
        assert_same(ours, theirs.view_as(ours))  # OPT's MLP reads all tokens of a batch in one row


@every_model
@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@torch.no_grad()
def test_every_tail_gives_hugging_faces_logits(make, precision: str):
    model, ids = make(), tokens()
    if precision == "bf16":
        model.to(torch.bfloat16)
    dense = wrap_dense(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        logits, context = model(ids).logits, dense.context(ids)
        for start, h in enumerate(residuals(dense, ids)):
            assert_same(dense.unembed(tail(dense, start, h, context)), logits)


@every_model
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_is_seen_as_hugging_face_sees_it(make, side: str):
    model, ids, mask = make(), tokens(), padded(side)
    dense, logits = wrap_dense(model), model(ids, attention_mask=mask).logits
    assert not torch.equal(logits, model(ids).logits)
    context = dense.context(ids, mask)
    for start, h in enumerate(residuals(dense, ids, mask)):
        assert_same(dense.unembed(tail(dense, start, h, context)), logits)


@every_model
@torch.no_grad()
def test_without_padding_a_context_serves_more_rows(make):
    model, ids = make(), tokens()
    dense, logits = wrap_dense(model), model(ids).logits
    for context in (dense.context(ids[:1]), dense.context(ids[:2], torch.ones_like(ids[:2]))):
        assert_same(dense.unembed(tail(dense, 0, dense.embed(ids, context), context)), logits)


@every_model
def test_gradients_pass_through_a_tail_and_stop_at_the_weights(make):
    model, ids = make().requires_grad_(False), tokens()
    dense = wrap_dense(model)
    h = residuals(dense, ids)[1].requires_grad_()
    dense.unembed(tail(dense, 1, h, dense.context(ids)))[:, -1].logsumexp(-1).sum().backward()
    assert h.grad is not None
    assert h.grad[:, -1].any()
    # Two windows of three tokens at most lie between a token and the last one.
    assert h.grad[:, -3].any()
    assert all(p.grad is None for p in model.parameters())


@every_model
@torch.no_grad()
def test_the_sublayers_are_causal(make):
    ids = tokens()
    dense, changed = wrap_dense(make()), ids.clone()
    changed[:, 6] = (ids[:, 6] + 1) % VOCABULARY
    before, after = residuals(dense, ids)[-1], residuals(dense, changed)[-1]
    assert_same(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 7:9], after[:, 7:9])


@every_model
@torch.no_grad()
def test_tail_stops_where_it_is_told_and_unembed_takes_any_shape(make):
    dense, ids = wrap_dense(make()), tokens()
    found, context = residuals(dense, ids), dense.context(ids)
    stop = dense.n_sublayers - 1
    assert_same(tail(dense, 1, found[1], context, stop), found[stop])
    assert_same(tail(dense, 2, found[2], context, 2), found[2])
    torch.testing.assert_close(dense.unembed(found[-1][1, 5]), dense.unembed(found[-1])[1, 5])


@every_model
@torch.no_grad()
def test_has_positions_tells_whether_a_token_embeds_differently_elsewhere(make):
    dense, ids = wrap_dense(make()), torch.full((1, 2), 7)
    first, second = dense.embed(ids, dense.context(ids))[0]
    assert torch.equal(first, second) is not dense.has_positions


@pytest.mark.parametrize("make", [gpt2, gpt_neo])
def test_a_text_longer_than_the_positions_is_refused(make):
    dense = wrap_dense(make())
    dense.context(tokens(POSITIONS))
    with pytest.raises(ValueError, match="17 tokens do not fit the model's 16 positions"):
        dense.context(tokens(POSITIONS + 1))


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("llama")])
@torch.no_grad()
def test_llama_goes_on_past_its_maximum_as_hugging_face_does(name: str):
    model, ids = MODELS[name](), tokens(POSITIONS + 5)
    dense = wrap_dense(model)
    assert_same(dense.unembed(residuals(dense, ids)[-1]), model(ids).logits)


def logits_of(weights: GPTWeights, activation: str, eps: float, ids: Tensor) -> Tensor:
    """A GPT-2 written out from its neutral weights."""

    def normed(h: Tensor, norm: Norm) -> Tensor:
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + eps).sqrt() * norm.gain + norm.bias

    count = ids.shape[1]
    h = weights.embedding[ids] + weights.positions[:count]
    hidden = torch.ones(count, count).triu(1).bool()
    for block in weights.blocks:
        qkv = normed(h, block.attn_norm) @ block.qkv.T + block.qkv_bias
        q, k, v = (part.unflatten(-1, (-1, weights.d_head)).transpose(1, 2) for part in qkv.chunk(3, -1))
        pattern = (q @ k.mT / math.sqrt(weights.d_head)).masked_fill(hidden, -math.inf).softmax(-1)
        h = h + (pattern @ v).transpose(1, 2).flatten(2) @ block.attn_out.T + block.attn_out_bias
        h = h + ACT2FN[activation](functional.linear(normed(h, block.mlp_norm), block.fc, block.fc_bias)) @ block.proj.T + block.proj_bias
    return normed(h, weights.final_norm) @ weights.unembedding.T


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(gpt2, id="gpt2"),
        pytest.param(lambda: gpt2(tie_word_embeddings=False, activation_function="gelu"), id="gpt2-untied"),
        pytest.param(lambda: gpt2(n_inner=40), id="gpt2-narrow"),
        pytest.param(gpt_neo, id="gpt_neo"),
        pytest.param(lambda: gpt_neo(("global", "local"), window=POSITIONS), id="gpt_neo-wide"),
    ],
)
@torch.no_grad()
def test_the_neutral_weights_are_the_whole_model(model):
    model, ids = model(), tokens()
    config, weights = model.config, wrap_dense(model).weights()
    found = logits_of(weights, config.activation_function, config.layer_norm_epsilon, ids)
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert weights.positions.shape == (POSITIONS, 32)
    assert len(weights.blocks) == 2


@pytest.mark.parametrize("model", [gpt2, gpt_neo])
def test_the_neutral_weights_are_detached_fp32_and_leave_the_model_alone(model):
    model = model().to(torch.bfloat16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    weights = wrap_dense(model).weights()
    block = weights.blocks[1]
    parts = [weights.embedding, weights.positions, weights.unembedding, weights.final_norm.gain, block.mlp_norm.bias]
    parts += [block.qkv, block.qkv_bias, block.attn_out, block.attn_out_bias, block.fc, block.fc_bias, block.proj, block.proj_bias]
    assert {(part.dtype, part.requires_grad) for part in parts} == {(torch.float32, False)}
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(MODELS["gpt2-upcast"], id="a scale that varies by layer"),
        pytest.param(lambda: gpt2(scale_attn_weights=False), id="no scale"),
        pytest.param(lambda: gpt2(activation_function="relu"), id="another activation"),
        pytest.param(lambda: gpt2(add_cross_attention=True), id="cross-attention"),
        pytest.param(MODELS["gpt_neo-local"], id="a window"),
        pytest.param(lambda: gpt_neo(activation_function="relu"), id="another activation, GPT-Neo"),
        pytest.param(MODELS["llama-dynamic"], id="turns that depend on the text"),
        pytest.param(MODELS["gemma2"], id="soft caps"),
        pytest.param(MODELS["gemma2-uncapped"], id="normed writes"),
        pytest.param(MODELS["mistral-window"], id="a window, Mistral"),
    ],
)
def test_other_blocks_have_no_neutral_weights(model):
    assert wrap_dense(model()).weights() is None


def test_the_supported_types_are_the_files_and_need_no_torch():
    assert dense_types() == tuple(SUPPORTED.split(", "))
    code = "import sys; from extractor.models.dense.base import dense_types; print(*dense_types(), 'torch' in sys.modules)"
    assert python(code).split() == [*dense_types(), "False"]


def test_parallel_residuals_are_refused_with_the_reason():
    model = random_gpt2(n_layer=1)
    model.config.model_type = "gptj"
    with pytest.raises(UnsupportedModel, match=rf"'gptj' .*\(parallel residual\).*choose one of type {SUPPORTED}"):
        wrap_dense(model)


@pytest.mark.parametrize(
    ("model_type", "config", "parallel"),
    [
        ("gptj", {}, True),
        ("codegen", {}, True),
        ("cohere", {}, True),
        ("falcon", {"parallel_attn": True}, True),
        ("falcon", {"parallel_attn": False}, False),
        ("mamba", {}, False),
    ],
)
def test_the_reason_by_type(model_type: str, config: dict, parallel: bool):
    assert ("parallel residual" in str(unsupported(model_type, config))) is parallel


def test_other_families_are_refused():
    model = BertLMHeadModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(UnsupportedModel, match=f"'bert' cannot be bridged: not supported yet; choose one of type {SUPPORTED}"):
        wrap_dense(model)


@pytest.mark.parametrize("name", ["../gpt2", "train", "base"])
def test_a_model_type_that_is_no_family_is_refused(name: str):
    model = random_gpt2(n_layer=1)
    model.config.model_type = name
    with pytest.raises(UnsupportedModel):
        wrap_dense(model)


def test_the_cosine_by_hand():
    factors = [cosine(step, 100, 0.1) for step in (0, 4, 9, 10, 55, 100)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1])


@every_model
def test_the_parameters_that_a_config_implies_are_the_models(make):
    model = make()
    shape = DenseShape.of(json.loads(model.config.to_json_string(use_diff=False)))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert (shape.layers, shape.width, shape.heads) == (2, 32, 4)
    assert bool(shape.positions) is wrap_dense(model).has_positions
