"""Reading and replacing any value inside the model, by name."""

from __future__ import annotations

import pytest
import torch
from test_sparse_model import small_model, tokens
from torch.nn import functional

from extractor.circuits import sites
from extractor.sparse.configuration_sparse_gpt import GATED_PLACES, PLACES

BATCH, LENGTH, HEADS, CHANNELS = 2, 10, 4, 8


@pytest.fixture
def model():
    return small_model(d_pos_emb=3)


def test_the_travelling_list_of_sites_is_the_projects():
    assert PLACES == sites.PLACES
    assert GATED_PLACES == sites.GATED_PLACES


def test_by_default_all_sites_are_recorded_in_forward_order(model):
    with model.record() as values:
        assert values == {}
        model(input_ids=tokens())
    assert list(values) == list(sites.widths(model)) == [f"{layer}.{place}" for layer in range(2) for place in model.config.places]
    assert values["1.mlp.act_in"].shape == (BATCH, LENGTH, 35)
    before = dict(values)
    model(input_ids=tokens(seed=2))
    assert all(values[name] is before[name] for name in values), "afterwards nothing is recorded"


def test_every_point_has_its_name_and_its_shape(model):
    stream, heads, neurons = (BATCH, LENGTH, 32), (BATCH, LENGTH, HEADS, CHANNELS), (BATCH, LENGTH, 64)
    by_block = {
        "hook_resid_pre": stream,
        "hook_resid_mid": stream,
        "hook_resid_post": stream,
        "ln1.hook_normalized": stream,
        "ln2.hook_normalized": stream,
        "attn.hook_q": heads,
        "attn.hook_k": heads,
        "attn.hook_v": heads,
        "attn.hook_z": heads,
        "attn.hook_pattern": (BATCH, HEADS, LENGTH, LENGTH),
        "mlp.hook_pre": neurons,
        "mlp.hook_post": neurons,
        "hook_attn_out": stream,
        "hook_mlp_out": stream,
    }
    wanted = {f"blocks.{layer}.{name}": shape for layer in range(2) for name, shape in by_block.items()}
    wanted |= {"hook_embed": stream, "ln_final.hook_normalized": stream, "hook_pos_embed": (LENGTH, 3)}
    assert set(model.points()) == set(wanted) | set(sites.widths(model))
    with model.record(wanted) as values:
        model(input_ids=tokens())
    assert {name: tuple(x.shape) for name, x in values.items()} == wanted


def test_the_points_fit_together_as_the_architecture_says(model):
    ids = tokens()
    with model.record(model.points()) as v:
        logits = model(input_ids=ids).logits
    assert torch.equal(v["hook_embed"], v["blocks.0.hook_resid_pre"])
    for layer, block in enumerate(model.blocks):
        b = f"blocks.{layer}."
        assert torch.equal(v[b + "hook_attn_out"], v[f"{layer}.attn.resid_delta"])
        assert torch.equal(v[b + "hook_resid_mid"], v[b + "hook_resid_pre"] + v[b + "hook_attn_out"])
        assert torch.equal(v[b + "hook_resid_post"], v[b + "hook_resid_mid"] + v[b + "hook_mlp_out"])
        assert torch.equal(v[b + "ln1.hook_normalized"], block.ln_1(v[b + "hook_resid_pre"]))
        assert torch.equal(v[b + "attn.hook_k"], v[f"{layer}.attn.k"].view(BATCH, LENGTH, HEADS, CHANNELS))
        assert torch.equal(v[b + "mlp.hook_post"], block.mlp.post_act(functional.gelu(v[b + "mlp.hook_pre"])))
        mixed = torch.einsum("bhts,bshc->bthc", v[b + "attn.hook_pattern"], v[b + "attn.hook_v"])
        assert torch.allclose(mixed, v[b + "attn.hook_z"], atol=1e-5)
        sums = v[b + "attn.hook_pattern"].sum(-1)
        assert (sums < 1).all(), "the sink takes its share"
        assert not v[b + "attn.hook_pattern"].triu(1).any()
    assert torch.equal(v["blocks.0.hook_resid_post"], v["blocks.1.hook_resid_pre"])
    table = model.bigram_table[ids]
    assert torch.allclose(logits, model.lm_head(v["ln_final.hook_normalized"]) + table, atol=1e-5)


def test_looking_at_the_pattern_leaves_the_logits(model):
    ids = tokens()
    plain = model(input_ids=ids).logits
    with model.record(["blocks.0.attn.hook_pattern"]):
        assert torch.allclose(model(input_ids=ids).logits, plain, atol=1e-5)


def test_an_edit_is_what_the_rest_of_the_model_sees(model):
    ids = tokens()
    plain = model(input_ids=ids).logits
    with model.edit({"blocks.1.hook_resid_post": torch.zeros_like}):
        edited = model(input_ids=ids).logits
    assert torch.allclose(edited, model.bigram_table[ids], atol=1e-6), "a zero residual leaves the bigram"
    with model.edit({"1.mlp.resid_delta": lambda x: x}):
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert torch.equal(model(input_ids=ids).logits, plain)


def test_edits_by_head_change_that_head_alone(model):
    ids = tokens()

    def second_head(x: torch.Tensor) -> torch.Tensor:
        changed = x.clone()
        changed[:, :, 1] = 7.0
        return changed

    with model.record(["0.attn.v"]) as plain:
        model(input_ids=ids)
    with model.edit({"blocks.0.attn.hook_v": second_head}), model.record(["0.attn.v"]) as values:
        model(input_ids=ids)
    changed = (values["0.attn.v"] != plain["0.attn.v"]).any((0, 1))
    assert changed.tolist() == [8 <= channel < 16 for channel in range(32)]
    assert (values["0.attn.v"][..., 8:16] == 7).all()


def test_an_edited_pattern_mixes_the_values(model):
    ids = tokens()
    with model.edit({"blocks.0.attn.hook_pattern": lambda p: torch.eye(LENGTH).expand_as(p)}), model.record(["blocks.0.attn.hook_z"]) as z:
        model(input_ids=ids)
    with model.record(["blocks.0.attn.hook_v"]) as v:
        model(input_ids=ids)
    assert torch.allclose(z["blocks.0.attn.hook_z"], v["blocks.0.attn.hook_v"], atol=1e-6)


def test_edits_nest_and_records_inside_see_them_outside_do_not(model):
    ids, site = tokens(), "0.mlp.post_act"
    twice, one_more = {site: lambda x: 2 * x}, {site: lambda x: x + 1}
    with model.record([site]) as outside, model.edit(one_more), model.edit(twice), model.record([site]) as inside:
        model(input_ids=ids)
    assert torch.equal(inside[site], 2 * (outside[site] + 1))


def test_gradients_flow_through_edits_and_into_what_is_recorded():
    model, ids = small_model(activation_frac=1.0).double(), tokens()
    scale = torch.ones(64, requires_grad=True)
    with model.edit({"0.mlp.post_act": lambda x: x * scale}), model.record(["1.attn.act_in"], detach=False) as values:
        loss = model(input_ids=ids, labels=ids).loss
    (into,) = torch.autograd.grad(loss, values["1.attn.act_in"], retain_graph=True)
    assert into.any()
    loss.backward()
    neuron = int(scale.grad.abs().argmax())
    losses = []
    for step in (1e-4, -1e-4):
        moved = torch.ones(64, dtype=torch.float64)
        moved[neuron] += step
        with model.edit({"0.mlp.post_act": lambda x, moved=moved: x * moved}), torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(scale.grad[neuron].item(), rel=1e-4)
    with model.record() as plain:
        model(input_ids=ids)
    assert not any(x.requires_grad for x in plain.values())


def test_hooks_are_gone_even_after_an_error(model):
    ids = tokens()
    plain = model(input_ids=ids).logits
    with pytest.raises(ZeroDivisionError), model.edit({"0.attn.q": lambda x: 1 / 0}), model.record():
        model(input_ids=ids)
    with pytest.raises(ValueError, match="no point"), model.edit({"0.attn.q": torch.zeros_like, "0.attn.w": torch.zeros_like}):
        pass
    assert all(not module._forward_hooks for module in model.modules())
    assert torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize(
    ("name", "close"),
    [("0.attn.actin", "0.attn.act_in"), ("blocks.0.hook_resid", "blocks.0.hook_resid_pre"), ("2.attn.q", "1.attn.q"), ("xyzzy", "act_in")],
)
def test_unknown_names_are_refused_with_close_ones(model, name: str, close: str):
    for enter in (lambda: model.record([name]), lambda: model.edit({name: torch.zeros_like})):
        with pytest.raises(ValueError, match=f"no point is called '{name}'; close: ") as caught, enter():
            pass
        assert close in str(caught.value)


@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: None, lambda x: x.flatten(2)[..., :3]])
def test_edits_of_another_shape_are_refused(model, wrong):
    with pytest.raises(ValueError, match=r"edit of 0.attn.q must give a tensor of shape \(2, 10, 32\)"), model.edit({"0.attn.q": wrong}):
        model(input_ids=tokens())


def test_an_edit_and_a_recording_in_one_run(model):
    ids = tokens()
    with model.edit({"0.mlp.act_in": torch.zeros_like}), model.record(["0.mlp.act_in"]) as values:
        model(input_ids=ids)
    assert not values["0.mlp.act_in"].any()
