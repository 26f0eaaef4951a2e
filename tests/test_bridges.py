"""Bridges as a PEFT tuner, their loss against the plain definition, and their training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from worlds import VOCABULARY, environment, python, random_gpt2

from extractor.bridges.losses import Coupled, Crossing, Target, bridge_loss, nmse, path_kls
from extractor.bridges.train import Bridged, couple, faithfulness, train_bridges
from extractor.bridges.tuner import BridgeSite, bridge_sites, site_parameters
from extractor.dense.base import residuals
from extractor.errors import SpecError
from extractor.specs import BridgeSpec, OptimSpec, SparseModelSpec, SparsitySpec

SITES = 5  # two layers: two sublayers each, and the place before the unembedding
SPEC = BridgeSpec(
    model=SparseModelSpec(d_model=16, d_head=8, mlp_ratio=2, n_ctx=16),
    sparsity=SparsitySpec(weight_frac=0.5, embedding_frac=0.5, bias_frac=0.5),
    optim=OptimSpec(steps=30, batch=SITES, context=16, lr=0.1),
    kl_share=1.0,
)


@pytest.fixture
def bridged() -> Bridged:
    found = couple(random_gpt2(), SPEC, 0, "tiny")
    with torch.no_grad():  # untrained encoders are small; larger ones make every path differ
        for parameter in site_parameters(found.pair.sites):
            parameter.mul_(10).add_(0.01)
    return found


def tokens(rows: int = SITES, length: int = 16) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(4))


def test_wrapping_leaves_the_dense_logits_as_they_are_bit_for_bit(gpt2):
    ids = tokens()
    with torch.no_grad():
        before = gpt2(input_ids=ids).logits
        adapter = couple(gpt2, SPEC, 0, "tiny").adapter
        assert torch.equal(adapter(input_ids=ids).logits, before)


def test_there_is_a_site_before_every_sublayer_and_one_at_the_end(bridged: Bridged):
    names = [name for name, module in bridged.adapter.named_modules() if isinstance(module, BridgeSite)]
    assert [".".join(name.split(".")[-3:]) for name in names] == [
        "h.0.ln_1",
        "h.0.ln_2",
        "h.1.ln_1",
        "h.1.ln_2",
        "model.transformer.ln_f",
    ]
    assert len(bridged.pair.sites) == SITES


def test_each_site_stands_where_its_residual_is(bridged: Bridged):
    seen: list[torch.Tensor] = []
    handles = [site.register_forward_pre_hook(lambda _m, args: seen.append(args[0])) for site in bridged.pair.sites]
    with torch.no_grad():
        bridged.adapter(input_ids=tokens())
        count = len(seen)
        for handle in handles:
            handle.remove()
        expected = residuals(bridged.pair.dense, tokens())
    assert count == SITES
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_only_encoders_and_decoders_can_be_trained(bridged: Bridged):
    trainable = {name for name, p in bridged.adapter.named_parameters() if p.requires_grad}
    assert len(trainable) == SITES * 4
    assert all("bridge_encoder" in name or "bridge_decoder" in name for name in trainable)


def test_encoding_by_hand(bridged: Bridged):
    site = bridged.pair.sites[0]
    with torch.no_grad():
        layer = site.bridge_encoder["default"]
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(16.0))
        layer.weight[0, 3] = -40.0
        h = torch.zeros(32)
        h[3] = 1.0
        assert site.encode(h).tolist() == [-40.0, *[0.0] * 12, 13.0, 14.0, 15.0]  # a quarter of 16 channels stays


def test_saved_bridges_open_in_a_fresh_process_with_the_same_bits(bridged: Bridged, tmp_path: Path):
    random_gpt2().save_pretrained(tmp_path / "dense")
    bridged.save(tmp_path / "model")
    ids = tokens()
    with torch.no_grad():
        h = residuals(bridged.pair.dense, ids)
        codes = [(site.encode(d), site.decode(site.encode(d))) for site, d in zip(bridged.pair.sites, h, strict=True)]
    torch.save([[p.detach() for p in site_parameters(bridged.pair.sites)], codes], tmp_path / "expected.pt")
    out = python(
        """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
import extractor.bridges
from extractor.bridges.tuner import bridge_sites, site_parameters
from extractor.dense.base import residuals, wrap_dense
torch.set_num_threads(1)
here = Path(sys.argv[1])
dense = AutoModelForCausalLM.from_pretrained(here / 'dense').eval()
model = PeftModel.from_pretrained(dense, here / 'model' / 'bridges')
parameters, codes = torch.load(here / 'expected.pt')
sites = bridge_sites(model)
print(all(torch.equal(a, b) for a, b in zip(site_parameters(sites), parameters, strict=True)))
ids = torch.randint(400, (5, 16), generator=torch.Generator().manual_seed(4))
with torch.no_grad():
    for site, h, (encoded, decoded) in zip(sites, residuals(wrap_dense(dense), ids), codes, strict=True):
        print(torch.equal(site.encode(h), encoded) and torch.equal(site.decode(encoded), decoded))
""",
        str(tmp_path),
        env={"HF_HUB_OFFLINE": "1"},
    )
    assert out.split() == ["True"] * (1 + SITES)


def test_the_adapter_folder_names_its_two_models_and_widths(bridged: Bridged, tmp_path: Path):
    import json

    bridged.save(tmp_path)
    config = json.loads((tmp_path / "bridges" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SPARSE_BRIDGE"
    assert config["base_model_name_or_path"] == "tiny"
    assert (config["d_dense"], config["d_sparse"], config["encoder_frac"]) == (32, 16, 0.25)
    assert (tmp_path / "bridges" / config["sparse_model_name_or_path"] / "config.json").is_file()


def test_unloading_gives_the_dense_model_back(bridged: Bridged):
    ids, plain = tokens(), random_gpt2()
    model = bridged.adapter.unload()
    assert not bridge_sites(model)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_merging_is_refused(bridged: Bridged):
    with pytest.raises(ValueError, match="cannot be merged"):
        bridged.adapter.merge_and_unload()
    with pytest.raises(ValueError, match="cannot be merged"):
        bridged.adapter.merge_adapter()


def test_a_second_adapter_has_its_own_encoders(bridged: Bridged, tmp_path: Path):
    bridged.save(tmp_path)
    assert isinstance(bridged.adapter, PeftModel)
    bridged.adapter.load_adapter(str(tmp_path / "bridges"), adapter_name="other")
    site = bridged.pair.sites[0]
    h = torch.ones(32)
    first = site.encode(h)
    with torch.no_grad():
        site.bridge_encoder["other"].bias.add_(3)
    assert torch.equal(site.encode(h), first)
    bridged.adapter.set_adapter("other")
    assert not torch.equal(site.encode(h), first)


def test_fused_kl_equals_kl_div_in_values_and_gradients():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(3, 4, 11, generator=generator, dtype=torch.float64)
    fast = torch.randn(3, 4, 11, generator=generator, dtype=torch.float64).requires_grad_()
    plain = fast.detach().clone().requires_grad_()
    weight = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    one = Target.of(dense).kl(fast)
    two = functional.kl_div(plain.log_softmax(-1), dense.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert torch.allclose(one, two, atol=1e-12)
    (one * weight).sum().backward()
    (two * weight).sum().backward()
    assert torch.allclose(fast.grad, plain.grad, atol=1e-12)


def test_kl_by_hand():
    target = Target.of(torch.tensor([[[0.0, math.log(3)]]]))  # 1/4, 3/4
    assert target.kl(torch.tensor([[[0.0, 0.0]]])).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)
    assert target.kl(torch.tensor([[[7.0, 7.0 + math.log(3)]]])).item() == pytest.approx(0, abs=1e-6)


def test_nmse_by_hand_and_without_gradient_to_its_target():
    target = torch.tensor([[[0.0, 10.0], [2.0, 10.0]]], requires_grad=True)  # variance per channel 1 and 0, mean 0.5
    value = torch.tensor([[[1.0, 10.0], [2.0, 10.0]]], requires_grad=True)  # mean squared error 1/4
    loss = nmse(value, target)
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    assert target.grad is None
    assert value.grad[0, 0, 0].item() == pytest.approx(1.0)
    mean = target.detach().mean((0, 1)).expand_as(target)
    assert nmse(mean, target).item() == pytest.approx(1.0)


def test_every_sequence_crosses_once_and_every_site_is_crossed():
    spec = SPEC.model_copy(update={"optim": SPEC.optim.model_copy(update={"batch": 12}), "kl_share": 0.5})
    crossing = Crossing.draw(spec, SITES, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert sorted(crossing.order.tolist()) == list(range(12))
    assert sorted(len(rows) for rows in crossing.rows) == [2, 2, 2, 3, 3]
    assert len(set(crossing.positions.tolist())) == 8
    few = Crossing.draw(spec.model_copy(update={"crossing_share": 0.1}), SITES, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert [len(rows) for rows in few.rows] == [1] * SITES


def test_the_split_estimate_averaged_over_all_assignments_is_the_exact_sum_of_paths(bridged: Bridged):
    ids = tokens()
    totals = {"kl_to_sparse": 0.0, "kl_to_dense": 0.0}
    for turn in range(SITES):
        rows = [torch.tensor([(site + turn) % SITES]) for site in range(SITES)]
        _, terms = bridge_loss(bridged.pair, ids, Crossing(rows, torch.arange(16)), SPEC)
        for name in totals:
            totals[name] += terms[name] / SITES
    exact = path_kls(bridged.pair, ids)
    assert totals["kl_to_sparse"] == pytest.approx(sum(exact["to_sparse"]) / SITES, rel=1e-5)
    assert totals["kl_to_dense"] == pytest.approx(sum(exact["to_dense"]) / SITES, rel=1e-5)
    assert len({round(kl, 3) for kl in exact["to_sparse"] + exact["to_dense"]}) == 2 * SITES, "the paths should differ"


def plain_path_loss(pair: Coupled, ids: torch.Tensor) -> torch.Tensor:
    """Sum over sites and both directions of the KL of the whole batch: the naive, quadratic form of App. A.3, with its gradient."""
    with torch.no_grad():
        dense_h = residuals(pair.dense, ids)
        log_p = pair.dense.unembed(dense_h[-1]).log_softmax(-1)
    context = pair.sparse.context(ids.shape[1])
    sparse_h = [pair.sparse.embed(ids)]
    for index in range(4):
        sparse_h.append(pair.sparse.sublayer(index, sparse_h[-1], context))
    total = torch.zeros(())
    for start, site in enumerate(pair.sites):
        h, d = site.encode(dense_h[start]), site.decode(sparse_h[start])
        for index in range(start, 4):
            h, d = pair.sparse.sublayer(index, h, context), pair.dense.sublayer(index, d, pair.dense.mask(d))
        for logits in (pair.sparse.unembed(h, ids), pair.dense.unembed(d)):
            total = total + functional.kl_div(logits.log_softmax(-1), log_p, reduction="none", log_target=True).sum(-1).mean()
    return total


def test_the_split_estimates_gradient_averages_to_the_gradient_of_the_exact_paths(bridged: Bridged):
    ids = tokens()
    only_kl = SPEC.model_copy(update={"nmse_coef": 0.0, "kl_plain_coef": 0.0})
    no_kl = only_kl.model_copy(update={"kl_to_sparse_coef": 0.0, "kl_to_dense_coef": 0.0})
    parameters = [*bridged.sparse.parameters(), *site_parameters(bridged.pair.sites)]

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    average = [torch.zeros_like(p) for p in parameters]
    for turn in range(SITES):
        crossing = Crossing([torch.tensor([(site + turn) % SITES]) for site in range(SITES)], torch.arange(16))
        with_kl = gradients(bridge_loss(bridged.pair, ids, crossing, only_kl)[0])
        without = gradients(bridge_loss(bridged.pair, ids, crossing, no_kl)[0])
        for total, one, two in zip(average, with_kl, without, strict=True):
            total += (one - two) / SITES
    for mine, exact in zip(average, gradients(plain_path_loss(bridged.pair, ids)), strict=True):
        assert torch.allclose(mine, exact, rtol=1e-3, atol=1e-4 * max(1.0, float(exact.abs().max())))


def test_the_loss_is_the_weighted_sum_of_its_reported_terms(bridged: Bridged):
    spec = SPEC.model_copy(update={"nmse_coef": 0.7, "kl_to_sparse_coef": 0.3, "kl_to_dense_coef": 0.2, "kl_plain_coef": 0.9})
    crossing = Crossing.draw(spec, SITES, torch.Generator().manual_seed(0), torch.device("cpu"))
    loss, terms = bridge_loss(bridged.pair, tokens(), crossing, spec)
    assert set(terms) == {"loss", "ce", "nmse_encoder", "nmse_decoder", "kl_to_sparse", "kl_to_dense", "kl_plain"}
    by_hand = (
        terms["ce"]
        + 0.7 * SITES * (terms["nmse_encoder"] + terms["nmse_decoder"])
        + 0.3 * SITES * terms["kl_to_sparse"]
        + 0.2 * SITES * terms["kl_to_dense"]
        + 0.9 * terms["kl_plain"]
    )
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert terms["loss"] == loss.item()
    ids = tokens()
    with torch.no_grad():
        assert terms["ce"] == pytest.approx(bridged.sparse(input_ids=ids, labels=ids).loss.item(), rel=1e-5)


@torch.no_grad()
def test_path_kls_end_in_the_plain_ones(bridged: Bridged):
    ids, pair = tokens(), bridged.pair
    found = path_kls(pair, ids)
    told = faithfulness(pair, ids)
    assert told["path_kl"] == found
    dense, sparse = pair.dense.unembed(residuals(pair.dense, ids)[-1]), pair.sparse(input_ids=ids).logits
    plain = functional.kl_div(sparse.log_softmax(-1), dense.log_softmax(-1), reduction="none", log_target=True).sum(-1).mean().item()
    assert told["kl_dense_to_sparse"] == pytest.approx(plain, rel=1e-5)
    assert told["agreement"] == pytest.approx((dense.argmax(-1) == sparse.argmax(-1)).double().mean().item())
    shifted = functional.cross_entropy(dense[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert told["dense_loss"] == pytest.approx(shifted, rel=1e-5)


def test_training_lowers_the_loss_and_leaves_the_dense_model_alone(corpus, tmp_path: Path):
    import json

    dense = random_gpt2(scale=0.05)
    before = {name: p.detach().clone() for name, p in dense.named_parameters()}
    spec = SPEC.model_copy(update={"optim": SPEC.optim.model_copy(update={"batch": 10})})
    bridged = train_bridges(dense, spec, corpus, 0, "tiny", environment(tmp_path))
    after = dict(bridged.adapter.unload().named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(30))
    assert sum(e["loss"] for e in log[-5:]) < 0.8 * sum(e["loss"] for e in log[:5])
    for term in ("kl_to_sparse", "kl_plain", "nmse_decoder"):
        assert log[-1][term] < log[0][term], term


def test_a_batch_smaller_than_the_number_of_sites_is_refused(corpus, env):
    spec = SPEC.model_copy(update={"optim": SPEC.optim.model_copy(update={"batch": SITES - 1})})
    with pytest.raises(SpecError, match=r"bridge.optim.batch \(4\) must be at least the number of bridge sites \(5\)"):
        train_bridges(random_gpt2(), spec, corpus, 0, "tiny", env)
