"""The predicted cost of a bridging against the measured one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.measure import in_fresh_process
from local_hub import LocalHub, Repository, serve
from worlds import VOCABULARY, python, random_gpt2

from extractor.bridges.pair import new_pair
from extractor.bridges.tuner import site_parameters
from extractor.errors import SpecError, UnsupportedModel
from extractor.jobs.cost import bridging, constants, hardware, units
from extractor.jobs.cost.bridging import bridging_cost, check, cost_with, largest_micro_batch
from extractor.jobs.cost.hardware import Speed, available_ram
from extractor.jobs.cost.text import describe, line, to_json
from extractor.models.tokenizer import save_tokenizer
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM
from extractor.spec.presets import bridge_spec
from extractor.spec.schema import BridgeSpec, OptimSpec, SparseModelSpec, SparsitySpec
from extractor.training.projection import constraints

GB = 10**9
GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
WIDE = BridgeSpec(model=SparseModelSpec(d_model=1024), optim=OptimSpec(steps=2000, batch=16))


def spec(**model: object) -> BridgeSpec:
    shape = {"d_model": 64, "d_head": 16, "n_ctx": 16, **model}
    return BridgeSpec(model=SparseModelSpec(**shape), sparsity=SparsitySpec(weight_frac=0.02), optim=OptimSpec(context=16))


def test_a_chunk_of_logits_is_as_large_as_the_training_s():
    from extractor.bridges import chunked_loss, initialisation

    assert constants.LOGITS_AT_ONCE == chunked_loss.LOGITS_AT_ONCE
    assert (constants.SAMPLED_TOKENS, constants.SAMPLED_NUMBERS) == (initialisation.SAMPLED_TOKENS, initialisation.SAMPLED_NUMBERS)


@pytest.mark.parametrize(
    "asked",
    [
        spec(),
        spec(d_pos_emb=4, sinks=False, mlp_ratio=2),
        spec(bigram="counts", bigram_top=8),
        spec(bigram="low_rank", bigram_rank=4),
        spec(bigram="none").model_copy(update={"init": "dense"}),
    ],
    ids=["default", "positions beside", "counts", "low rank", "from dense"],
)
def test_parameters_are_those_of_the_real_pair(asked: BridgeSpec):
    gpt2 = random_gpt2()
    dense = sum(p.numel() for p in gpt2.parameters())
    found = bridging_cost(gpt2.config.to_dict(), asked)
    pair = new_pair(SimpleNamespace(model=gpt2, name="tiny", facts={}), asked, 0)
    bigram = sum(getattr(pair.sparse, name).numel() for name in pair.sparse.bigram.tensors if name != "bigram_index")
    constrained = constraints(pair.sparse, asked.sparsity)
    free = sum(p.numel() for p in pair.sparse.parameters()) - bigram - sum(c.tensor.numel() for c in constrained)
    assert found.parameters == {
        "dense": dense,
        "sparse": sum(p.numel() for p in pair.sparse.parameters()) - bigram,
        "sparse_nonzero": free + sum(c.kept(c.target, asked.sparsity.min_per_neuron) for c in constrained),
        "bigram": bigram,
        "bridges": sum(p.numel() for p in site_parameters(pair.sites)),
    }


def test_parameters_of_other_families_are_those_of_the_real_models():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

    neo = GPTNeoForCausalLM(
        GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], vocab_size=99)
    )
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    llama = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=99))
    for model in (neo, llama):
        found = bridging_cost(model.config.to_dict(), spec())
        assert found.parameters["dense"] == sum(p.numel() for p in model.parameters())
        assert found.spec.model.added_positions == (model is neo)


def test_a_dense_bigram_gives_way_to_counts_where_the_vocabulary_is_large():
    assert bridging_cost(GPT2 | {"vocab_size": 8192}, WIDE).bigram == "dense"
    assert bridging_cost(GPT2, WIDE).bigram == "counts"
    assert bridging_cost(GPT2, WIDE).parameters["bigram"] == 50257 * 32


def test_the_known_sizes_of_gpt2():
    found = bridging_cost(GPT2, WIDE)
    assert found.parameters["dense"] == 124_439_808
    assert found.parameters["bridges"] == 25 * (2 * 768 * 1024 + 768 + 1024)
    assert found.tokens == 2000 * 16 * 64
    text = line(found, 24 * GB, Speed(5e10, 1e10))
    assert text.startswith("12 layers, 50,257 tokens: 256 M sparse + 124 M dense + 39.4 M bridge parameters; ")
    assert text.endswith("for 2,000 steps")


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [24, 6])
def test_the_planned_memory_is_near_the_measured_peak(micro_batch: int):
    threads, layers, width, vocabulary, context, batch = 1, 2, 128, 1024, 48, 24
    shape = (layers, width, width, vocabulary, context, batch, micro_batch)
    measured = in_fresh_process("tests.benchmarks.bridges", "peak_of_steps", threads, "split", *shape)["bytes"]
    config = {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": 2, "n_positions": context, "vocab_size": vocabulary}
    asked = BridgeSpec(model=SparseModelSpec(n_ctx=context), optim=OptimSpec(batch=batch, context=context))
    planned = bridging_cost(config, asked).bytes_needed(micro_batch)
    assert 0.9 * measured < planned < 1.35 * measured


def test_more_memory_takes_more_sequences_until_the_batch_is_whole():
    found = bridging_cost(GPT2, WIDE)
    sizes = [largest_micro_batch(found, memory * GB) for memory in (2, 7, 8, 10, 12, 64)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] == 16
    for memory, rows in zip((7, 8, 10, 12, 64), sizes[1:], strict=True):
        if rows:
            assert found.bytes_needed(rows) <= memory * GB
            assert -(-16 // -(-16 // rows)) == rows, "passes of a batch should be of like size"


def test_a_given_micro_batch_is_not_exceeded():
    found = cost_with(bridging_cost(GPT2, WIDE), {"optim.micro_batch": 3})
    assert largest_micro_batch(found, 640 * GB) == 3


def test_what_fits_is_not_refused():
    check(bridging_cost(GPT2, WIDE), 24 * GB)


@pytest.mark.parametrize(
    ("config", "asked", "memory", "flag"),
    [
        (GPT2, WIDE, 5 * GB, r"--set bridge.model.d_model=\d+ would fit"),
        (GPT2 | {"vocab_size": 8000, "n_embd": 64, "n_head": 4, "n_layer": 2}, spec(), 2 * GB, "--set bridge.model.bigram=none would fit"),
        (
            GPT2 | {"vocab_size": 1000, "n_embd": 64, "n_head": 4, "n_layer": 8, "n_positions": 4096},
            spec(n_ctx=4096, bigram="none").model_copy(update={"init": "dense", "optim": OptimSpec(context=4096)}),
            400_000_000,
            r"--set bridge.optim.context=\d+ would fit",
        ),
    ],
    ids=["width", "bigram", "context"],
)
def test_what_does_not_fit_is_refused_with_a_flag_that_makes_it_fit(config: dict, asked: BridgeSpec, memory: int, flag: str):
    found = bridging_cost(config, asked)
    with pytest.raises(SpecError, match=flag) as refused:
        check(found, memory)
    text = str(refused.value)
    assert "\n" not in text
    assert "are available" in text
    name, _, value = text.partition("--set bridge.")[2].split()[0].partition("=")
    check(cost_with(found, {name: value}), memory)


def test_more_tokens_than_the_dense_model_has_positions_are_refused_with_the_flag():
    with pytest.raises(SpecError, match=r"has positions for 1024; --set bridge.optim.context=1024"):
        bridging_cost(GPT2, WIDE.model_copy(update={"optim": OptimSpec(context=4096)}))


def test_where_nothing_helps_that_is_said():
    with pytest.raises(SpecError, match="use a machine with more memory"):
        check(bridging_cost(GPT2, WIDE), GB // 2)


def test_a_config_without_its_numbers_is_refused():
    with pytest.raises(UnsupportedModel, match="has no num_hidden_layers"):
        bridging_cost({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "vocab_size": 9}, spec())


def test_exact_paths_cost_more_memory_and_more_work():
    split, exact = (bridging_cost(GPT2, WIDE.model_copy(update={"estimator": kind})) for kind in ("split", "exact"))
    assert exact.flops["crossing paths"] > 10 * split.flops["crossing paths"]
    assert exact.bytes_needed(4) > split.bytes_needed(4)


def test_table_and_json_say_the_same():
    found, here = bridging_cost(GPT2, WIDE), (24 * GB, Speed(5e10, 1e10))
    rows, facts = dict(describe(found, *here)), to_json(found, *here)
    assert rows["micro-batch"] == f"{facts['micro_batch']} of 16 sequences"
    assert rows["memory total"] == units.show_bytes(facts["memory_needed"])
    assert facts["memory_needed"] == sum(facts["memory"].values())
    assert rows["parameters, dense"] == "124 M"
    json.dumps(facts)


def test_a_bundled_model_needs_only_its_config():
    config = bridging.config_of("python-tiny")
    found = bridging_cost(config, bridge_spec("tiny"))
    assert (found.dense.layers, found.dense.vocabulary, found.parameters["dense"]) == (2, 1024, 544_256)


def test_numbers_in_words():
    assert [units.show_count(n) for n in (7, 1234, 254e6, 1.5e9)] == ["7", "1.23 k", "254 M", "1.5 G"]
    assert [units.show_bytes(n) for n in (12, 9.8e9)] == ["12 B", "9.8 GB"]
    assert [units.show_seconds(n) for n in (0.1, 80, 12_000)] == ["1 s", "1 min 20 s", "3 h 20 min"]


def files(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return folder


def test_available_memory_is_what_the_system_and_the_cgroup_leave(tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\n")
    assert available_ram(meminfo, tmp_path / "none") == 4000 * 1024
    unlimited = files(tmp_path / "a", memory_max="max\n", memory_current="5\n", memory_stat="inactive_file 1\n")
    assert available_ram(meminfo, unlimited) == 4000 * 1024
    limited = files(tmp_path / "b", memory_max="3000000\n", memory_current="1000000\n", memory_stat="anon 3\ninactive_file 400000\n")
    assert available_ram(meminfo, limited) == 2_400_000
    assert available_ram(tmp_path / "none", tmp_path / "none") > GB
    assert hardware.available_memory() > 0


def test_speed_is_measured_in_no_time():
    speed = hardware.measure_speed()
    assert speed.flops > 1e8
    assert speed.bytes > 1e8


# extract submit --dry-run


@pytest.fixture
def extract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the command line here: exit code, stdout, stderr; it must leave nothing behind."""
    from worker.cli import main

    monkeypatch.setenv("EXTRACT_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: str) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert not (tmp_path / "state").exists(), "a dry run should queue nothing"
        return end.value.code, *capsys.readouterr()

    return run


def test_a_dry_run_shows_the_plan_and_queues_nothing(extract):
    code, out, _ = extract("submit", "--model", "python-tiny", "--task", "quote_close", "--dry-run")
    assert code == 0
    assert "corpus -> bridge -> prune -> validate -> report" in out
    for part in ("parameters, bridges", "memory total", "memory available", "micro-batch", "time"):
        assert part in out


def test_a_dry_run_as_json(extract):
    code, out, _ = extract("submit", "--model", "python-tiny", "--task", "quote_close", "--dry-run", "--json")
    found = json.loads(out)
    assert (code, found["kind"]) == (0, "circuit")
    assert found["bridge"]["parameters"]["dense"] == 544_256
    assert found["bridge"]["seconds"] > 0


def test_a_dry_run_of_a_training_names_its_stages(extract):
    code, out, _ = extract("train", "--task", "quote_close", "--dry-run")
    assert code == 0
    assert "corpus -> train -> (prune -> validate -> report) for each of quote_close" in out


def test_a_dry_run_that_would_not_fit_ends_as_a_wrong_request_does(extract, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware, "available_memory", lambda: 100_000_000)
    code, out, err = extract("submit", "--model", "python-tiny", "--task", "quote_close", "--dry-run")
    assert (code, out) == (2, "")
    assert "are available" in err
    assert len(err.strip().splitlines()) == 1


def test_a_sparse_model_is_said_to_need_no_bridge(extract, tokenizer, tmp_path: Path):
    config = SparseGPTConfig(vocab_size=VOCABULARY, n_layer=1, d_model=16, d_head=8, d_mlp=32, n_ctx=64)
    SparseGPTForCausalLM(config).save_pretrained(tmp_path / "sparse")
    save_tokenizer(tokenizer, tmp_path / "sparse", 64)
    code, out, _ = extract("submit", "--model", str(tmp_path / "sparse"), "--task", "quote_close", "--dry-run")
    assert code == 0
    assert "the model is already sparse" in out


def test_of_a_hub_model_a_dry_run_fetches_no_weights(gpt2_folder: Path, tmp_path: Path):
    files = {path.name: path.read_bytes() for path in gpt2_folder.iterdir()}
    submit = "from worker.cli import main; main(['submit', '--model', 'some/tiny', '--task', 'quote_close', '--dry-run', '--json'])"
    with serve(LocalHub({"some/tiny": Repository({"a" * 40: files})})) as hub:
        out = python(submit, env=hub.environment(tmp_path / "hub") | {"EXTRACT_STATE_DIR": str(tmp_path / "state")})
    assert json.loads(out)["bridge"]["vocabulary"] == VOCABULARY
    assert {name for _, name in hub.fetched} == {"config.json"}
