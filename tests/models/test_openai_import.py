"""Published checkpoints: imported logits against a plain forward of the published description, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_forward import CONFIG, WHOLE, published_forward, random_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from worlds import VOCABULARY, python

import extractor.sparse  # noqa: F401 - registers the architecture
from extractor.errors import BrokenArtifact, ExtractorError, OutputError, UnsupportedModel, UsageError
from extractor.models.openai_import import import_checkpoint
from extractor.models.tokenizer import save_tokenizer

SINK = "transformer.h.0.attn.attn_imp.sink_logit"


def write(folder: Path, config: dict, state: dict[str, Tensor], weights: str = "final_model.pt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "beeg_config.json").write_text(json.dumps(config))
    if weights.endswith(".pt"):
        torch.save(state, folder / weights)
    else:
        save_file({name: t.clone() for name, t in state.items()}, folder / weights)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "published", *random_checkpoint())


def ids(config: dict, length: int = 20) -> Tensor:
    return torch.randint(config["vocab_size"], (3, length), generator=torch.Generator().manual_seed(5))


def compare(folder: Path, out: Path, config: dict, state: dict[str, Tensor]) -> tuple[float, dict]:
    """(largest difference of logits, the import's report)."""
    report = import_checkpoint(folder, out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        found = model(input_ids=ids(config)).logits
    wanted = published_forward(config, state, ids(config))
    assert wanted.std() > 1, "logits that say nothing prove nothing"
    return (found - wanted).abs().max().item(), report


def in_double(out: Path, config: dict, state: dict[str, Tensor]) -> float:
    """Largest difference of logits in fp64, where rounding does not decide which channels AbsTopK keeps."""
    model = AutoModelForCausalLM.from_pretrained(out).eval().double()
    with torch.no_grad():
        found = model(input_ids=ids(config)).logits
    return (found - published_forward(config, {name: t.double() for name, t in state.items()}, ids(config))).abs().max().item()


VARIANTS = {
    "plain": {"afrac": None, "enable_bigram_table": False},
    "abs_topk_and_bigram": {},
    "sinks": {"sink": True},
    "position_channels": {"d_pos_emb": 6},
    "odd_position_channels": {"d_pos_emb": 5, "sinusoidal_cat_pos_emb": True, "afrac": 0.45},
    "relu": {"activation_type": "relu"},
    "no_bigram": {"enable_bigram_table": False},
    "some_sites": {"afrac_loctypes": "attn_in,attn_out,mlp_in,mlp_out"},
    "neurons_only": {"afrac_loctypes": "mlp_neuron", "afrac": 0.1},
    "rounded_down": {"afrac": 0.062, "d_model": 64, "n_head": 8},  # 3.97 channels: 3 are kept, not 4
    "everything_kept": {"afrac": 1.0},
    "no_biases": {"bias": False},
    "tied": {"tied_unembed": True},
    "everything": {"sink": True, "d_pos_emb": 8, "activation_type": "relu", "afrac": 0.25},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_imported_logits_are_the_published_ones(tmp_path: Path, name: str):
    config, state = random_checkpoint(1, **VARIANTS[name])  # at seed 0, two magnitudes at a threshold differ by rounding alone
    difference, report = compare(write(tmp_path / "in", config, state), tmp_path / "out", config, state)
    assert difference < 1e-4
    assert in_double(tmp_path / "out", config, state) < 1e-10
    assert report["parameters"] >= sum(t.numel() for t in load_file(tmp_path / "out" / "model.safetensors").values()) > 10_000


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sinks", {SINK: -3.0}),
        ("position_channels", {"transformer.wpe.weight": 1.0, "transformer.h.1.ln_p2.weight": 1.0}),
        ("abs_topk_and_bigram", {"bigram_table": 1.0}),
        ("abs_topk_and_bigram", {"final_logits_bias": torch.linspace(-1, 1, 30)}),
        ("plain", {"transformer.wpe.weight": torch.linspace(-1, 1, 32)}),
    ],
)
def test_the_comparison_would_see_each_part(tmp_path: Path, name: str, change: dict):
    """The model with one part altered is far from the import of the original."""
    config, state = random_checkpoint(**VARIANTS[name])
    folder = write(tmp_path / "in", config, state)
    altered = state | {key: state[key] * torch.linspace(-1, 1, state[key].shape[-1]) + value for key, value in change.items()}
    assert compare(folder, tmp_path / "out", config, altered)[0] > 1e-2


def test_old_names_and_keys_are_understood(tmp_path: Path):
    config, state = random_checkpoint(sink=True)
    old = {key: value for key, value in config.items() if key not in ("d_mlp", "d_head")} | {"n_mlp": config["d_mlp"], "n_embd": 32}
    old |= {"bigram_table_rank": None, "pfrac": 0.5, "expansion_factor": 2, "rtopk": True, "use_tied_aux_matrix": False}
    mask = torch.ones(24, 24).tril()[None, None]
    older = {f"module.{name}": t for name, t in state.items() if name != "final_logits_bias"}
    older |= {f"module.transformer.h.{i}.attn.bias": mask for i in range(2)}
    del state["final_logits_bias"]
    difference, report = compare(write(tmp_path / "in", old, older), tmp_path / "out", config, state)
    assert difference < 1e-4
    notes = "\n".join(report["notes"])
    for mention in ("n_mlp is an old name", "n_embd", "bigram_table_rank", "pfrac = 0.5", "rtopk", "begin with module.", "a causal mask"):
        assert mention in notes, mention


def test_a_safetensors_file_and_a_pt_file_give_the_same_model(tmp_path: Path):
    config, state = random_checkpoint()
    for name in ("final_model.pt", "final_model.safetensors"):
        import_checkpoint(write(tmp_path / name, config, state, name), tmp_path / f"out-{name}")
    first, second = (load_file(tmp_path / f"out-{name}" / "model.safetensors") for name in ("final_model.pt", "final_model.safetensors"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_was_read_is_written_down(checkpoint: Path, tmp_path: Path):
    report = import_checkpoint(checkpoint, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "import.json").read_text()) == report
    for name in ("beeg_config.json", "final_model.pt"):
        content = (checkpoint / name).read_bytes()
        assert report["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        assert report["files"][name]["sha256"] in (tmp_path / "out" / "README.md").read_text()
    assert report["published"] == CONFIG
    assert any("no tokenizer.json" in note for note in report["notes"])
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors", "modeling_sparse_gpt.py"}


def test_halves_are_imported_as_fp32(tmp_path: Path):
    config, state = random_checkpoint()
    half = {name: t.bfloat16() for name, t in state.items()}
    difference, _ = compare(write(tmp_path / "in", config, half), tmp_path / "out", config, {n: t.float() for n, t in half.items()})
    assert difference < 1e-4


def test_a_sink_shared_by_all_heads_is_given_to_each(tmp_path: Path):
    config, state = random_checkpoint(sink=True)
    shared = {name: t[:1].clone() if name.endswith("sink_logit") else t for name, t in state.items()}
    spread = {name: t.expand(4) if name.endswith("sink_logit") else t for name, t in shared.items()}
    assert compare(write(tmp_path / "in", config, shared), tmp_path / "out", config, spread)[0] < 1e-4


def test_zero_tables_are_left_out(tmp_path: Path):
    config, state = random_checkpoint()
    state["transformer.wpe.weight"].zero_()
    state["final_logits_bias"].zero_()
    difference, _ = compare(write(tmp_path / "in", config, state), tmp_path / "out", config, state)
    assert difference < 1e-4
    assert not {"transformer.wpe.weight", "logits_bias"} & set(load_file(tmp_path / "out" / "model.safetensors"))


def test_an_imported_model_generates_and_runs_beyond_nothing_it_has_no_positions_for(checkpoint: Path, tmp_path: Path):
    import_checkpoint(checkpoint, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    start = ids(CONFIG, 4)[:1]
    options = {"attention_mask": torch.ones_like(start), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(start, **options), model.generate(start, **options, use_cache=False))
    with pytest.raises(ValueError, match="positions for 24"):
        model(input_ids=ids(CONFIG, 25))


@pytest.mark.parametrize("where", ["beside", "given"])
def test_with_a_tokenizer_the_import_is_a_model_one_can_submit(tmp_path: Path, tokenizer, where: str):
    from extractor.jobs.request import circuit_job
    from extractor.models.load import load_model
    from extractor.models.reference import open_model

    folder = write(tmp_path / "in", *random_checkpoint(vocab_size=VOCABULARY))
    words = folder if where == "beside" else tmp_path / "words"
    save_tokenizer(tokenizer, words, 24)
    report = import_checkpoint(folder, tmp_path / "out", None if where == "beside" else words)
    spec = circuit_job(str(tmp_path / "out"), ("quote_close",))
    assert spec.model == str(tmp_path / "out")
    assert open_model(spec.model).is_sparse
    assert load_model(open_model(spec.model)).config.eos_token_id == tokenizer.token_to_id("<|endoftext|>")
    assert "tokenizer.json" in report["files"]
    assert not any("no tokenizer.json" in note for note in report["notes"])


def refused(folder: Path, out: Path, kind: type[ExtractorError], tokenizer: Path | None = None) -> str:
    """The message of an import that must fail and leave nothing."""
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(kind) as caught:
        import_checkpoint(folder, out, tokenizer)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in out.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "mention"),
    [
        ({"rms_norm": False}, "rms_norm = False asks for LayerNorm"),
        ({"residual_activation_type": "relu"}, "a nonlinearity on the residual stream"),
        ({"use_tied_aux_matrix": True}, "auxiliary matrix"),
        ({"mup": True}, "muP"),
        ({"unembed_rank": 64}, "low-rank unembedding"),
        ({"afrac_loctypes": WHOLE + ",resid_post_mlp"}, "AbsTopK on the residual stream"),
        ({"afrac_loctypes": "mlp_nuron"}, "'mlp_nuron' is not a known site"),
        ({"afrac": 0.001}, "keeps no channel of attn.act_in"),
        ({"activation_type": "silu"}, "not gelu or relu"),
        ({"n_head": 3}, "3 heads of 8 channels are not d_model = 32"),
    ],
)
def test_maths_that_the_model_does_not_have_is_refused(checkpoint: Path, tmp_path: Path, changes: dict, mention: str):
    config = json.loads((checkpoint / "beeg_config.json").read_text())
    (checkpoint / "beeg_config.json").write_text(json.dumps(config | changes))
    assert mention in refused(checkpoint, tmp_path / "out", UnsupportedModel)


@pytest.mark.parametrize(
    "changes", [{"n_layer": "2"}, {"d_model": 0}, {"vocab_size": True}, {"d_pos_emb": -1}, {"afrac": 1.5}, {"afrac": "a"}]
)
def test_numbers_that_are_none_are_broken(checkpoint: Path, tmp_path: Path, changes: dict):
    config = json.loads((checkpoint / "beeg_config.json").read_text())
    (checkpoint / "beeg_config.json").write_text(json.dumps(config | changes))
    assert f"{next(iter(changes))} = " in refused(checkpoint, tmp_path / "out", BrokenArtifact)


@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff"])
def test_a_config_that_is_none_is_broken(checkpoint: Path, tmp_path: Path, text: str):
    (checkpoint / "beeg_config.json").write_text(text, encoding="latin-1")
    refused(checkpoint, tmp_path / "out", BrokenArtifact)


def test_missing_files_are_a_wrong_request(checkpoint: Path, tmp_path: Path):
    assert "is not a folder" in refused(tmp_path / "nowhere", tmp_path / "out", UsageError)
    (checkpoint / "final_model.pt").unlink()
    assert "has no weights" in refused(checkpoint, tmp_path / "out", UsageError)
    (checkpoint / "beeg_config.json").unlink()
    assert "has no beeg_config.json" in refused(checkpoint, tmp_path / "out", UsageError)


def test_an_output_that_is_taken_is_refused(checkpoint: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    assert "not an empty folder" in refused(checkpoint, tmp_path / "out", OutputError)
    assert (tmp_path / "out" / "mine").read_text() == "keep"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_broken(checkpoint: Path, tmp_path: Path, share: float):
    content = (checkpoint / "final_model.pt").read_bytes()
    (checkpoint / "final_model.pt").write_bytes(content[: int(share * len(content))])
    assert "not a readable PyTorch file" in refused(checkpoint, tmp_path / "out", BrokenArtifact)


def test_truncated_safetensors_are_broken(tmp_path: Path):
    folder = write(tmp_path / "in", *random_checkpoint(), "final_model.safetensors")
    content = (folder / "final_model.safetensors").read_bytes()
    (folder / "final_model.safetensors").write_bytes(content[: len(content) // 2])
    refused(folder, tmp_path / "out", BrokenArtifact)


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trap-was-run"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("writer", "kind"), [("torch", UnsupportedModel), ("pickle 2", UnsupportedModel), ("pickle 4", BrokenArtifact)])
def test_objects_in_a_pickle_are_never_built(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, kind: type[ExtractorError]
):
    monkeypatch.chdir(tmp_path)
    state = {"transformer.wte.weight": torch.zeros(2), "trap": Trap()}
    if writer == "torch":
        torch.save(state, checkpoint / "final_model.pt")
    else:
        (checkpoint / "final_model.pt").write_bytes(pickle.dumps({"trap": Trap()}, int(writer[-1])))
    refused(checkpoint, tmp_path / "out", kind)
    assert not (tmp_path / "trap-was-run").exists()


@pytest.mark.parametrize(
    "value", [{"model": {"a": torch.zeros(1)}}, [torch.zeros(1)], {}, {1: torch.zeros(1)}, {"step": 3}, torch.zeros(2)]
)
def test_anything_but_a_flat_dict_of_tensors_is_refused(checkpoint: Path, tmp_path: Path, value: object):
    torch.save(value, checkpoint / "final_model.pt")
    assert "flat dict of tensors" in refused(checkpoint, tmp_path / "out", UnsupportedModel)


def altered(change: Callable[[dict[str, Tensor]], None], folder: Path, **config: object) -> Path:
    published, state = random_checkpoint(**config)
    change(state)
    return write(folder, published, state)


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        (lambda s: s.pop("transformer.h.1.mlp.c_fc.weight"), "has no tensor transformer.h.1.mlp.c_fc.weight"),
        (lambda s: s.update({"lm_head.weight": torch.zeros(30, 31)}), "lm_head.weight is (30, 31), its config needs (30, 32)"),
        (lambda s: s["transformer.ln_f.weight"].fill_(torch.nan), "transformer.ln_f.weight holds values that are not finite"),
        (lambda s: s["bigram_table"][3].fill_(-torch.inf), "bigram_table holds values that are not finite"),
        (lambda s: s.update({"lm_head.weight": torch.zeros(30, 32, dtype=torch.int64)}), "holds int64"),
    ],
)
def test_tensors_that_do_not_fit_are_broken(tmp_path: Path, change: Callable, mention: str):
    assert mention in refused(altered(change, tmp_path / "in"), tmp_path / "out", BrokenArtifact)


def test_a_sink_that_the_config_names_must_be_there(tmp_path: Path):
    folder = altered(lambda state: state.pop(SINK), tmp_path / "in", sink=True)
    assert f"has no tensor {SINK}" in refused(folder, tmp_path / "out", BrokenArtifact)


def test_tensors_without_a_place_are_refused_unless_they_do_nothing(tmp_path: Path):
    folder = altered(lambda state: state.update({"transformer.h.0.mlp.gate.weight": torch.ones(3)}), tmp_path / "in")
    assert "transformer.h.0.mlp.gate.weight (3,) for which this model has no place" in refused(folder, tmp_path / "out", UnsupportedModel)
    idle = {"transformer.h.0.mlp.gate.weight": torch.zeros(3), SINK: torch.ones(4)}
    config, state = random_checkpoint()
    difference, report = compare(write(tmp_path / "idle", config, state | idle), tmp_path / "out", config, state)
    assert difference < 1e-4
    assert f"tensor {SINK} ignored: the config has no sink" in report["notes"]
    assert "tensor transformer.h.0.mlp.gate.weight ignored: all zero" in report["notes"]


def test_another_models_tokenizer_is_refused(checkpoint: Path, tmp_path: Path, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "words", 24)
    assert f"{VOCABULARY} entries, the model 30" in refused(checkpoint, tmp_path / "out", UnsupportedModel, tmp_path / "words")
    assert "no tokenizer.json" in refused(checkpoint, tmp_path / "out", UnsupportedModel, tmp_path)


CLI = "import sys; from worker.cli import main; main(sys.argv[1:])"


@pytest.mark.slow
def test_the_command_shows_checksums_and_notes(checkpoint: Path, tmp_path: Path):
    said = python(CLI, "import", str(checkpoint), "--out", str(tmp_path / "out"))
    digest = hashlib.sha256((checkpoint / "final_model.pt").read_bytes()).hexdigest()
    assert f"final_model.pt  sha256 {digest}" in said
    assert "note   no tokenizer.json" in said
    assert "2 layers of width 32" in said
    as_json = json.loads(python(CLI, "import", str(checkpoint), "--out", str(tmp_path / "again"), "--json"))
    assert as_json["path"] == str(tmp_path / "again")
    assert as_json["files"]["final_model.pt"]["sha256"] == digest


def test_the_commands_exit_codes_tell_requests_from_damage(checkpoint: Path, tmp_path: Path):
    shutil.copytree(checkpoint, tmp_path / "damaged")
    (tmp_path / "damaged" / "final_model.pt").write_bytes(b"PK")
    said = python(CLI, "import", str(tmp_path / "damaged"), "--out", str(tmp_path / "out"), "--json", expect=1)
    assert json.loads(said)["error"]["type"] == "BrokenArtifact"
    said = python(CLI, "import", str(tmp_path), "--out", str(tmp_path / "out"), "--json", expect=2)
    assert json.loads(said)["error"]["type"] == "UsageError"
    assert not (tmp_path / "out").exists()
