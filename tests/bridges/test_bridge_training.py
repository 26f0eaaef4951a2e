"""The bridge loss against its plain definition, where training starts, and that it ends in the same bits however it was cut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional
from worlds import VOCABULARY, environment, paths, random_gpt2, stop_after, tiny_bridge, tiny_pair

from extractor.bridges import chunked_loss
from extractor.bridges.basis import fold_norms, sparsest_basis, with_sparse_heads
from extractor.bridges.chunked_loss import Target, in_chunks
from extractor.bridges.crossing import Crossing
from extractor.bridges.initialisation import ActivationAnnealing, normalise_sites, start_from_dense
from extractor.bridges.losses import TERMS, bridge_loss, moments, sparse_residuals, variance_of
from extractor.bridges.pair import BridgedPair, new_pair
from extractor.bridges.train import BridgeTrainer, train_bridges
from extractor.bridges.tuner import site_parameters
from extractor.errors import SpecError
from extractor.models.dense.base import residuals, tail
from extractor.models.load import DenseModel
from extractor.progress import Stopped
from extractor.spec.schema import BridgeSpec, SparseModelSpec, SparsitySpec
from extractor.training.compute import Compute

SITES = 5
EXACT = tiny_bridge(estimator="exact")


@pytest.fixture
def pair() -> BridgedPair:
    return tiny_pair()


def tokens(rows: int = SITES, length: int = 16) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(4))


def changed(spec: BridgeSpec, **optim) -> BridgeSpec:
    return spec.model_copy(update={"optim": spec.optim.model_copy(update=optim)})


def dense_model(**options) -> DenseModel:
    return DenseModel(random_gpt2(**options).requires_grad_(False), "tiny", {"model": "tiny"})


def draw(spec: BridgeSpec, seed: int = 0) -> Crossing:
    return Crossing.draw(spec, SITES, torch.Generator().manual_seed(seed))


def variance(pair: BridgedPair, ids: torch.Tensor) -> torch.Tensor:
    return variance_of(moments(sparse_residuals(pair, ids)))


# Distributions, in chunks.


def test_chunked_losses_equal_the_reference_in_values_and_gradients():
    generator = torch.Generator().manual_seed(0)
    dense, start = (torch.randn(3, 4, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    following = torch.randint(11, (3, 4), generator=generator)
    weight = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    plain = start.float().detach().requires_grad_()
    kl = functional.kl_div(plain.log_softmax(-1), dense.float().log_softmax(-1), reduction="none", log_target=True).sum(-1)
    ce = functional.cross_entropy(plain.transpose(1, 2), following, reduction="none")
    (kl * weight).sum().backward(retain_graph=True)
    of_kl, plain.grad = plain.grad, None
    (0.3 * kl + weight * ce).sum().backward()

    fast = start.float().requires_grad_()
    one = Target.of(dense).kl(fast)
    (one * weight).sum().backward()
    assert torch.allclose(one, kl, atol=1e-5)
    assert torch.allclose(fast.grad, of_kl, atol=1e-5)
    fast.grad = None
    both, kl_alone, ce_alone = Target.of(dense).kl_and_loss(fast, following, 0.3, weight.float())
    both.sum().backward()
    assert torch.allclose(both, (0.3 * kl + weight * ce).float(), atol=1e-5)
    assert torch.allclose(fast.grad, plain.grad, atol=1e-5)
    assert torch.allclose(kl_alone, kl, atol=1e-5)
    assert torch.allclose(ce_alone, ce, atol=1e-5)


def test_kl_by_hand():
    target = Target.of(torch.tensor([[[0.0, math.log(3)]]]))  # 1/4, 3/4
    assert target.kl(torch.tensor([[[0.0, 0.0]]])).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)
    assert target.kl(torch.tensor([[[7.0, 7.0 + math.log(3)]]])).item() == pytest.approx(0, abs=1e-6)


class Tokens(NamedTuple):
    h: torch.Tensor
    fixed: torch.Tensor
    ids: torch.Tensor


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_chunks_give_the_values_and_gradients_of_the_whole(size: int):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, 9)
    h = torch.randn(7, 6, generator=generator, requires_grad=True)
    fixed, ids = torch.randn(7, 9, generator=generator), torch.arange(7)

    def body(tokens: Tokens):
        value = functional.kl_div(head(tokens.h).log_softmax(-1), tokens.fixed.softmax(-1), reduction="none").sum(-1) * (tokens.ids + 1)
        return value.sum(), torch.stack([value.sum(), tokens.ids.sum().float()])

    whole, expected = body(Tokens(h, fixed, ids))
    wanted = torch.autograd.grad(3 * whole, [h, *head.parameters()])
    loss, terms = in_chunks(body, Tokens(h, fixed, ids), list(head.parameters()), size)
    found = torch.autograd.grad(3 * loss, [h, *head.parameters()])
    assert torch.allclose(loss, whole, rtol=1e-5)
    assert torch.allclose(terms, expected, rtol=1e-5)
    assert not terms.requires_grad
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        assert torch.allclose(in_chunks(body, Tokens(h, fixed, ids), [], size)[0], whole, rtol=1e-5)


def test_no_more_logits_exist_at_once_than_asked_for(pair: BridgedPair, monkeypatch):
    """At V = 50,257 whole logits would be gigabytes; here a chunk is three tokens."""
    monkeypatch.setattr(chunked_loss, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    monkeypatch.setattr("extractor.bridges.losses.LOGITS_AT_ONCE", 3 * VOCABULARY)
    made: list[int] = []
    for head in (pair.sparse.lm_head, pair.adapter.base_model.model.lm_head):
        head.register_forward_hook(lambda _m, _i, out: made.append(out.shape[:-1].numel()))
    ids = tokens()
    bridge_loss(pair, ids, draw(tiny_bridge()), variance(pair, ids), tiny_bridge())
    assert max(made) == 3
    assert len(made) > 50


# Crossings.


def test_every_sequence_crosses_once_and_every_site_is_crossed():
    spec = changed(tiny_bridge(kl_share=0.5, own_share=0.25), batch=12)
    crossing = draw(spec)
    assert sorted(crossing.order.tolist()) == list(range(12))
    assert sorted(len(rows) for rows in crossing.rows) == [2, 2, 2, 3, 3]
    assert (len(set(crossing.positions.tolist())), len(set(crossing.own.tolist()))) == (8, 4)
    assert [len(rows) for rows in draw(spec.model_copy(update={"crossing_share": 0.1})).rows] == [1] * SITES
    assert draw(spec, 1).order.tolist() != crossing.order.tolist()


def test_fewer_sequences_than_sites_visit_some_sites_with_more_weight():
    crossing = draw(changed(tiny_bridge(), batch=2))
    assert sorted(len(rows) for rows in crossing.rows) == [0, 0, 0, 1, 1]
    assert crossing.weights.tolist() == [2.5, 2.5]
    visited = {tuple(i for i, rows in enumerate(draw(changed(tiny_bridge(), batch=2), s).rows) if len(rows)) for s in range(60)}
    assert len(visited) == 10, "every pair of sites has its turn"


def exact_paths(pair: BridgedPair, ids: torch.Tensor) -> tuple[list[float], list[float]]:
    with torch.no_grad():
        target = Target.of(pair.dense.unembed(residuals(pair.dense, ids)[-1]))
        found = [(target.kl(s).mean().item(), target.kl(d).mean().item()) for s, d in paths(pair, ids)]
    return [s for s, _ in found], [d for _, d in found]


def test_the_split_estimate_averaged_over_all_assignments_is_the_exact_sum_of_paths(pair: BridgedPair):
    ids = tokens()
    totals = torch.zeros(2)
    for turn in range(SITES):
        rows = [torch.tensor([(site + turn) % SITES]) for site in range(SITES)]
        crossing = Crossing(rows, torch.ones(SITES), torch.arange(16), torch.arange(16))
        _, terms, _ = bridge_loss(pair, ids, crossing, variance(pair, ids), tiny_bridge())
        totals += terms[[TERMS.index("kl_to_sparse"), TERMS.index("kl_to_dense")]] / SITES
    to_sparse, to_dense = exact_paths(pair, ids)
    assert totals.tolist() == pytest.approx([sum(to_sparse) / SITES, sum(to_dense) / SITES], rel=1e-4)
    assert len({round(kl, 5) for kl in to_sparse + to_dense}) == 2 * SITES, "the paths should differ"


def plain_loss(pair: BridgedPair, ids: torch.Tensor, spec: BridgeSpec) -> torch.Tensor:
    """The whole loss as App. A.3 writes it: every tail of every site on its own, all logits at once. NMSE denominators of this batch."""
    with torch.no_grad():
        dense_h = residuals(pair.dense, ids)
        log_p = pair.dense.unembed(dense_h[-1]).log_softmax(-1)

    def kl(logits: torch.Tensor) -> torch.Tensor:
        return functional.kl_div(logits.log_softmax(-1), log_p, reduction="none", log_target=True).sum(-1).mean()

    context, sparse_h = pair.sparse.context(ids.shape[1]), sparse_residuals(pair, ids)
    logits = pair.sparse.unembed(sparse_h[-1], ids)
    total = spec.ce_coef * functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) + spec.kl_plain_coef * kl(logits)
    for start, site in enumerate(pair.sites):
        h = arriving = site.encode(dense_h[start])
        d = back = site.decode(sparse_h[start])
        for index in range(start, 4):
            h = pair.sparse.sublayer(index, h, context)
        total = total + spec.kl_to_sparse_coef * kl(pair.sparse.unembed(h, ids))
        total = total + spec.kl_to_dense_coef * kl(pair.dense.unembed(tail(pair.dense, start, d, pair.dense.context(ids))))
        for value, target in ((arriving, sparse_h[start].detach()), (back, dense_h[start])):
            spread = (target - target.mean((0, 1))).square().mean() if value is arriving else 1.0
            total = total + spec.nmse_coef * (value - target).square().mean() / spread
    return total


def gradients(loss: torch.Tensor, pair: BridgedPair) -> list[torch.Tensor]:
    parameters = [*pair.sparse.parameters(), *site_parameters(pair.sites)]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("bigram", ["none", "dense", "counts", "low_rank"])
def test_the_exact_estimator_is_the_papers_loss_in_value_and_gradient(bigram: str):
    spec = EXACT.model_copy(
        update={
            "model": EXACT.model.model_copy(update={"bigram": bigram}),
            "ce_coef": 0.6,
            "nmse_coef": 0.7,
            "kl_to_sparse_coef": 0.3,
            "kl_to_dense_coef": 0.2,
            "kl_plain_coef": 0.9,
        }
    )
    pair, ids = tiny_pair(spec), tokens()
    loss, terms, _ = bridge_loss(pair, ids, draw(spec), variance(pair, ids), spec)
    expected = plain_loss(pair, ids, spec)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, plain in zip(gradients(loss, pair), gradients(expected, pair), strict=True):
        assert torch.allclose(mine, plain, rtol=1e-3, atol=1e-5 * max(1.0, float(plain.abs().max())))
    named = dict(zip(TERMS, terms.tolist(), strict=True))
    by_hand = 0.6 * named["ce"] + 0.7 * SITES * (named["nmse_encoder"] + named["nmse_decoder"]) + 0.9 * named["kl_plain"]
    by_hand += SITES * (0.3 * named["kl_to_sparse"] + 0.2 * named["kl_to_dense"])
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_means_over_sites_weigh_the_terms_of_sites_alike_at_every_depth(pair: BridgedPair):
    ids, spec = tokens(), EXACT.model_copy(update={"over_sites": "mean", "ce_coef": 0.0, "kl_plain_coef": 0.0})
    summed = spec.model_copy(update={"over_sites": "sum"})
    one, two = (bridge_loss(pair, ids, draw(s), variance(pair, ids), s)[0].item() for s in (spec, summed))
    assert two == pytest.approx(SITES * one, rel=1e-5)


def test_the_split_estimates_gradient_averages_to_the_exact_one(pair: BridgedPair):
    ids, spec = tokens(), tiny_bridge(nmse_coef=0.0, kl_plain_coef=0.0, ce_coef=0.0)
    average = [torch.zeros_like(p) for p in (*pair.sparse.parameters(), *site_parameters(pair.sites))]
    for turn in range(SITES):
        rows = [torch.tensor([(site + turn) % SITES]) for site in range(SITES)]
        crossing = Crossing(rows, torch.ones(SITES), torch.arange(16), torch.arange(16))
        for total, one in zip(average, gradients(bridge_loss(pair, ids, crossing, variance(pair, ids), spec)[0], pair), strict=True):
            total += one / SITES
    for mine, exact in zip(average, gradients(plain_loss(pair, ids, spec), pair), strict=True):
        assert torch.allclose(mine, exact, rtol=1e-3, atol=1e-4 * max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize("estimator", ["split", "exact"])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_add_up_to_the_whole_batch(estimator: str, micro: int):
    spec = tiny_bridge(estimator=estimator, kl_share=0.5, own_share=0.5)
    pair, ids = tiny_pair(spec), tokens()
    divisor, crossing = variance(pair, ids), draw(spec)
    whole, terms, spread = bridge_loss(pair, ids, crossing, divisor, spec)
    wanted, found = gradients(whole, pair), None
    total, told, moved = 0.0, torch.zeros(len(TERMS)), torch.zeros_like(spread)
    for start in range(0, SITES, micro):
        stop = min(start + micro, SITES)
        share = (stop - start) / SITES
        loss, part, here = bridge_loss(pair, ids[start:stop], crossing.part(start, stop, SITES), divisor, spec)
        grads = gradients(loss * share, pair)
        found = grads if found is None else [a + b for a, b in zip(found, grads, strict=True)]
        total, told, moved = total + loss.item() * share, told + part * share, moved + here * share
    assert total == pytest.approx(whole.item(), rel=1e-5)
    assert told.tolist() == pytest.approx(terms.tolist(), rel=1e-4)
    assert torch.allclose(variance_of(moved), variance_of(spread), rtol=1e-4)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_variance_by_hand():
    h = torch.tensor([[[0.0, 10.0], [2.0, 10.0]]])  # per channel 1 and 0
    assert variance_of(moments([h])).tolist() == pytest.approx([0.5])


# Where training starts.


def test_sites_are_normalised_over_training_text(corpus):
    dense = dense_model()
    with torch.no_grad():
        dense.model.transformer.wte.weight[:, 7] *= 1000  # as GPT-2's outlier channels
    pair = new_pair(dense, tiny_bridge(), 0)
    normalise_sites(pair, corpus, 16, 0)
    ids = corpus.batch(0, 1 << 41, 1024, 16)
    with torch.no_grad():
        for site, h in zip(pair.sites, residuals(pair.dense, ids), strict=True):
            seen = site.normalised(h)
            assert seen.mean((0, 1)).abs().max() < 1e-2
            assert torch.allclose(seen.std((0, 1)), torch.ones(32), atol=1e-2)


@pytest.mark.parametrize("width", [32, 48])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_start_from_the_dense_weights_is_exact(corpus, width: int, normalised: bool):
    spec = tiny_bridge(init="dense", model=SparseModelSpec(d_model=width, activation_frac=1.0, bigram="dense"), encoder_frac=1.0)
    dense = dense_model()
    torch.manual_seed(3)
    with torch.no_grad():  # norms that do something
        for name, p in dense.model.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn_like(p))
    pair = new_pair(dense, spec, 0)
    ids = tokens()
    samples = normalise_sites(pair, corpus, 16, 0) if normalised else [h.flatten(0, 1) for h in residuals(pair.dense, ids)]
    start_from_dense(pair, samples)
    with torch.no_grad():
        wanted = dense.model(input_ids=ids).logits
        assert torch.allclose(pair.sparse(input_ids=ids).logits, wanted, atol=2e-3)
        for to_sparse, to_dense in paths(pair, ids):
            assert torch.allclose(to_sparse, wanted, atol=5e-3)
            assert torch.allclose(to_dense, wanted, atol=5e-3)


def test_the_sparsest_basis_is_found_again_after_a_rotation():
    """Vectors with three nonzero entries each, turned at random: their own axes come back, up to order and sign."""
    generator = torch.Generator().manual_seed(0)
    sparse = torch.zeros(600, 12)
    for row in sparse:
        row[torch.randperm(12, generator=generator)[:3]] = torch.randn(3, generator=generator)
    hidden = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    turn = sparsest_basis(sparse @ hidden.T)
    assert torch.allclose(turn @ turn.T, torch.eye(12), atol=1e-5)
    found = (turn @ hidden).abs()
    assert torch.allclose(found.max(0).values, torch.ones(12), atol=0.05)
    assert len(set(found.argmax(1).tolist())) == 12


def test_heads_are_turned_without_changing_what_they_do():
    weights = fold_norms(tiny_pair().dense.weights())
    sparse = with_sparse_heads(weights, [torch.randn(50, 32), torch.randn(50, 32)])
    for plain, block in zip(weights.blocks, sparse.blocks, strict=True):
        (q, k, v), (q2, k2, v2) = plain.qkv.chunk(3), block.qkv.chunk(3)
        for start in range(0, 32, 16):
            head = slice(start, start + 16)
            assert torch.allclose(q2[head].T @ k2[head], q[head].T @ k[head], atol=1e-4)
            assert torch.allclose(block.attn_out[:, head] @ v2[head], plain.attn_out[:, head] @ v[head], atol=1e-4)
            assert not torch.allclose(v2[head], v[head], atol=0.1)


def test_what_cannot_be_started_from_is_refused(corpus):
    from transformers import LlamaConfig, LlamaForCausalLM

    turns = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}  # angles that depend on the text

    with pytest.raises(SpecError, match="needs 128 neurons a layer, the spec has 64"):
        start_from_dense(new_pair(dense_model(), tiny_bridge(init="dense"), 0), [])
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, rope_parameters=turns
        )
    )
    with pytest.raises(SpecError, match="use --init scratch"):
        start_from_dense(new_pair(DenseModel(llama, "llama", {}), tiny_bridge(init="dense"), 0), [])


def test_activations_are_annealed_with_the_weights_and_end_at_their_numbers():
    spec = tiny_bridge(init="dense", model=SparseModelSpec(d_model=32, activation_frac=0.25), encoder_frac=0.5)
    pair = new_pair(dense_model(), spec, 0)
    annealing = ActivationAnnealing(pair, SparsitySpec(anneal="exponential", anneal_start=0.1, anneal_end=0.5))
    site, encoder = pair.sparse.blocks[0].mlp.post_act, pair.sites[0]
    seen = []
    for step in (0, 30, 50):
        annealing.set(step, 100)
        seen.append((site.k, encoder.kept["default"]))
    assert seen == [(128, 32), (64, 23), (32, 16)]  # halfway the square roots of 1/4 and 1/2
    annealing.set(0, 100)
    annealing.finish()
    assert (site.k, encoder.kept["default"]) == (32, 16)


# Training.


@pytest.mark.parametrize("init", ["scratch", "dense"])
def test_training_lowers_the_loss_and_leaves_the_dense_model_alone(corpus, tmp_path: Path, init: str):
    dense = dense_model(scale=0.05)
    before = {name: p.detach().clone() for name, p in dense.model.named_parameters()}
    spec = changed(tiny_bridge(init=init, model=SparseModelSpec(d_model=32, d_head=16, n_ctx=16)), batch=10, steps=40, lr=0.05)
    pair = train_bridges(dense, spec, corpus, 0, environment(tmp_path))
    after = dict(pair.adapter.unload().named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(40))
    worst = max(range(40), key=lambda i: log[i]["loss"])
    assert sum(e["loss"] for e in log[-5:]) / 5 < 0.9 * log[worst]["loss"]
    assert log[-1]["ce"] < 0.95 * math.log(VOCABULARY)
    assert not any(site.scaling for site in pair.sites)


@pytest.mark.parametrize("init", ["scratch", "dense"])
def test_stopped_and_resumed_is_bit_equal(corpus, tmp_path: Path, init: str):
    model = SparseModelSpec(d_model=32, d_head=16, n_ctx=16)
    spec = changed(tiny_bridge(init=init, model=model), steps=12)

    def weights(pair: BridgedPair) -> list[torch.Tensor]:
        return [*pair.sparse.state_dict().values(), *site_parameters(pair.sites)]

    whole = weights(train_bridges(dense_model(), spec, corpus, 0, environment(tmp_path / "a")))
    with pytest.raises(Stopped):
        train_bridges(dense_model(), spec, corpus, 0, environment(tmp_path / "b", stop_after(5)))
    again = weights(train_bridges(dense_model(), spec, corpus, 0, environment(tmp_path / "b")))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()


def test_a_micro_batch_gives_the_weights_of_the_whole_batch(corpus):
    def trained(micro: int | None) -> list[torch.Tensor]:
        spec = changed(tiny_bridge(), steps=3, micro_batch=micro)
        trainer = BridgeTrainer(dense_model(), spec, corpus, 0, Compute(spec.optim))
        losses = [trainer.step(index)["loss"] for index in range(3)]
        return [torch.tensor(losses), *site_parameters(trainer.pair.sites)]

    for a, b in zip(trained(None), trained(2), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_outlier_channels_do_not_keep_bridges_from_learning(corpus):
    """GPT-2's first position and a few channels are a hundred times the rest; decoders still learn all channels."""
    dense = dense_model()
    with torch.no_grad():
        dense.model.transformer.wte.weight[:, 7] += 300
        dense.model.transformer.wpe.weight[0, 9] += 3000
    spec = changed(tiny_bridge(), steps=60, batch=10)
    trainer = BridgeTrainer(dense, spec, corpus, 0, Compute(spec.optim))
    told = [trainer.step(index) for index in range(60)]
    assert all(math.isfinite(value) for step in told for value in step.values())
    assert told[-1]["nmse_decoder"] < 0.95 * told[0]["nmse_decoder"]
    assert told[-1]["kl_to_dense"] < told[0]["kl_to_dense"]


def test_bf16_passes_keep_fp32_weights(corpus):
    spec = changed(tiny_bridge(), steps=2, precision="bf16")
    trainer = BridgeTrainer(dense_model(), spec, corpus, 0, Compute(spec.optim))
    wide = BridgeTrainer(dense_model(), changed(spec, precision="fp32"), corpus, 0, Compute(changed(spec, precision="fp32").optim))
    one, two = trainer.step(0), wide.step(0)
    assert one["loss"] == pytest.approx(two["loss"], rel=0.03)
    assert one["loss"] != two["loss"]
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
