"""From what a user types for a training to a checked spec."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from worlds import python

from extractor.errors import ExtractorError, ModelNotFound, NotFound, SpecError, TaskNotExpressible, UnknownTask
from extractor.jobs.request import circuit_job, circuit_settings, dataset, train_job, train_settings
from extractor.spec import presets
from extractor.spec.schema import CorpusSpec, DatasetSpec, JobSpec, PruneSpec, TrainSpec, parse_job, to_json
from worker.cli import main
from worker.cli.views.job import describe_progress


def refused(kind: type[ExtractorError] = SpecError, **arguments) -> str:
    with pytest.raises(kind) as caught:
        train_job(corpus=("generated",), **arguments)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def job(**arguments) -> JobSpec:
    made = train_job(corpus=("generated",), **arguments)
    assert parse_job(to_json(made)) == made
    return made


def train(**arguments) -> TrainSpec:
    found = job(**arguments).train
    assert found is not None
    return found


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("architecture", ["sparse_gpt", "gpt2"])
def test_without_options_a_job_is_its_preset(preset: str, architecture: str):
    assert train(preset=preset, architecture=architecture) == presets.train_spec(preset, architecture)


def test_a_field_is_changed_and_nothing_else():
    changes = {"optim.lr": "0.05", "model.d_model": "64", "sparsity.weight_frac": "0.1", "optim.sharkfin": "false", "vocab_size": "512"}
    before, after = presets.train_spec("tiny", "sparse_gpt").model_dump(), train(changes=changes).model_dump()
    assert after["optim"] == before["optim"] | {"lr": 0.05, "sharkfin": False}
    assert after["model"] == before["model"] | {"d_model": 64}
    assert after["sparsity"] == before["sparsity"] | {"weight_frac": 0.1}
    assert {k for k in after if after[k] != before[k]} == {"optim", "model", "sparsity", "vocab_size"}


def test_a_source_that_is_given_twice_is_refused(tmp_path: Path):
    text = tmp_path / "a.txt"
    text.write_text("x = 1\n")
    for sources in (("generated", "generated"), (str(text), str(tmp_path / "." / "a.txt"))):
        with pytest.raises(SpecError, match="is given twice; name every source once"):
            train_job(corpus=sources)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"corpus": ("stdlib",), "changes": {"corpus.generated_programs": "5"}}, "without the corpus 'generated'"),
        ({"architecture": "gpt2", "changes": {"sparsity.weight_frac": "0.5"}}, "a gpt2 has no sparsity.weight_frac"),
        ({"architecture": "gpt2", "changes": {"model.sinks": "true"}}, "a gpt2 has no model.sinks"),
    ],
)
def test_a_field_that_would_have_no_effect_on_a_training_is_refused(arguments: dict, said: str):
    with pytest.raises(SpecError, match=said):
        train_job(**arguments)


@pytest.mark.parametrize(
    ("options", "said"), [({"init": "dense"}, "the initial weights"), ({"changes": {"bridge.optim.steps": "7"}}, "bridge.optim")]
)
def test_a_dense_model_that_is_pruned_itself_takes_no_bridging(options: dict, said: str):
    with pytest.raises(SpecError, match=f"without a bridging: leave out {said}"):
        circuit_job("python-tiny", ("quote_close",), subject="dense", **options)


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (("train", "--split", "train"), "--dataset"),
        (("train", "--target-loss", "0.1"), "--task"),
        (("submit", "--model", "python-tiny", "--task", "quote_close", "--text-column", "body"), "--dataset"),
        (("submit", "--model", "python-tiny", "--task", "quote_close", "--dataset-tokens", "9"), "--dataset"),
        (("submit", "--model", "python-tiny", "--task", "quote_close", "--revision", "v2"), "--dataset"),
        (("submit", "--model", "python-tiny", "--task", "quote_close", "--dataset-config", "en"), "--dataset"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(arguments: tuple[str, ...], needed: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exited:
        main([*arguments, "--print-spec"])
    assert exited.value.code == 2
    given = next(word for word in arguments if word.startswith("--") and word not in ("--model", "--task"))
    assert f"{given} has no effect without {needed}; add {needed} or leave it out" in capsys.readouterr().err


def test_the_corpus_and_the_pruning_are_changed_too():
    made = job(changes={"prune.steps": "100", "prune.k_coefs": "1e-4, 2e-4", "corpus.generated_programs": "500"}, tasks=("for_while",))
    assert made.prune == presets.prune_spec("tiny").model_copy(update={"steps": 100, "k_coefs": (1e-4, 2e-4)})
    assert made.corpus == CorpusSpec(sources=("generated",), generated_programs=500)


def test_none_unsets_and_a_word_that_says_none_stays_a_word():
    changed = train(preset="small", changes={"optim.micro_batch": "none", "model.bigram": "none"})
    assert (changed.optim.micro_batch, changed.model.bigram) == (None, "none")


def test_fields_that_belong_together_are_changed_together():
    changed = train(changes={"optim.context": "128", "model.n_ctx": "128"})
    assert (changed.optim.context, changed.model.n_ctx) == (128, 128)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("optim.lr", "fast", "optim.lr: Input should be a valid number"),
        ("optim.lr", "-1", "optim.lr: Input should be greater than 0, not '-1'"),
        ("optim.lr", "inf", "optim.lr: "),
        ("optim.steps", "1.5", "optim.steps: "),
        ("model.activation", "tanh", "model.activation: Input should be 'gelu' or 'relu', not 'tanh'"),
        ("corpus.generated_programs", "0", "corpus.generated_programs: "),
        ("optim.context", "4000", "optim.context (4000) is longer than model.n_ctx (64)"),
        ("model.dmodel", "3", "no field 'model.dmodel'; did you mean model.d_model"),
        ("lr", "3", "no field 'lr'; did you mean optim.lr, prune.lr?"),
        ("model", "3", "no field 'model'; did you mean model.n_layer"),
        ("optim.lr.x", "3", "no field 'optim.lr.x'"),
        ("__class__", "3", "no field '__class__'"),
        ("tokenizer", "x", "--tokenizer"),
        ("corpus.datasets", "[]", "--dataset"),
        ("prune.steps", "3", "the job has no task"),
    ],
)
def test_what_cannot_be_set_is_one_line_that_names_it(name: str, text: str, said: str):
    assert said in refused(changes={name: text})


def test_the_dense_baseline_is_the_presets_and_follows_the_shape():
    assert train(dense=True) == presets.dense_baseline(presets.train_spec("tiny", "sparse_gpt"))
    assert train(dense=True).is_dense
    wide = train(dense=True, changes={"model.d_model": "256"})
    assert wide == presets.dense_baseline(train(changes={"model.d_model": "256"}))
    assert train(dense=True, changes={"optim.lr": "0.01"}).optim.lr == 0.01


def test_contradictions_are_refused():
    assert "leave out sparsity.weight_frac" in refused(dense=True, changes={"sparsity.weight_frac": "0.1"})
    assert "--dense needs architecture sparse_gpt" in refused(architecture="gpt2", dense=True)
    assert "--match needs architecture sparse_gpt" in refused(architecture="gpt2", match_loss=2.0)
    assert "--task needs architecture sparse_gpt" in refused(architecture="gpt2", tasks=("for_while",))
    assert "positive number of nats" in refused(match_loss=-1.0)
    assert "the given tokenizer determines vocab_size" in refused(tokenizer="python-tiny", changes={"vocab_size": "300"})


def test_a_loss_to_match_and_tensorboard_are_passed_on():
    made = train(dense=True, match_loss=2.5, tensorboard=True)
    assert (made.match_loss, made.tensorboard) == (2.5, True)


def test_tasks_are_checked_and_bring_the_pruning():
    made = job(tasks=("for_while", "quote_close", "for_while"), target_loss=0.3)
    search = PruneSpec(algorithm="race", standard="robust", confident=True, targets=(0.05, 0.1, 0.2, 0.3), trial_pairs=128)
    assert (made.tasks, made.target_loss, made.prune) == (("for_while", "quote_close"), 0.3, search)
    assert "'edges' ranks edges" in refused(
        SpecError, tasks=("for_while",), changes={"prune.algorithm": "edges", "prune.granularity": "node"}
    )
    assert job().prune is None
    assert "for_whilst" in refused(UnknownTask, tasks=("for_whilst",))


def test_a_tokenizer_is_a_bundled_name_or_a_folder(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert train(tokenizer="python-tiny").tokenizer == "python-tiny"
    monkeypatch.chdir(gpt2_folder.parent)
    assert train(tokenizer=gpt2_folder.name).tokenizer == str(gpt2_folder)
    assert "not found" in refused(ModelNotFound, tokenizer="./nowhere")


def test_a_task_that_a_given_tokenizer_cannot_write_is_refused_at_once(tmp_path: Path):
    from extractor.models.tokenizer import train_tokenizer

    train_tokenizer(["nothing"], 257).save(str(tmp_path / "tokenizer.json"))
    refused(TaskNotExpressible, tokenizer=str(tmp_path), tasks=("for_while",))


def test_a_circuit_job_names_its_model_and_adapter(gpt2_folder: Path, tmp_path: Path):
    made = circuit_job(str(gpt2_folder), ("quote_close",))
    assert (made.model, made.adapter) == (str(gpt2_folder), None)
    lora = {"peft_type": "LORA", "base_model_name_or_path": str(gpt2_folder)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(lora))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for made in (circuit_job(str(tmp_path), ("quote_close",)), circuit_job(str(gpt2_folder), ("quote_close",), adapter=str(tmp_path))):
        assert (made.model, made.adapter) == (str(gpt2_folder), str(tmp_path))
        assert parse_job(to_json(made)) == made


def test_no_changes_may_be_said_as_none():
    """As in the first release: `changes=None`."""
    assert circuit_job("python-tiny", ("quote_close",), changes=None) == circuit_job("python-tiny", ("quote_close",))
    assert train_job(changes=None) == train_job()


def test_a_circuit_job_takes_several_tasks_each_once_by_their_own_names():
    made = circuit_job("python-tiny", ("single_double_quote", "for_while", "quote_close"))
    assert (made.tasks, made.task_files) == (("quote_close", "for_while"), ())
    assert parse_job(to_json(made)) == made
    with pytest.raises(UnknownTask, match="for_whilst"):
        circuit_job("python-tiny", ("quote_close", "for_whilst"))
    with pytest.raises(SpecError, match="needs a task"):
        circuit_job("python-tiny", ())


def test_all_is_every_task_that_the_tokenizer_can_express_and_the_others_are_noted(tmp_path: Path, gpt2_folder: Path):
    from extractor.data.prompts import tokenize_task
    from extractor.models.reference import BUNDLED
    from extractor.models.tokenizer import load_tokenizer, train_tokenizer
    from tasks import find_task, task_names

    def expressible(name: str) -> bool:
        try:
            tokenize_task(find_task(name), tokenizer)
        except TaskNotExpressible:
            return False
        return True

    told: list[str] = []
    tokenizer = load_tokenizer(BUNDLED / "python-tiny")
    made = circuit_job("python-tiny", ("all",), tell=told.append)
    assert made.tasks == tuple(name for name in task_names() if expressible(name))
    assert sorted(line.partition(" is left out: ")[0] for line in told) == sorted(set(task_names()) - set(made.tasks))
    assert circuit_job("python-tiny", ("for_while", "all")).tasks[0] == "for_while"

    model = tmp_path / "model"
    shutil.copytree(gpt2_folder, model)
    train_tokenizer(["nothing"], 257).save(str(model / "tokenizer.json"))
    tokenizer = load_tokenizer(model)
    with pytest.raises(TaskNotExpressible, match="'for_while' cannot be asked"):  # what was named is not left out in silence
        circuit_job(str(model), ("all", "for_while"), tell=told.append)
    monotone = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"x": 0, "y": 1}, "unk_token": "x"}}'
    (model / "tokenizer.json").write_text(monotone)
    with pytest.raises(TaskNotExpressible, match=f"none of {len(task_names())} tasks can be asked of this model; the first: task 'brack"):
        circuit_job(str(model), ("all",))


def test_a_spec_that_names_a_single_task_as_it_was_done_before_is_read():
    made = circuit_job("python-tiny", ("quote_close",))
    before = json.loads(to_json(made)) | {"task": "quote_close", "tasks": []}
    del before["task_files"]
    assert parse_job(json.dumps(before)) == made
    del before["tasks"]
    assert JobSpec.model_validate(before) == made
    trained = job(tasks=("for_while",))
    assert parse_job(json.dumps(json.loads(to_json(trained)) | {"task": None})) == trained
    for wrong, said in (
        ({"task": "quote_close", "tasks": ["for_while"]}, "leave out 'task'"),
        ({"task": 3}, "tasks.0"),
        ({"task": None}, "needs tasks"),
    ):
        with pytest.raises(SpecError, match=said):
            parse_job(json.dumps(before | wrong))


def test_the_tasks_of_a_spec_have_different_names():
    made = json.loads(to_json(circuit_job("python-tiny", ("quote_close",))))
    file = {"name": "mine", "path": "/mine.jsonl", "sha256": "0" * 64}
    for wrong, said in (
        ({"tasks": ["quote_close"] * 2}, "tasks name 'quote_close' twice"),
        ({"task_files": [file]}, "'mine', which is not one of the job's tasks"),
        ({"tasks": ["mine"], "task_files": [file] * 2}, "task_files name 'mine' twice"),
        ({"tasks": ["../mine"], "task_files": [file | {"name": "../mine"}]}, "task_files.0.name"),
        ({"tasks": ["mine"], "task_files": [file | {"sha256": "0"}]}, "task_files.0.sha256"),
    ):
        with pytest.raises(SpecError, match=re.escape(said)):
            parse_job(json.dumps(made | wrong))


def test_the_tokenizer_of_a_circuit_job_is_the_bases(gpt2_folder: Path, tmp_path: Path):
    from extractor.models.tokenizer import train_tokenizer

    base = tmp_path / "base@here"
    shutil.copytree(gpt2_folder, base)
    train_tokenizer(["nothing"], 257).save(str(base / "tokenizer.json"))
    lora = tmp_path / "lora"
    shutil.copytree(gpt2_folder, lora, ignore=shutil.ignore_patterns("config.json", "model.safetensors"))
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)}))
    (lora / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(TaskNotExpressible):
        circuit_job(str(lora), ("for_while",))


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("some/data", ("some/data", "shared", "v1")),
        ("some/data:en", ("some/data", "en", "v1")),
        ("some/data@abc", ("some/data", "shared", "abc")),
        ("some/data:en@abc", ("some/data", "en", "abc")),
    ],
)
def test_a_dataset_is_named_with_configuration_and_revision(reference: str, found: tuple[str, str, str]):
    spec = dataset(reference, config="shared", revision="v1", split="train", text_column="body", tokens=5)
    assert (spec.name, spec.config, spec.revision) == found
    assert (spec.split, spec.text_column, spec.tokens) == ("train", "body", 5)


def test_a_folder_may_have_any_name(tmp_path: Path):
    (tmp_path / "a:b@c").mkdir()
    assert dataset(str(tmp_path / "a:b@c")).name == str(tmp_path / "a:b@c")


def test_a_dataset_is_pinned_looked_into_and_takes_the_place_of_the_default_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(json.dumps({"text": "x = 1"}) + "\n")
    monkeypatch.chdir(tmp_path)
    made = train_job(datasets=(dataset("data"),))
    assert made.corpus == CorpusSpec(sources=(), datasets=(DatasetSpec(name=str(tmp_path / "data")),))
    assert job(datasets=(dataset("data"),)).corpus.sources == ("generated",)
    assert "no column 'body'" in refused(datasets=(dataset("data", text_column="body"),))
    assert "not found" in refused(NotFound, datasets=(dataset("./nowhere"),))


def test_every_field_is_listed_with_its_value_and_meaning():
    found = {setting.name: setting for setting in train_settings("paper")}
    assert found["optim.lr"].value == presets.train_spec("paper", "sparse_gpt").optim.lr
    assert found["optim.lr"].kind == "float > 0"
    assert found["model.activation"].kind == "gelu | relu"
    assert found["model.d_head"].meaning == "paper: 16"
    assert found["sparsity.anneal"].section.startswith("Fractions of weights that stay nonzero")
    assert {"vocab_size", "prune.steps", "corpus.generated_programs"} <= found.keys()
    assert not {"tokenizer", "corpus.datasets", "model"} & found.keys()


def test_every_listed_field_can_be_set_to_the_value_it_has():
    plain = job(tasks=("for_while",))
    for setting in train_settings("tiny"):
        text = ",".join(map(str, setting.value)) if isinstance(setting.value, tuple) else str(setting.value)
        assert job(changes={setting.name: text}, tasks=("for_while",)) == plain, setting.name


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_what_is_typed_becomes_the_same_spec(capsys: pytest.CaptureFixture[str]):
    arguments = "--dense --match 2.5 --task for_while --target-loss 0.2 --tensorboard --tokenizer python-tiny --corpus generated --seed 3"
    code, out, _ = typed(capsys, *arguments.split(), "--set", "model.d_model=64", "--set", "prune.steps=9", "--print-spec")
    assert code == 0
    assert parse_job(out) == job(
        dense=True,
        match_loss=2.5,
        tasks=("for_while",),
        target_loss=0.2,
        tensorboard=True,
        tokenizer="python-tiny",
        seed=3,
        changes={"model.d_model": "64", "prune.steps": "9"},
    )


def test_datasets_are_typed(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    pytest.importorskip("datasets")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(json.dumps({"body": "x = 1"}) + "\n")
    shared = ("--text-column", "body", "--dataset-tokens", "1000")
    code, out, err = typed(capsys, "--dataset", str(tmp_path / "one"), "--dataset", str(tmp_path / "two"), *shared, "--print-spec")
    assert code == 0, err
    expected = tuple(DatasetSpec(name=str(tmp_path / name), text_column="body", tokens=1000) for name in ("one", "two"))
    assert parse_job(out).corpus == CorpusSpec(sources=(), datasets=expected)


@pytest.mark.parametrize("text", ["optim.lr", "=3", "optim.lr="])
def test_an_assignment_without_both_sides_is_refused(capsys: pytest.CaptureFixture[str], text: str):
    code, _, err = typed(capsys, "--set", text, "--print-spec")
    assert (code, "write FIELD=VALUE" in err) == (2, True)


def test_a_field_set_twice_is_refused(capsys: pytest.CaptureFixture[str]):
    code, _, err = typed(capsys, "--set", "optim.lr=1", "--set", "optim.lr=2", "--print-spec")
    assert (code, "set twice, to 1 and to 2" in err) == (2, True)


def test_the_fields_are_printed(capsys: pytest.CaptureFixture[str]):
    code, out, _ = typed(capsys, "--fields", "--preset", "small")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("  optim.batch=")]
    assert line.split()[:4] == ["optim.batch=128", "int", ">=", "1"]
    assert line.endswith("sequences per step, over all processes; authors' script: 512")
    code, out, _ = typed(capsys, "--fields", "--json")
    assert [setting["name"] for setting in json.loads(out)] == [setting.name for setting in train_settings()]


def test_help_and_the_request_itself_do_without_torch_and_datasets():
    heavy = "print(sorted({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)))"
    assert python(f"import sys, extractor.jobs.request; {heavy}").strip() == "[]"
    heavy = heavy.replace("'pandas'", "'pydantic', 'numpy'")
    assert python(f"import sys, worker.cli.train; {heavy}").strip() == "[]"


def test_a_progress_line_says_loss_speed_and_time_left():
    metrics = {"loss": 2.31, "ce": 1.0, "nmse_encoder": 0.5, "tokens_per_s": 12345.0, "l0": 0.1}
    event = {"step": 120, "total": 1500, "metrics": metrics, "seconds_left": 80.0}
    assert describe_progress(event) == "120/1500, loss 2.31, 12,345 tokens/s, 1 min 20 s left in this stage"
    times = {"elapsed_seconds": 40.0, "total_seconds_left": 132.0}
    assert describe_progress(event | times) == "120/1500, loss 2.31, 12,345 tokens/s, 40 s elapsed, about 2 min 10 s left"
    assert describe_progress({"step": 3, "total": 9, "metrics": {"k": 4}}) == "3/9"


def test_a_circuit_job_takes_changes_of_its_bridge_and_its_pruning():
    spec = circuit_job(
        "python-tiny", ("quote_close",), init="scratch", labels="model", changes={"bridge.optim.steps": "5", "prune.steps": "3"}
    )
    assert spec.bridge is not None
    assert spec.prune is not None
    assert (spec.bridge.init, spec.bridge.optim.steps, spec.prune.steps, spec.labels) == ("scratch", 5, 3, "model")
    assert circuit_job("python-tiny", ("quote_close",)).bridge.init == "dense"
    names = [setting.name for setting in circuit_settings()]
    assert "bridge.sparsity.weight_frac" in names
    assert "bridge.init" not in names


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"init": "warm"}, "init 'warm' is unknown; choose scratch or dense"),
        ({"labels": "mine"}, "labels 'mine' is unknown; choose task or model"),
        ({"changes": {"bridge.init": "dense"}}, "has an option of its own: --init"),
        ({"changes": {"bridge.optim.stps": "5"}}, "did you mean bridge.optim.steps"),
        ({"changes": {"optim.steps": "5"}}, "did you mean bridge.optim.steps"),
        ({"changes": {"bridge.optim.steps": "0"}}, "bridge.optim.steps"),
    ],
)
def test_what_a_circuit_job_cannot_be_asked(wrong: dict, message: str):
    with pytest.raises(SpecError, match=re.escape(message)):
        circuit_job("python-tiny", ("quote_close",), **wrong)


@pytest.mark.parametrize("loss", [0.0, -0.1, 0.6932, 2.0, float("nan")])
def test_a_target_that_nothing_or_no_circuit_reaches_is_refused(loss: float):
    assert "0.693, the loss of a circuit without nodes" in refused(tasks=("quote_close",), target_loss=loss)
    spec = json.loads(to_json(job(tasks=("quote_close",)))) | {"target_loss": loss}
    with pytest.raises(SpecError, match="target_loss"):
        parse_job(json.dumps(spec))
