"""Only some layers become sparse: the others stay as the dense model has them, frozen, and passes cross only beside the sparse ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from worlds import VOCABULARY, environment, random_gpt2

from extractor.bridges.behaviour import answer_kl
from extractor.bridges.crossing import Crossing
from extractor.bridges.faithfulness import faithfulness
from extractor.bridges.initialisation import freeze_dense_layers, start_from_dense
from extractor.bridges.losses import _sparse_pass as sparse_pass
from extractor.bridges.losses import sparse_residuals
from extractor.bridges.pair import BridgedPair, load_pair, new_pair
from extractor.bridges.train import train_bridges
from extractor.circuits.sites import sites
from extractor.data.prompts import TaskBatch
from extractor.errors import SpecError
from extractor.jobs.cost.bridging import bridging_cost
from extractor.jobs.cost.text import describe, line
from extractor.jobs.request import CircuitRequest
from extractor.models.dense.base import residuals, tail
from extractor.models.load import DenseModel
from extractor.sparse import SparseGPTForCausalLM
from extractor.spec.schema import BridgeSpec, OptimSpec, SparseModelSpec, SparsitySpec
from tests.models.test_dense import llama, neox, tokens

MODELS = {
    "gpt2": lambda: random_gpt2(n_layer=3),
    "llama": lambda: llama(num_hidden_layers=3, vocab_size=VOCABULARY),
    "parallel": lambda: neox(True, num_hidden_layers=3, vocab_size=VOCABULARY),
}
CROSSED = {"gpt2": range(2, 5), "llama": range(2, 5), "parallel": range(1, 3)}


def spec(**changes) -> BridgeSpec:
    optim = OptimSpec(steps=4, batch=4, context=12, lr=0.05)
    given = {"init": "dense", "layers": "1-1", "encoder_frac": 0.5, "optim": optim, "sparsity": SparsitySpec(weight_frac=0.3)}
    return BridgeSpec(**(given | {"model": SparseModelSpec(d_model=32, n_ctx=16, activation_frac=0.5, bigram="none")} | changes))


def dense(kind: str) -> DenseModel:
    return DenseModel(MODELS[kind]().eval().requires_grad_(False), "a model", {"model": "a model"})


def trained(kind: str, corpus, folder: Path, **changes) -> BridgedPair:
    return train_bridges(dense(kind), spec(**changes), corpus, 0, environment(folder, stage="bridge"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_only_the_sparse_layers_and_their_bridges_change(kind: str, corpus, tmp_path: Path):
    ours, ids = dense(kind), tokens()
    start = new_pair(ours, spec(), 0)
    start_from_dense(start, [h.flatten(0, 1) for h in residuals(start.dense, ids)])
    freeze_dense_layers(start)
    assert start.crossed == CROSSED[kind]
    trained_names = {name for name, p in start.sparse.named_parameters() if p.requires_grad}
    assert trained_names
    assert all(name.startswith("transformer.h.1.") for name in trained_names)
    for layer in (0, 2):
        assert all(site.k == site.width for name, site in sites(start.sparse).items() if name.startswith(f"{layer}."))
    assert sites(start.sparse)["1.mlp.post_act"].k < sites(start.sparse)["1.mlp.post_act"].width

    pair = trained(kind, corpus, tmp_path)
    weights = dict(pair.sparse.named_parameters())
    matrix = weights["transformer.h.1.mlp.c_proj.weight"]
    assert matrix.count_nonzero() == round(0.3 * matrix.numel())
    for name in ("lm_head.weight", "transformer.h.0.attn.c_attn.weight", "transformer.h.2.mlp.c_proj.weight"):
        assert weights[name].count_nonzero() > 0.9 * weights[name].numel() * (weights[name].any())
        again = trained(kind, corpus, tmp_path / "other", optim=OptimSpec(steps=2, batch=4, context=12, lr=0.5))
        assert torch.equal(weights[name], dict(again.sparse.named_parameters())[name])


@pytest.mark.parametrize("kind", MODELS)
def test_outside_the_sparse_layers_both_models_are_one(kind: str, corpus, tmp_path: Path):
    """Before the sparse layers the residuals decode to the dense model's; behind them, an encoded dense residual gives the dense logits."""
    pair, ids = trained(kind, corpus, tmp_path), tokens()
    context, last = pair.sparse.context(ids.shape[1]), pair.crossed[-1]
    with torch.no_grad():
        wanted, h = residuals(pair.dense, ids), pair.sparse.embed(ids, context)
        for index in range(pair.crossed[0]):
            decoded, there = pair.sites[index].decode(h), wanted[index]
            if kind != "llama":  # a LayerNorm does not see the mean
                decoded, there = (each - each.mean(-1, keepdim=True) for each in (decoded, there))
            torch.testing.assert_close(decoded, there, rtol=1e-3, atol=1e-3)
            h = pair.sparse.sublayer(index, h, context)
        h = tail(pair.sparse, last + 1, pair.sites[last + 1].encode(wanted[last + 1]), context)
        torch.testing.assert_close(pair.sparse.unembed(h, ids), pair.dense.unembed(wanted[-1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_begins_where_the_sparse_layers_do(kind: str, corpus, tmp_path: Path):
    """A step's own residuals, from the dense model's before the sparse layers, are those of the sparse model alone."""
    pair, ids = trained(kind, corpus, tmp_path), tokens()
    crossing = Crossing.draw(spec(optim=OptimSpec(batch=3, context=12)), len(pair.crossed), torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, _ = sparse_pass(pair, ids, residuals(pair.dense, ids), crossing)
        alone = sparse_residuals(pair, ids)
    assert [*own] == [*range(pair.crossed.start, len(pair.sites))]
    for index, h in own.items():
        torch.testing.assert_close(h, alone[index], rtol=1e-3, atol=1e-3)


def test_the_residual_stream_stays_in_full_precision(corpus, tmp_path: Path):
    pair, ids = trained("llama", corpus, tmp_path), tokens()
    crossing = Crossing.draw(spec(optim=OptimSpec(batch=3, context=12)), len(pair.crossed), torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own, crossed = sparse_pass(pair, ids, residuals(pair.dense, ids), crossing)
    assert {h.dtype for h in [*own.values(), crossed]} == {torch.float32}


def test_numbers_of_a_site_are_those_where_passes_cross(corpus, tmp_path: Path):
    pair = trained("gpt2", corpus, tmp_path)
    found = faithfulness(pair, corpus, 12, 0, 4)
    assert found["sparse_layers"] == [1, 1]
    lists = [found["path_kl"]["to_sparse"], found["path_loss"]["to_dense"], found["nmse"]["encoder"], found["explained"]["to_dense"]]
    for values in lists:
        assert [value is not None for value in values] == [False, False, True, True, True, False, False]
    ids = tokens()[:2]
    batch = TaskBatch(ids, torch.full((len(ids),), 5), ids[:, 0], ids[:, 1], torch.tensor([1.0, -1.0]).repeat(len(ids) // 2))
    assert [value is not None for value in answer_kl(pair, batch)["to_sparse"]] == [False, False, True, True, True, False, False]


def test_what_is_saved_opens_as_it_was(corpus, tmp_path: Path):
    ours = dense("llama")
    pair = train_bridges(ours, spec(), corpus, 0, environment(tmp_path / "work", stage="bridge"))
    pair.save(tmp_path / "model")
    ids = tokens()
    wanted, encoded = pair.sparse(input_ids=ids).logits, pair.sites[0].encode(residuals(pair.dense, ids)[0])
    pair.adapter.unload()
    sparse = SparseGPTForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(sparse(input_ids=ids).logits, wanted)
    again = load_pair(tmp_path / "model", ours, sparse)
    assert again.crossed == CROSSED["llama"]
    assert torch.equal(again.sites[0].encode(residuals(again.dense, ids)[0]), encoded)
    assert json.loads((tmp_path / "model" / "bridges" / "adapter_config.json").read_text())["crossed"] == [2, 4]


CONFIG = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}


def test_a_part_of_the_layers_costs_less_time_and_memory():
    whole, part = (bridging_cost(CONFIG, spec(layers=layers, model=SparseModelSpec(d_model=768))) for layers in (None, "4-7"))
    assert part.trained < 0.4 * whole.trained
    assert part.bytes_needed(4) < 0.7 * whole.bytes_needed(4)
    assert sum(part.flops.values()) < 0.8 * sum(whole.flops.values())
    assert (part.crossed, whole.crossed) == (9, 25)
    assert dict(describe(part))["sparse layers"].startswith("4-7; ")
    assert "sparse layers" not in dict(describe(whole))
    assert "12 layers, sparse in layers 4-7, " in line(part)


@pytest.mark.parametrize(
    ("layers", "changes", "said"),
    [
        ("1-12", {}, "the dense model has layers 0 to 11"),
        ("5-3", {}, "layers (5-3) end before they begin"),
        ("three", {}, "are written A-B, such as 3-7"),
        ("1-2", {"init": "scratch"}, "that needs init dense (--init dense)"),
        ("1-2", {"subject": "dense"}, "leave out bridge.layers, or leave out --dense"),
        ("1-2", {"changes": {"bridge.layers": "1-3"}}, "given twice, 1-2 and 1-3"),
    ],
)
def test_layers_that_cannot_be_are_refused_at_submit(layers: str, changes: dict, said: str):
    def ask() -> None:
        CircuitRequest("m", ("quote_close",), layers=layers, **changes).bridge_choice().beside(CONFIG, False, print)
        CircuitRequest("python-tiny", ("quote_close",), layers=layers, **changes).template()

    with pytest.raises(SpecError) as error:
        ask()
    assert said in str(error.value)
    assert "\n" not in str(error.value)
