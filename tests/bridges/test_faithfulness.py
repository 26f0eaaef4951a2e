"""How much of a dense model its sparse partner carries: every number against the plain definition, on pairs small enough for it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from worlds import CORPUS, VOCABULARY, paths, tiny_pair

from extractor import files
from extractor.bridges import faithfulness as measured
from extractor.bridges.behaviour import behaviour, circuit_through_bridges, dense_logit_diffs, why_not_dense
from extractor.bridges.faithfulness import bigram_logits, bigram_loss, faithfulness
from extractor.bridges.initialisation import start_from_dense
from extractor.bridges.losses import sparse_residuals
from extractor.bridges.pair import BridgedPair, new_pair
from extractor.circuits.calibration import calibrate
from extractor.circuits.graph import CircuitMask
from extractor.circuits.mean_activations import measure_means
from extractor.data.build_corpus import build_corpus
from extractor.data.corpus import Corpus
from extractor.data.prompts import TaskBatch
from extractor.models.dense.base import residuals, tail
from extractor.models.load import load_dense
from extractor.models.reference import open_model
from extractor.models.tokenizer import load_tokenizer
from extractor.sparse.bigram import Counts
from extractor.spec.schema import BridgeSpec, SparseModelSpec
from extractor.training.train_sparse import fill_bigram

SITES, ROWS, CONTEXT = 5, 6, 16
EXACT = BridgeSpec(init="dense", encoder_frac=1.0, model=SparseModelSpec(d_model=144, activation_frac=1.0))


@pytest.fixture(scope="module")
def pair() -> BridgedPair:
    """A random pair whose paths all differ."""
    return tiny_pair()


@pytest.fixture(scope="module")
def python_text(cache: Path) -> Corpus:
    """The generated programs as python-tiny reads them."""
    return build_corpus(CORPUS, load_tokenizer(open_model("python-tiny").path), cache)


@pytest.fixture(scope="module")
def exact() -> BridgedPair:
    """python-tiny and the sparse model that is the same function."""
    found = new_pair(load_dense(open_model("python-tiny")), EXACT, 0)
    ids = torch.randint(VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(9))
    start_from_dense(found, [h.flatten(0, 1) for h in residuals(found.dense, ids)])
    return found


@pytest.fixture(scope="module")
def told(pair: BridgedPair, corpus: Corpus) -> dict:
    return faithfulness(pair, corpus, CONTEXT, 3, ROWS)


def prompts(seed: int, pairs: int = 6) -> TaskBatch:
    """Random prompts of 3 to 12 tokens, padded on the right with tokens that nobody may read; answers 5 and 9."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (2 * pairs, 12), generator=generator)
    last = torch.randint(2, 12, (2 * pairs,), generator=generator)
    last[0] = 11
    answers, sign = torch.tensor([5, 9]).repeat(pairs), torch.tensor([1.0, -1.0]).repeat(pairs)
    return TaskBatch(ids, last, answers, answers.flip(0), sign)


def one_by_one(batch: TaskBatch) -> Iterator[Tensor]:
    """Each prompt by itself, (1, tokens), without padding."""
    for row, last in zip(batch.ids, batch.last.tolist(), strict=True):
        yield row[None, : last + 1]


def held_out(corpus: Corpus) -> Tensor:
    """The text on which `told` was measured."""
    return torch.cat([*corpus.held_out_by_source(3, ROWS, CONTEXT).values()])


def diff(logits: Tensor) -> Tensor:
    return logits[0, -1, 5] - logits[0, -1, 9]


def loss_of(diffs: Tensor, batch: TaskBatch) -> float:
    right = batch.sign * diffs
    return float((1 + (-right).exp()).log().mean())


def right_of(diffs: Tensor, batch: TaskBatch) -> float:
    return float((batch.sign * diffs > 0).double().mean())


def everything_on(pair: BridgedPair) -> CircuitMask:
    return CircuitMask.full(pair.sparse)


def test_a_partner_that_is_the_dense_model_recovers_everything(exact: BridgedPair, python_text: Corpus):
    told = faithfulness(exact, python_text, 48, 0, 8)
    assert told["dense_loss"] < told["bigram_loss"] - 0.5
    assert told["sparse_loss"] == pytest.approx(told["dense_loss"], abs=1e-3)
    assert told["agreement"] == pytest.approx(1, abs=0.005)  # but for ties
    assert [told["kl_dense_to_sparse"], *told["path_kl"]["to_sparse"], *told["path_kl"]["to_dense"]] == pytest.approx([0] * 11, abs=1e-4)
    for shares in (told["loss_recovered"], told["explained"]):
        found = [shares["sparse"], shares["mean"], shares["worst"], *shares["to_sparse"], *shares["to_dense"]]
        assert found == pytest.approx([1] * 13, abs=1e-3)
    assert told["nmse"]["encoder"] == pytest.approx([0] * SITES, abs=1e-5)


def test_an_untrained_partner_recovers_nothing(python_text: Corpus):
    pair = new_pair(load_dense(open_model("python-tiny")), BridgeSpec(), 0)
    told = faithfulness(pair, python_text, 48, 0, 8)
    assert told["explained"]["mean"] < 0
    shares = told["loss_recovered"]
    assert max(shares["sparse"], *shares["to_sparse"], *shares["to_dense"]) < 0.05
    assert shares["mean"] < 0


def test_a_partner_of_bigrams_recovers_what_bigrams_know(python_text: Corpus):
    pair = new_pair(load_dense(open_model("python-tiny")), BridgeSpec(), 0)
    fill_bigram(pair.sparse, python_text)
    with torch.no_grad():
        pair.sparse.lm_head.weight.zero_()
    told = faithfulness(pair, python_text, 48, 0, 8)
    assert told["sparse_loss"] == pytest.approx(told["bigram_loss"], abs=1e-4)
    for shares in (told["loss_recovered"], told["explained"]):
        assert [shares["sparse"], *shares["to_sparse"]] == pytest.approx([0] * (1 + SITES), abs=1e-4)
    assert told["kl_dense_to_bigram"] == pytest.approx(told["kl_dense_to_sparse"], abs=1e-4)


def test_losses_and_divergences_are_those_of_all_logits_at_once(pair: BridgedPair, corpus: Corpus, told: dict):
    ids = held_out(corpus)
    with torch.no_grad():
        dense, sparse = pair.dense.unembed(residuals(pair.dense, ids)[-1]), pair.sparse(input_ids=ids).logits
        crossed = paths(pair, ids)

    def loss(logits: Tensor) -> float:
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()

    def kl(logits: Tensor) -> float:
        p, q = dense.double().log_softmax(-1), logits.double().log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean().item()

    close = {"rel": 1e-4, "abs": 2e-6}
    assert told["dense_loss"] == pytest.approx(loss(dense), **close)
    assert told["sparse_loss"] == pytest.approx(loss(sparse), **close)
    assert told["kl_dense_to_sparse"] == pytest.approx(kl(sparse), **close)
    assert told["agreement"] == pytest.approx((dense.argmax(-1) == sparse.argmax(-1)).double().mean().item(), abs=1e-6)
    for way, key in enumerate(("to_sparse", "to_dense")):
        assert told["path_loss"][key] == pytest.approx([loss(both[way]) for both in crossed], **close)
        assert told["path_kl"][key] == pytest.approx([kl(both[way]) for both in crossed], **close)
    assert len({*told["path_kl"]["to_sparse"], *told["path_kl"]["to_dense"]}) == 2 * SITES
    assert told["held_out_tokens"] == ROWS * CONTEXT


def test_errors_of_the_bridges_are_over_the_variance_around_channel_means(pair: BridgedPair, corpus: Corpus, told: dict):
    ids = held_out(corpus)
    with torch.no_grad():
        for index, (site, d, s) in enumerate(zip(pair.sites, residuals(pair.dense, ids), sparse_residuals(pair, ids), strict=True)):
            d, s = d.double().flatten(0, 1), s.double().flatten(0, 1)
            encoded, decoded = (site.encode(d.float()) - s).square().mean(0), (site.decode(s.float()) - d).square().mean(0)
            dense_variance = d.var(0, correction=0)
            assert told["nmse"]["encoder"][index] == pytest.approx(float(encoded.sum() / s.var(0, correction=0).sum()), rel=1e-4)
            assert told["nmse"]["decoder"][index] == pytest.approx(float(decoded.sum() / dense_variance.sum()), rel=1e-4)
            assert told["nmse"]["decoder_by_channel"][index] == pytest.approx(float((decoded / dense_variance).mean()), rel=1e-4)


def test_a_channel_that_never_varies_is_left_out_of_the_mean_over_channels():
    x = torch.tensor([[[3000.0, 1.0, 0.0], [3000.0, -1.0, 0.0]]])
    moments = measured._moments(x + torch.tensor([5.0, 0.5, 7.0]), x)[None]
    assert measured._nmse_by_channel(moments, 2) == [0.25]
    assert measured._nmse(moments, 2) == [pytest.approx(25 + 0.25 + 49)]


@pytest.mark.parametrize("rows_at_once", [1, 4])
def test_chunks_change_nothing(pair: BridgedPair, corpus: Corpus, told: dict, monkeypatch: pytest.MonkeyPatch, rows_at_once: int):
    sizes = []
    whole = measured._sums
    monkeypatch.setattr(measured, "_sums", lambda pair, ids, counts: sizes.append(len(ids)) or whole(pair, ids, counts))
    monkeypatch.setattr(measured, "LOGITS_AT_ONCE", rows_at_once * CONTEXT * VOCABULARY)
    again = faithfulness(pair, corpus, CONTEXT, 3, ROWS)
    assert sizes == {1: [1] * ROWS, 4: [4, 2]}[rows_at_once]
    assert again.keys() == told.keys()
    assert _numbers(again) == pytest.approx(_numbers(told), rel=1e-4, abs=2e-6)


def _numbers(value) -> list[float]:
    if isinstance(value, dict | list):
        return [n for part in (value.values() if isinstance(value, dict) else value) for n in _numbers(part)]
    return [] if value is None or isinstance(value, str) else [value]


def test_a_dense_model_that_knows_less_than_bigrams_has_no_scale(told: dict):
    assert told["dense_loss"] > told["bigram_loss"]
    assert told["loss_recovered"] is None
    assert told["explained"] is not None, "its predictions differ from the bigram model's all the same"


def test_the_numbers_are_json_at_six_decimals(told: dict):
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert all(n == round(n, 6) for n in _numbers(told))


def test_the_bigram_model_is_that_of_the_dense_table(corpus: Corpus):
    ids, sparse = corpus.held_out_batch(0, 32, CONTEXT), tiny_pair().sparse
    fill_bigram(sparse, corpus)
    table = sparse.get_parameter("bigram_table")
    expected = functional.cross_entropy(table[ids[:, :-1]].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert bigram_loss(Counts(VOCABULARY, *corpus.bigram_triples(VOCABULARY)), ids) == pytest.approx(expected, abs=1e-5)


def test_bigram_logits_are_the_distributions_that_the_loss_is_of(corpus: Corpus):
    ids, counts = corpus.held_out_batch(0, 32, CONTEXT), Counts(VOCABULARY, *corpus.bigram_triples(VOCABULARY))
    logits = bigram_logits(counts, ids)
    assert torch.allclose(logits.exp().sum(-1), torch.ones(ids.shape), atol=1e-5)
    loss = -logits[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()
    assert loss == pytest.approx(bigram_loss(counts, ids), abs=1e-5)


@pytest.mark.parametrize("size", [3, 50_257])
def test_bigram_loss_by_hand(size: int):
    """0 1 three times and 0 2 once: token 1 has 8 * 4 / (4 + size) of the prior's counts, 0 has 8 / (4 + size)."""
    counts = Counts(size, np.array([0, 0]), np.array([1, 2]), np.array([3.0, 1.0]))
    one, nought = 32 / (4 + size), 8 / (4 + size)
    expected = -(math.log((3 + one) / 12) + math.log(nought / 8) + math.log(nought / 12)) / 3  # 0 1, then 1 0, then 0 0
    assert bigram_loss(counts, torch.tensor([[0, 1, 0, 0]])) == pytest.approx(expected)


def test_agreement_on_prompts_is_counted_prompt_by_prompt(pair: BridgedPair):
    batch = prompts(1, pairs=20)
    with torch.no_grad():
        dense = torch.stack([diff(pair.adapter(input_ids=ids).logits) for ids in one_by_one(batch)])
        sparse = torch.stack([diff(pair.sparse(input_ids=ids).logits) for ids in one_by_one(batch)])
    assert torch.allclose(dense_logit_diffs(pair, batch), dense, atol=1e-4)
    told = behaviour(pair, batch, prompts(2, pairs=20), 0)
    assert told["agreement"] == ((dense > 0) == (sparse > 0)).double().mean().item()
    assert 0.1 < told["agreement"] < 0.9
    assert told["loss"] == {
        "dense": pytest.approx(loss_of(dense, batch), rel=1e-4),
        "sparse": pytest.approx(loss_of(sparse, batch), rel=1e-4),
    }
    assert told["accuracy"] == {"dense": right_of(dense, batch), "sparse": right_of(sparse, batch)}
    for name, value in (("agreement", told["agreement"]), *told["accuracy"].items()):
        low, high = told["interval"][name]
        assert low <= value <= high
        assert 0.05 < high - low < 0.6
    assert told["calibrated"]["dense"] < max(told["loss"]["dense"], math.log(2) + 0.1)


def test_divergences_at_the_answer_are_those_of_each_prompt_by_itself(pair: BridgedPair):
    batch = prompts(1, pairs=9)
    told = behaviour(pair, batch, prompts(2), 0)["kl"]
    wanted = []
    with torch.no_grad():
        for ids in one_by_one(batch):
            p = pair.adapter(input_ids=ids).logits[0, -1].double().log_softmax(-1)
            crossed = [logits[0, -1] for both in zip(*paths(pair, ids), strict=True) for logits in both]
            others = [pair.sparse(input_ids=ids).logits[0, -1], *crossed]
            wanted.append([(p.exp() * (p - q.double().log_softmax(-1))).sum().item() for q in others])
    own, *of_paths = torch.tensor(wanted).mean(0).tolist()
    assert told["sparse"] == pytest.approx(own, rel=1e-3, abs=2e-6)
    assert told["to_sparse"] + told["to_dense"] == pytest.approx(of_paths, rel=1e-3, abs=2e-6)


@pytest.mark.parametrize(
    ("dense_loss", "agreement", "said"),
    [
        (0.2, 0.96, None),
        (0.554, 0.95, None),
        (
            0.978,
            1.0,
            "the dense model does not do this task: 0.978 nats on held-out prompts, 63.5% right (0.378 with the best scale and shift); "
            "--labels model asks for what it does instead",
        ),
        (
            0.2,
            0.9,
            "the sparse model prefers another answer than the dense model on 10.0% of the held-out prompts (8.0% to 12.0%), more than 5%; "
            "more bridge.optim.steps bring them together",
        ),
    ],
)
def test_whose_behaviour_it_is_is_judged_by_the_dense_models_loss_and_the_agreement(dense_loss, agreement, said):
    found = {"loss": {"dense": dense_loss}, "calibrated": {"dense": 0.378}, "accuracy": {"dense": 0.635}, "agreement": agreement}
    found["interval"] = {"agreement": [agreement - 0.02, agreement + 0.02]}
    assert why_not_dense(found) == said
    sure = found | {"accuracy": {"dense": 1.0}}  # it is right, and unsure of it
    assert why_not_dense(sure) == (said if agreement < 0.95 else None)


def test_every_source_has_its_own_shares_and_the_worst_stands_first(pair: BridgedPair, tmp_path: Path):
    rng = np.random.default_rng(0)
    facts = []
    for name, span in (("narrow", 3), ("wide", VOCABULARY), ("short", 5)):
        ids = rng.integers(span, size=4000 if name != "short" else CONTEXT - 1).astype(np.uint16)
        np.save(tmp_path / f"{name}.npy", ids)
        facts.append({"source": name, "train": [f"{name}.npy"], "held_out": f"{name}.npy"})
    files.write_json(tmp_path / "corpus.json", {"sources": facts})
    told = faithfulness(pair, Corpus(tmp_path), CONTEXT, 0, 12)
    assert list(told["sources"]) == ["narrow", "wide"], "a source shorter than a context is not drawn from"
    means = {name: source["explained"]["mean"] for name, source in told["sources"].items()}
    assert told["explained"]["source"] == min(means, key=means.get)
    assert told["explained"] == {"source": told["explained"]["source"]} | told["sources"][told["explained"]["source"]]["explained"]
    assert told["kl_dense_to_sparse"] == pytest.approx(sum(s["kl_dense_to_sparse"] for s in told["sources"].values()) / 2, abs=1e-5)
    for source in told["sources"].values():
        shares = source["explained"]
        assert shares["sparse"] == pytest.approx(1 - source["kl_dense_to_sparse"] / source["kl_dense_to_bigram"], abs=1e-4)
        assert max(shares["sparse"], *shares["to_sparse"], *shares["to_dense"]) <= 1


def test_a_circuit_of_all_nodes_is_the_path_from_sparse_to_dense(pair: BridgedPair, corpus: Corpus):
    batch, select = prompts(1), prompts(2)
    means = measure_means(pair.sparse, corpus, 256, 0)
    paths = [torch.stack(site) for site in zip(*(_crossings(pair, ids) for ids in one_by_one(batch)), strict=True)]
    chosen = [torch.stack(site) for site in zip(*(_crossings(pair, ids) for ids in one_by_one(select)), strict=True)]
    told = circuit_through_bridges(pair, batch, everything_on(pair), means, select)
    assert told["raw_loss"] == pytest.approx([loss_of(m, batch) for m in paths], rel=1e-4)
    calibrations = [calibrate(m, select.sign) for m in chosen]
    calibrated = [c.scale * m + c.shift for c, m in zip(calibrations, paths, strict=True)]
    assert told["loss"] == pytest.approx([loss_of(m, batch) for m in calibrated], rel=1e-3)
    assert told["accuracy"] == [pytest.approx(right_of(m, batch)) for m in calibrated]
    assert len(set(told["raw_loss"])) == SITES


def _crossings(pair: BridgedPair, ids: Tensor) -> list[Tensor]:
    return [diff(to_dense) for _, to_dense in paths(pair, ids)]


@torch.no_grad()
def test_a_circuit_without_nodes_is_the_embedding_and_the_means_of_what_is_written(pair: BridgedPair, corpus: Corpus):
    batch = prompts(1)
    means = measure_means(pair.sparse, corpus, 256, 0)
    off = everything_on(pair).complement()
    written = [means[f"{layer}.{place}.resid_delta"] for layer in range(2) for place in ("attn", "mlp")]
    expected = []
    for index, site in enumerate(pair.sites):
        found = []
        for ids in one_by_one(batch):
            h = pair.sparse.embed(ids) + sum(written[:index], torch.zeros(16))
            found.append(diff(pair.dense.unembed(tail(pair.dense, index, site.decode(h), pair.dense.context(ids)))))
        expected.append(loss_of(torch.stack(found), batch))
    told = circuit_through_bridges(pair, batch, off, means, batch)
    assert told["raw_loss"] == pytest.approx(expected, rel=1e-4)
    assert told["raw_loss"][0] == circuit_through_bridges(pair, batch, everything_on(pair), means, batch)["raw_loss"][0]
    assert told["raw_loss"][1:] != circuit_through_bridges(pair, batch, everything_on(pair), means, batch)["raw_loss"][1:]
