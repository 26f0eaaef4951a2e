"""The sparse GPT among the field's tools: generation and caches, saving, the hub, loading where this project is not installed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from test_sparse_model import small_model, tokens
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from worlds import python
from writable_hub import serve

from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM

VARIANTS: dict[str, dict] = {
    "default": {},
    "plain": {"sinks": False, "bigram": "none", "activation_frac": 1.0},
    "position_channels": {"d_pos_emb": 6, "activation": "relu"},
    "added_positions": {"added_positions": True, "logits_bias": True, "site_k": {"attn.act_in": 7, "mlp.post_act": 9}},
    "counts": {"bigram": "counts", "bigram_top": 5},
    "low_rank": {"bigram": "low_rank", "bigram_rank": 4, "d_pos_emb": 3},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)
PAD = 7


def variant(name: str) -> SparseGPTForCausalLM:
    """A random model of each kind, every table filled; weights large enough that its next tokens differ from place to place."""
    model = small_model(**VARIANTS[name])
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith(("bigram", "logits_bias", "transformer.wpe")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif parameter_name == "transformer.wte.weight":
                parameter.mul_(10)
        if hasattr(model, "bigram_index"):
            rows = [torch.randperm(50, generator=generator)[:5] for _ in range(50)]
            model.bigram_index.copy_(torch.stack(rows))
    return model


def left_padded(rows: int = 3, length: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of 5, 4 and 3 tokens, padded on the left with a token that means something, and their mask."""
    ids = tokens(rows, length)
    mask = (torch.arange(length) >= torch.arange(rows)[:, None]).long()
    return torch.where(mask.bool(), ids, PAD), mask


HOW = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 10},
    "beams": {"do_sample": False, "num_beams": 3},
}


@pytest.mark.parametrize(
    ("name", "how", "cache"),
    [(name, "greedy", "dynamic") for name in VARIANTS]
    + [("default", how, cache) for how in HOW for cache in ("dynamic", "static")][1:]
    + [("position_channels", how, cache) for how in HOW for cache in ("dynamic", "static")][1:],
)
def test_a_cache_changes_no_token(name: str, how: str, cache: str):
    model = variant(name)
    ids, mask = left_padded()
    options = {"attention_mask": mask, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None, "no_repeat_ngram_size": 1}

    def made(**more) -> torch.Tensor:
        torch.manual_seed(4)
        return model.generate(ids, **options, **HOW[how], **more)

    without = made(use_cache=False)
    assert torch.equal(made(use_cache=True, cache_implementation=None if cache == "dynamic" else "static"), without)
    assert torch.equal(made(), without)
    kept = made(cache_implementation=None if cache == "dynamic" else "static", return_dict_in_generate=True).past_key_values
    assert isinstance(kept, DynamicCache if cache == "dynamic" else StaticCache)
    assert without.shape == (3, 13)
    assert all(len(set(row)) == 8 for row in without[:, 5:].tolist()), "tokens that never change prove little"


def test_generation_with_a_cache_runs_each_token_once(monkeypatch: pytest.MonkeyPatch):
    model, seen = variant("default"), []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda ids, context=None: seen.append(ids.shape[1]) or embed(ids, context))
    ids = tokens(1, 4)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert seen == [4, 1, 1, 1]


@every_variant
def test_left_padding_changes_no_logit(name: str):
    model = variant(name)
    ids, mask = left_padded()
    with_padding = model(input_ids=ids, attention_mask=mask).logits
    for row, start in enumerate((0, 1, 2)):
        alone = model(input_ids=ids[row : row + 1, start:]).logits[0]
        assert torch.allclose(with_padding[row, start:], alone, atol=1e-4)
    assert with_padding.isfinite().all()


@every_variant
@pytest.mark.parametrize("padded", [False, True])
def test_a_text_in_pieces_has_the_logits_of_the_whole(name: str, padded: bool):
    model = variant(name)
    ids, mask = left_padded(3, 9)
    mask = mask if padded else torch.ones_like(mask)
    whole = model(input_ids=ids, attention_mask=mask).logits
    for cache in (None, StaticCache(config=model.config, max_cache_len=14)):
        pieces = []
        for start, stop in ((0, 4), (4, 5), (5, 9)):
            out = model(input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
        assert torch.allclose(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], atol=1e-4)
        assert int(cache.get_seq_length()) == 9


def test_training_and_pruning_keep_no_cache():
    model, ids = variant("default"), tokens()
    assert model.config.use_cache
    assert model(input_ids=ids, labels=ids).past_key_values is None
    assert model(input_ids=ids, use_cache=False).past_key_values is None
    assert isinstance(model(input_ids=ids, use_cache=True).past_key_values, DynamicCache)
    assert model.context(10).cache is None


def test_given_position_ids_count_from_where_they_say():
    model, ids = variant("position_channels"), tokens(1, 4)
    shifted = model(input_ids=ids, position_ids=torch.arange(3, 7)[None]).logits
    plain = model(input_ids=ids).logits
    assert not torch.allclose(shifted, plain, atol=1e-3)
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(model.transformer.wpe.weight.roll(-3, 0))
    assert torch.allclose(model(input_ids=ids).logits, shifted, atol=1e-5)


def test_hidden_states_and_tuples_are_as_in_transformers():
    model, ids = variant("default"), tokens()
    with model.record(["blocks.1.hook_resid_pre", "ln_final.hook_normalized", "hook_embed"]) as values:
        out = model(input_ids=ids, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1 == 3
    for state, name in zip(out.hidden_states, ("hook_embed", "blocks.1.hook_resid_pre", "ln_final.hook_normalized"), strict=True):
        assert torch.equal(state, values[name])
    (logits,) = model(input_ids=ids, return_dict=False)
    assert torch.equal(logits, out.logits)


def test_the_trainers_count_of_items_makes_accumulated_losses_add_up():
    model, ids = variant("default"), tokens(4, 6)
    labels = ids.clone()
    labels[0, 2:] = -100
    whole = model(input_ids=ids, labels=labels).loss
    items = int((labels[:, 1:] != -100).sum())
    parts = [model(input_ids=ids[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=items).loss for i in (0, 2)]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-5)


def test_requests_that_make_no_sense_are_refused_clearly():
    model, ids = variant("position_channels"), tokens(1, 4)
    with pytest.raises(ValueError, match="takes input_ids, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 4, 32))
    with pytest.raises(ValueError, match="takes input_ids"):
        model.generate(inputs_embeds=torch.zeros(1, 4, 32), max_new_tokens=2, pad_token_id=0)
    with pytest.raises(ValueError, match="hook_pattern"):
        model(input_ids=ids, output_attentions=True)
    with pytest.raises(ValueError, match=r"attention_mask must be \(batch, 4\), not \(1, 5\)"):
        model(input_ids=ids, attention_mask=torch.ones(1, 5))
    with pytest.raises(ValueError, match="17 tokens are too many: the model has positions for 16"):
        model(input_ids=tokens(1, 17))
    with pytest.raises(ValueError, match="17 tokens are too many"):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=14, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert variant("default")(input_ids=tokens(1, 17)).logits.shape[1] == 17, "without positions there is no such bound"


@pytest.mark.parametrize("kind", ["sdpa", "flash_attention_2", "flex_attention"])
def test_fused_attention_is_refused(kind: str, tmp_path: Path):
    variant("plain").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="SparseGPTForCausalLM"):
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=kind)


def test_the_vocabulary_can_be_resized_only_where_no_table_has_a_row_per_token():
    plain = variant("plain")
    plain.resize_token_embeddings(60)
    assert plain(input_ids=torch.tensor([[59]])).logits.shape == (1, 1, 60)
    for name in ("default", "counts", "low_rank"):
        model = variant(name)
        assert model.resize_token_embeddings(50) is model.transformer.wte
        with pytest.raises(ValueError, match=r"vocabulary of 50 cannot become 60: the model has a .* bigram"):
            model.resize_token_embeddings(60)
    with pytest.raises(ValueError, match="logits bias"):
        small_model(bigram="none", logits_bias=True).resize_token_embeddings(60)


@pytest.mark.parametrize(
    ("changes", "mention"),
    [
        ({"activation": "swish"}, "'gelu', 'gelu_tanh', 'relu' or 'silu'"),
        ({"heads": 0}, "at least 1"),
        ({"rotary": []}, "0 pairs of channels"),
        ({"rotary": [1.0] * 9}, "9 pairs of channels; a head has 16"),
        ({"rotary": [1.0], "added_positions": True}, "exclude each other"),
        ({"site_k": {"mlp.gate": 3}}, "'mlp.gate'"),
        ({"bigram": "sparse"}, "bigram"),
        ({"d_model": "64"}, "d_model"),
        ({"n_layer": 0}, "n_layer"),
        ({"d_pos_emb": -1}, "d_pos_emb"),
        ({"d_pos_emb": 2, "added_positions": True}, "exclude each other"),
        ({"tie_word_embeddings": True}, "cannot be tied"),
        ({"site_k": {"attn.w": 3}}, "'attn.w'"),
        ({"site_k": {"attn.q": 0}}, "at least 1"),
    ],
)
def test_impossible_configs_are_refused(changes: dict, mention: str):
    with pytest.raises(ValueError, match=mention):
        SparseGPTConfig(**changes)


@every_variant
def test_every_variant_is_the_same_bits_after_saving(name: str, tmp_path: Path):
    model = variant(name)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(loaded(input_ids=tokens()).logits, model(input_ids=tokens()).logits)


def test_a_models_bigram_is_named_as_it_always_was():
    assert "bigram_table" in variant("default").state_dict()
    assert variant("default").bigram_table.shape == (50, 50)
    assert variant("counts").bigram_table is None


STRANGER = """
import json, sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
ids = torch.randint(50, (2, 10), generator=torch.Generator().manual_seed(1))
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert 'extractor' not in sys.modules
    made = model.generate(ids[:, :4], attention_mask=torch.ones(2, 4), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    with model.record(['blocks.1.attn.hook_q']) as values, model.edit({'0.mlp.post_act': lambda x: 0 * x}):
        model(input_ids=ids)
    numbers = [model(input_ids=ids).logits.double().sum().item(), values['blocks.1.attn.hook_q'].double().sum().item()]
    print(json.dumps([type(model).__name__, made.tolist(), numbers]))
"""


@pytest.mark.slow
def test_every_variant_loads_generates_and_can_be_edited_where_we_are_not_installed(tmp_path: Path):
    wanted = []
    for name in VARIANTS:
        model = variant(name)
        model.save_pretrained(tmp_path / name)
        ids = tokens()
        made = model.generate(
            ids[:, :4], attention_mask=torch.ones(2, 4), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        with model.record(["blocks.1.attn.hook_q"]) as values, model.edit({"0.mlp.post_act": lambda x: 0 * x}):
            model(input_ids=ids)
        numbers = [model(input_ids=ids).logits.double().sum().item(), values["blocks.1.attn.hook_q"].double().sum().item()]
        wanted.append(["SparseGPTForCausalLM", made.tolist(), numbers])
    folders = [str(tmp_path / name) for name in VARIANTS]
    said = python(STRANGER, *folders, isolated=True, env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"})
    assert [json.loads(line) for line in said.splitlines()] == wanted


PUSH = """
import sys
from transformers import AutoModelForCausalLM
import extractor.sparse
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model.push_to_hub('someone/sparse', token='hf_x')
"""

PULL = """
import sys, torch
from pathlib import Path
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM
print(snapshot_download('someone/sparse'))
model = AutoModelForCausalLM.from_pretrained('someone/sparse', trust_remote_code=True).eval()
ids = torch.randint(50, (2, 10), generator=torch.Generator().manual_seed(1))
torch.set_num_threads(1)
print(model(input_ids=ids).logits.double().sum().item())
"""


@pytest.mark.slow
def test_a_pushed_model_comes_back_from_the_hub(tmp_path: Path):
    model = variant("position_channels")
    model.save_pretrained(tmp_path / "model")
    with serve() as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        python(PUSH, str(tmp_path / "model"), env={**env, "HF_HOME": str(tmp_path / "one")})
        said = python(PULL, isolated=True, env={**env, "HF_HOME": str(tmp_path / "two"), "HF_TOKEN": ""}).splitlines()
        pushed = hub.repositories["someone/sparse"]
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in hub.large, "weights go by LFS"
    assert pushed["model.safetensors"] == weights
    local = {path.name for path in (tmp_path / "model").iterdir()}
    assert local <= set(pushed)
    folder = Path(said[-2])
    for name in pushed:
        assert hashlib.sha256((folder / name).read_bytes()).digest() == hashlib.sha256(pushed[name]).digest(), name
    assert float(said[-1]) == model(input_ids=tokens()).logits.double().sum().item()
