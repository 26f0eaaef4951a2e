"""Bridges as a PEFT tuner: what a bridged dense model, its adapter folder and PEFT's own ways with them do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from worlds import VOCABULARY, paths, python, random_gpt2, tiny_bridge, tiny_pair

from extractor.bridges.pair import BridgedPair, bridge_card, load_pair, new_pair
from extractor.bridges.tuner import BridgeSite, Scaling, bridge_sites, site_parameters
from extractor.errors import BrokenArtifact, NotFound
from extractor.models.dense.base import residuals
from extractor.models.load import DenseModel
from extractor.sparse.configuration_sparse_gpt import SparseGPTConfig

SITES = 5  # two layers: two sublayers each, and the place before the unembedding


@pytest.fixture
def pair() -> BridgedPair:
    return tiny_pair()


def tokens(rows: int = SITES, length: int = 16) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(4))


def saved(pair: BridgedPair, folder: Path) -> Path:
    pair.save(folder)
    return folder


def test_wrapping_leaves_the_dense_logits_as_they_are_bit_for_bit(gpt2):
    ids = tokens()
    with torch.no_grad():
        before = gpt2(input_ids=ids).logits
        pair = new_pair(DenseModel(gpt2.requires_grad_(False), "tiny", {}), tiny_bridge(), 0)
        assert torch.equal(pair.adapter(input_ids=ids).logits, before)


def test_there_is_a_site_before_every_sublayer_and_one_at_the_end(pair: BridgedPair):
    names = [name for name, module in pair.adapter.named_modules() if isinstance(module, BridgeSite)]
    assert [".".join(name.split(".")[-3:]) for name in names] == ["h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "model.transformer.ln_f"]
    assert len(pair.sites) == SITES


def test_each_site_stands_where_its_residual_is(pair: BridgedPair):
    seen: list[torch.Tensor] = []
    handles = [site.register_forward_pre_hook(lambda _m, args: seen.append(args[0])) for site in pair.sites]
    with torch.no_grad():
        pair.adapter(input_ids=tokens())
        count = len(seen)
        for handle in handles:
            handle.remove()
        expected = residuals(pair.dense, tokens())
    assert count == SITES
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_only_encoders_and_decoders_can_be_trained(pair: BridgedPair):
    trainable = {name for name, p in pair.adapter.named_parameters() if p.requires_grad}
    assert len(trainable) == SITES * 4
    assert all("bridge_encoder" in name or "bridge_decoder" in name for name in trainable)


def test_encoding_by_hand(pair: BridgedPair):
    site = pair.sites[0]
    with torch.no_grad():
        layer = site.bridge_encoder["default"]
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(16.0))
        layer.weight[0, 3] = -40.0
        h = torch.zeros(32)
        h[3] = 1.0
        assert site.encode(h).tolist() == [-40.0, *[0.0] * 12, 13.0, 14.0, 15.0]  # a quarter of 16 channels stays


def test_normalisation_folds_into_the_maps(pair: BridgedPair):
    """While trained, sites see normalised residuals; folded, the same maps take them as they are."""
    generator = torch.Generator().manual_seed(0)
    site = pair.sites[1]
    h = torch.randn(3, 7, 32, generator=generator) * 40 + 5
    site.scaling["default"] = Scaling(h.mean((0, 1)), h.std((0, 1)))
    with torch.no_grad():
        s = site.encode(h)
        back = site.decode(s)
        plain = site.bridge_encoder["default"]((h - h.mean((0, 1))) / h.std((0, 1)))
        assert torch.equal(s[s != 0], plain[s != 0])
        site.fold_scaling()
        assert not site.scaling
        assert torch.allclose(site.encode(h), s, atol=1e-5)
        assert torch.allclose(site.decode(s), back, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("normalised", [True, False])
def test_set_maps_takes_residuals_as_they_are(pair: BridgedPair, normalised: bool):
    generator = torch.Generator().manual_seed(0)
    site, h = pair.sites[0], torch.randn(4, 32, generator=generator) * 9 + 2
    if normalised:
        site.scaling["default"] = Scaling(h.mean(0), h.std(0))
    encoder, decoder = torch.randn(16, 32, generator=generator), torch.randn(32, 16, generator=generator)
    site.kept["default"] = 16
    site.set_maps(encoder, decoder)
    with torch.no_grad():
        s = site.encode(h)
        assert torch.allclose(s, h @ encoder.T, atol=1e-4)
        assert torch.allclose(site.decode(s), s @ decoder.T, atol=1e-3)


def test_a_change_is_added_after_the_norm_and_only_inside_the_block(pair: BridgedPair):
    ids, site = tokens(), pair.sites[2]
    change = torch.randn(SITES, 16, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = pair.adapter(input_ids=ids).logits
        handle = site.base_layer.register_forward_hook(lambda _m, _i, out: out + change)
        expected = pair.adapter(input_ids=ids).logits
        handle.remove()
        with site.steered(change):
            steered = pair.adapter(input_ids=ids).logits
            with pair.adapter.disable_adapter():
                assert torch.equal(pair.adapter(input_ids=ids).logits, plain)
        assert torch.equal(steered, expected)
        assert not torch.equal(steered, plain)
        assert torch.equal(pair.adapter(input_ids=ids).logits, plain)


FRESH = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
import extractor.bridges, extractor.sparse
from extractor.bridges import bridge_sites
from extractor.models.dense.base import residuals, tail, wrap_dense
torch.set_num_threads(1)
here = Path(sys.argv[1])
dense = AutoModelForCausalLM.from_pretrained(here / 'dense').eval()
model = PeftModel.from_pretrained(dense, here / 'model', subfolder='bridges')
sparse = AutoModelForCausalLM.from_pretrained(here / 'model').eval()
expected = torch.load(here / 'expected.pt')
view, ids = wrap_dense(dense), expected['ids']
with torch.no_grad():
    hd, context = residuals(view, ids), sparse.context(ids.shape[1])
    hs = [sparse.embed(ids, context)]
    for index in range(4):
        hs.append(sparse.sublayer(index, hs[-1], context))
    for start, site in enumerate(bridge_sites(model)):
        h = site.encode(hd[start])
        for index in range(start, 4):
            h = sparse.sublayer(index, h, context)
        print(torch.equal(sparse.unembed(h, ids), expected['to_sparse'][start]))
        d = tail(view, start, site.decode(hs[start]), view.context(ids))
        print(torch.equal(view.unembed(d), expected['to_dense'][start]))
"""


@pytest.mark.slow
def test_saved_halves_open_in_a_fresh_process_with_bit_equal_hybrid_logits(pair: BridgedPair, tmp_path: Path):
    random_gpt2().save_pretrained(tmp_path / "dense")
    pair.save(tmp_path / "model")
    ids = tokens()
    to_sparse, to_dense = zip(*paths(pair, ids), strict=True)
    torch.save({"ids": ids, "to_sparse": list(to_sparse), "to_dense": list(to_dense)}, tmp_path / "expected.pt")
    out = python(FRESH, str(tmp_path), env={"HF_HUB_OFFLINE": "1"})
    assert out.split() == ["True"] * (2 * SITES)
    assert len({t.sum().item() for t in (*to_sparse, *to_dense)}) == 2 * SITES, "the paths should differ"


def test_the_adapter_folder_names_its_two_models_and_widths(tmp_path: Path):
    dense = DenseModel(random_gpt2().requires_grad_(False), "org/tiny@abc", {"model": "org/tiny@abc", "sha256": "f00d"})
    new_pair(dense, tiny_bridge(), 0).save(tmp_path)
    config = json.loads((tmp_path / "bridges" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SPARSE_BRIDGE"
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "abc")
    assert (config["d_dense"], config["d_sparse"], config["encoder_frac"]) == (32, 16, 0.25)
    assert (tmp_path / "bridges" / config["sparse_model_name_or_path"] / "config.json").is_file()
    card = (tmp_path / "bridges" / "README.md").read_text()
    assert "import extractor.bridges" in card
    assert 'from_pretrained("org/tiny", revision="abc")' in card
    assert "f00d" in card


def test_without_the_import_peft_does_not_know_the_adapter(pair: BridgedPair, tmp_path: Path):
    """Why the card says to import: PEFT has no entry points."""
    random_gpt2().save_pretrained(tmp_path / "dense")
    pair.save(tmp_path / "model")
    code = (
        "import sys\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
        "dense = AutoModelForCausalLM.from_pretrained(sys.argv[1] + '/dense')\n"
        "try:\n    PeftModel.from_pretrained(dense, sys.argv[1] + '/model', subfolder='bridges')\n"
        "except KeyError as error:\n    print(error)"
    )
    assert "SPARSE_BRIDGE" in python(code, str(tmp_path), env={"HF_HUB_OFFLINE": "1"})


def test_unloading_gives_the_dense_model_back(pair: BridgedPair):
    ids, plain = tokens(), random_gpt2()
    model = pair.adapter.unload()
    assert not bridge_sites(model)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_merging_is_refused(pair: BridgedPair):
    with pytest.raises(ValueError, match="cannot be merged"):
        pair.adapter.merge_and_unload()
    with pytest.raises(ValueError, match="cannot be merged"):
        pair.adapter.merge_adapter()


def test_several_sparse_models_hang_on_one_dense_model(pair: BridgedPair, tmp_path: Path):
    pair.save(tmp_path)
    assert isinstance(pair.adapter, PeftModel)
    pair.adapter.load_adapter(str(tmp_path / "bridges"), adapter_name="other")
    site, h = pair.sites[0], torch.ones(32)
    first = site.encode(h)
    with torch.no_grad():
        site.bridge_encoder["other"].bias.add_(3)
    assert torch.equal(site.encode(h), first)
    pair.adapter.set_adapter("other")
    assert not torch.equal(site.encode(h), first)
    ids, plain = tokens(), random_gpt2()
    with torch.no_grad():
        assert torch.equal(pair.adapter(input_ids=ids).logits, plain(input_ids=ids).logits)
    pair.adapter.set_adapter("default")
    assert torch.equal(site.encode(h), first)


@pytest.mark.parametrize("how", ["low_memory", "auto", "trainable", "bf16"])
def test_peft_opens_the_adapter_in_its_other_ways(pair: BridgedPair, tmp_path: Path, how: str, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    random_gpt2().save_pretrained(tmp_path / "dense")
    folder = saved(pair, tmp_path / "model") / "bridges"
    config = json.loads((folder / "adapter_config.json").read_text()) | {
        "base_model_name_or_path": str(tmp_path / "dense"),
        "revision": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if how == "auto":
        model = AutoPeftModelForCausalLM.from_pretrained(folder)
    else:
        dense = random_gpt2().to(torch.bfloat16) if how == "bf16" else random_gpt2()
        model = PeftModel.from_pretrained(dense, folder, low_cpu_mem_usage=how == "low_memory", is_trainable=how == "trainable")
    found, expected = site_parameters(bridge_sites(model)), site_parameters(pair.sites)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), "a bf16 base keeps its bridges in fp32"
    assert all(p.requires_grad == (how == "trainable") for p in found)
    ids, reference = tokens(), random_gpt2().to(model.dtype)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, reference(input_ids=ids).logits)


def test_transformers_own_loader_and_generate(pair: BridgedPair, tmp_path: Path):
    folder, plain = saved(pair, tmp_path) / "bridges", random_gpt2()
    model = random_gpt2()
    model.load_adapter(str(folder))
    assert torch.equal(bridge_sites(model)[3].bridge_decoder["default"].weight, pair.sites[3].bridge_decoder["default"].weight)
    ids = tokens(2, 8)
    wanted = plain.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(pair.adapter.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0), wanted)
    with pair.sites[0].steered(torch.full((32,), 3.0)):
        steered = pair.adapter.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert not torch.equal(steered, wanted)


def test_a_pair_opens_again(pair: BridgedPair, tmp_path: Path):
    pair.save(tmp_path)
    again = load_pair(tmp_path, DenseModel(random_gpt2().requires_grad_(False), "tiny", {}))
    assert all(torch.equal(a, b) for a, b in zip(site_parameters(again.sites), site_parameters(pair.sites), strict=True))
    assert not any(p.requires_grad for p in (*again.sparse.parameters(), *site_parameters(again.sites)))
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(again.sparse(input_ids=ids).logits, pair.sparse(input_ids=ids).logits)


def test_bridges_of_another_model_are_refused(pair: BridgedPair, tmp_path: Path):
    with pytest.raises(NotFound, match="has no bridges"):
        load_pair(tmp_path, DenseModel(random_gpt2(), "tiny", {}))
    pair.save(tmp_path)
    from transformers import GPT2Config, GPT2LMHeadModel

    wide = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=48, n_layer=2, n_head=2))
    with pytest.raises(BrokenArtifact, match="do not fit wide"):
        load_pair(tmp_path, DenseModel(wide, "wide", {}))


def test_llama_and_gpt_neo_are_bridged_at_their_norms():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    )
    neo = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global"], 2]],
            max_position_embeddings=32,
            attention_dropout=0.0,
            embed_dropout=0.0,
            resid_dropout=0.0,
        )
    )
    ids = tokens(3, 8) % 64
    for model, positions in ((llama, False), (neo, True)):
        model.eval().requires_grad_(False)
        with torch.no_grad():
            before = model(input_ids=ids).logits
            pair = new_pair(DenseModel(model, "other", {}), tiny_bridge(), 0)
            assert torch.equal(pair.adapter(input_ids=ids).logits, before)
        assert len(pair.sites) == SITES
        assert pair.sparse.config.added_positions is positions


HOSTILE_NAMES = (
    "org/plain-name",
    '/m/a"b\\c',
    "/m/x\nlicense: mit\n---\n# owned",
    '/m/x")\nimport os; os.system("true"); print("',
    "/m/# [a](javascript:x) <script>`x`",
    "/m/\x1b[31m\u2028é漢😀: - {a: b}",
    "/home/me@lab/model",
    "yes",
    "1e3",
)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_bridge_card_quotes_what_a_folder_is_called(name: str):
    import ast

    import yaml

    facts = {"model": name, "adapter": None, "sha256": "ab12"}
    card = bridge_card(name, facts, SparseGPTConfig())
    _, head, body = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    assert yaml.safe_load(head) == {"base_model": name, "library_name": "peft"}
    prose, code, rest = body.split("```")
    calls = [node for node in ast.walk(ast.parse(code.removeprefix("python"))) if isinstance(node, ast.Call)]
    named = [node.args[0].value for node in calls if node.args and isinstance(node.args[0], ast.Constant)]
    assert named == [name]
    assert not re.search(r"(?<!\\)[<\[`]", prose), "no tag, no link, no code"
    assert all(c.isprintable() or c == "\n" for c in prose + rest)
    assert len([line for line in rest.splitlines() if line.startswith("- ")]) == 2


def test_the_card_of_an_ordinary_model_reads_as_before():
    card = bridge_card("org/name@abc", {"model": "org/name@abc"}, SparseGPTConfig())
    assert card.startswith("---\nbase_model: org/name\nlibrary_name: peft\n---\n\n# Bridges between org/name and a weight-sparse GPT\n")
    assert 'AutoModelForCausalLM.from_pretrained("org/name", revision="abc")' in card
    assert card.endswith("```\n\n- model: `org/name@abc`\n")
