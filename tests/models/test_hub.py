"""Models on the hub: pinned, checked before any weights are read, downloaded; and every refusal, in one line that says what to do.

The hub is a small server on this machine, its client the real one in a fresh process.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpt2_sized import VOCABULARY, write_gpt2_sized
from local_hub import TOKEN, LocalHub, Repository, hub_environment, serve
from worlds import python

from extractor.models.hub import refusal

SHA = "0123456789abcdef0123456789abcdef01234567"
OLD = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def files(gpt2_folder: Path) -> dict[str, bytes]:
    """The tiny GPT-2's."""
    return {path.name: path.read_bytes() for path in gpt2_folder.iterdir()}


def configured(files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | changes).encode()}


@pytest.fixture(scope="module")
def hub(files: dict[str, bytes]) -> Iterator[LocalHub]:
    beside = {"pytorch_model.bin": b"pickled", "run_me.py": b"raise SystemExit", "README.md": b"# tiny", "other/model.safetensors": b"x"}
    whole = Repository({OLD: files, SHA: files | beside})
    without = {name: {k: v for k, v in files.items() if k != name} for name in ("model.safetensors", "tokenizer.json", "config.json")}
    models = {
        "some/tiny": whole,
        "tiny": whole,
        "some/pickled": Repository({SHA: without["model.safetensors"] | {"pytorch_model.bin": b"x"}}),
        "some/keras": Repository({SHA: without["model.safetensors"] | {"tf_model.h5": b"x"}}),
        "some/dataset": Repository({SHA: {"README.md": b"# nothing"}}),
        "some/bert": Repository({SHA: configured(files, model_type="bert", architectures=["BertForMaskedLM"])}),
        "some/headless": Repository({SHA: configured(files, architectures=["GPT2Model"])}),
        "some/classifier": Repository({SHA: configured(files, architectures=["GPT2ForSequenceClassification"])}),
        "some/code": Repository({SHA: configured(files, auto_map={"AutoModelForCausalLM": "mine.Mine"})}),
        "some/quantized": Repository({SHA: configured(files, quantization_config={"quant_method": "bitsandbytes"})}),
        "some/slow-tokenizer": Repository({SHA: without["tokenizer.json"] | {"tokenizer.model": b"x"}}),
        "some/broken": Repository({SHA: files | {"config.json": b"{"}}),
        "some/listed": Repository({SHA: files | {"config.json": b"[]"}}),
        "some/huge-config": Repository({SHA: files}, sizes={"config.json": 9_000_000_000}),
        "some/huge": Repository({SHA: files}, parameters=6_738_415_616),
        "some/huge-uncounted": Repository({SHA: files}, sizes={"model.safetensors": 40_000_000_000}),
        "some/gated": Repository({SHA: files}, gated="manual"),
        "some/closed": Repository({SHA: files}, gated=True),
        "some/private": Repository({SHA: files}, private=True),
        "some/disabled": Repository({SHA: files}, disabled=True),
        "some/disabled-files": Repository({SHA: files}, disabled="seen"),
        "some/down": Repository({SHA: files}, status=503),
        "some/busy": Repository({SHA: files}, status=429),
        "some/forbidden": Repository({SHA: files}, status=403),
        "some/sleepy": Repository({SHA: files}, seconds=3.0),
    }
    with serve(LocalHub(models=models)) as served:
        yield served


ASK = """
import json, sys
from extractor.errors import ExtractorError
from extractor.models.reference import open_model, resolve_pair
found = []
for reference in sys.argv[2:]:
    try:
        found.append([sys.argv[1], str({'resolve': lambda name: resolve_pair(name)[0], 'open': open_model}[sys.argv[1]](reference))])
    except ExtractorError as error:
        found.append([type(error).__name__, str(error)])
assert not {'torch', 'transformers'} & set(sys.modules)
print(json.dumps(found))
"""


def ask(hub: LocalHub | str, home: Path, *references: str, call: str = "resolve", **environment: str) -> list[list[str]]:
    """What `resolve_pair` or `open_model` gives for each reference: [call, value] or [type of the error, its line]."""
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    found = json.loads(python(ASK, call, *references, env=hub_environment(endpoint, home) | environment))
    assert all("\n" not in text for _, text in found)
    return found


def test_references_are_pinned(hub: LocalHub, tmp_path: Path):
    hub.fetched.clear()
    found = ask(hub, tmp_path, "some/tiny", "some/tiny@main", f"some/tiny@{SHA}", f"some/tiny@{OLD}", "tiny")
    assert found == [["resolve", f"{name}@{sha}"] for name, sha in (("some/tiny", SHA),) * 3 + (("some/tiny", OLD), ("tiny", SHA))]
    assert {file for _, file in hub.fetched} == {"config.json"}


REFUSED = {
    "some/nothing": ("ModelNotFound", "'some/nothing' not found: no folder, not bundled, and not on the hub, or private: set HF_TOKEN"),
    "some/private": ("ModelNotFound", "'some/private' not found: no folder, not bundled, and not on the hub, or private: set HF_TOKEN"),
    "some/a--b": ("ModelNotFound", "no name that the hub allows; write ID or OWNER/ID"),
    "some/gated": ("ModelNotFound", "is gated: accept its terms on its page and set HF_TOKEN"),
    "some/closed": ("ModelNotFound", "is gated: accept its terms on its page and set HF_TOKEN"),
    "some/disabled": ("ModelNotFound", "is disabled"),
    "some/disabled-files": ("ModelNotFound", "is disabled"),
    "some/tiny@v9": ("ModelNotFound", "has no revision 'v9'; give a branch, a tag or a commit"),
    "some/pickled": (
        "UnsupportedModel",
        "has only pickled weights (pytorch_model.bin), which can run code when loaded; save it with safetensors",
    ),
    "some/keras": ("UnsupportedModel", "has no weights that can be used (tf_model.h5)"),
    "some/dataset": ("UnsupportedModel", "has no config.json; found README.md"),
    "some/bert": ("UnsupportedModel", "is of type 'bert'"),
    "some/headless": ("UnsupportedModel", "is a GPT2Model: it has no language-model head"),
    "some/classifier": ("UnsupportedModel", "is a GPT2ForSequenceClassification: it has no language-model head"),
    "some/code": ("UnsupportedModel", "brings code of its own (auto_map in config.json), which is never run"),
    "some/quantized": ("UnsupportedModel", "is quantized (bitsandbytes)"),
    "some/slow-tokenizer": ("UnsupportedModel", "has no tokenizer.json (found tokenizer.model, tokenizer_config.json); a fast tokenizer"),
    "some/huge": ("UnsupportedModel", "has 6,738,415,616 parameters, more than the 2,000,000,000 allowed"),
    "some/huge-uncounted": ("UnsupportedModel", "has about 10,000,000,000 parameters, more than the 2,000,000,000 allowed"),
    "some/broken": ("BrokenArtifact", "config.json of model 'some/broken' on the hub is not readable JSON"),
    "some/listed": ("BrokenArtifact", "expected a JSON object"),
    "some/huge-config": ("BrokenArtifact", "has 9,000,000,000 bytes; that is no config"),
    "some/down": ("HubUnavailable", "the hub is out of order (503); try again later"),
    "some/busy": ("HubUnavailable", "the hub limits requests (429)"),
}


def test_refusals_say_what_was_found_and_what_to_do(hub: LocalHub, tmp_path: Path):
    hub.fetched.clear()
    found = ask(hub, tmp_path, *REFUSED)
    for (reference, (kind, said)), (found_kind, text) in zip(REFUSED.items(), found, strict=True):
        assert found_kind == kind, reference
        assert said in text
        assert reference.partition("@")[0] in text
    assert {file for _, file in hub.fetched} == {"config.json"}


def test_a_token_opens_what_it_may(hub: LocalHub, tmp_path: Path):
    found = ask(hub, tmp_path, "some/private", "some/gated", "some/nothing", "some/closed", "some/forbidden", HF_TOKEN=TOKEN)
    assert found[:2] == [["resolve", f"some/private@{SHA}"], ["resolve", f"some/gated@{SHA}"]]
    assert [kind for kind, _ in found[2:]] == ["ModelNotFound"] * 3
    assert "or private: your HF_TOKEN has no access" in found[2][1]
    assert "with the account of your HF_TOKEN, which has no access yet" in found[3][1]
    assert "the hub forbids it; set HF_TOKEN to a token with the right" in found[4][1]


def test_a_bad_token_is_named(hub: LocalHub, tmp_path: Path):
    for call, reference in (("resolve", "some/tiny"), ("open", f"some/tiny@{SHA}")):
        ((kind, text),) = ask(hub, tmp_path, reference, call=call, HF_TOKEN="hf_expired")
        assert kind == "ModelNotFound"
        assert "the hub rejects your HF_TOKEN as invalid or expired" in text


def test_a_stored_token_is_not_used(hub: LocalHub, tmp_path: Path):
    (tmp_path / "token").write_text(TOKEN)
    ((kind, text),) = ask(hub, tmp_path, "some/private")
    assert kind == "ModelNotFound"
    assert "set HF_TOKEN" in text


def test_a_limit_on_parameters_is_a_setting(hub: LocalHub, tmp_path: Path):
    assert ask(hub, tmp_path, "some/huge", EXTRACT_MAX_PARAMETERS="7e9") == [["resolve", f"some/huge@{SHA}"]]


def test_offline_is_said(hub: LocalHub, tmp_path: Path):
    for call, reference in (("resolve", "some/tiny"), ("open", f"some/tiny@{SHA}")):
        ((kind, text),) = ask(hub, tmp_path, reference, call=call, HF_HUB_OFFLINE="1")
        assert kind == "ModelNotFound"
        assert "HF_HUB_OFFLINE is set" in text


def test_a_hub_that_is_away_or_slow_is_told_apart(hub: LocalHub, tmp_path: Path):
    ((kind, text),) = ask("http://127.0.0.1:9", tmp_path, "some/tiny")
    assert kind == "HubUnavailable"
    assert "the hub cannot be reached" in text
    ((kind, text),) = ask(hub, tmp_path, "some/sleepy", HF_HUB_ETAG_TIMEOUT="1")
    assert kind == "HubUnavailable"
    assert "does not answer in time" in text


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (TimeoutError("late"), "does not answer in time"),
        (ConnectionError("refused\nmore"), "the hub cannot be reached (refused)"),
        (ConnectionError(), "the hub cannot be reached (ConnectionError)"),
        (OSError(errno.ENOSPC, "full"), "the disk is full"),
    ],
)
def test_what_kept_the_worker_from_a_download_is_said(cause: Exception, said: str):
    from huggingface_hub.errors import LocalEntryNotFoundError

    error = LocalEntryNotFoundError("not in the cache either")
    error.__cause__ = cause
    assert said in str(refusal("some/tiny", SHA, error))


def test_a_pinned_model_is_downloaded_without_its_pickles_and_code(hub: LocalHub, tmp_path: Path, files: dict[str, bytes]):
    hub.fetched.clear()
    ((_, text),) = ask(hub, tmp_path, f"some/tiny@{SHA}", call="open")
    assert SHA in text
    assert {file for _, file in hub.fetched} == files.keys()
    ((again, _),) = ask(hub, tmp_path, f"some/tiny@{SHA}", call="open", HF_HUB_OFFLINE="1")
    assert again == "open"


def test_a_model_in_the_cache_needs_no_hub_and_no_patience(hub: LocalHub, tmp_path: Path):
    ask(hub, tmp_path, f"some/tiny@{SHA}", call="open")
    for listing in (tmp_path / "hub").glob("*/trees"):  # as in a cache that transformers has filled
        shutil.rmtree(listing)
    started = time.monotonic()
    assert ask("http://127.0.0.1:9", tmp_path, f"some/tiny@{SHA}", call="open")[0][0] == "open"
    for weights in (tmp_path / "hub").glob("*tiny/snapshots/*/model.safetensors"):
        weights.unlink()
    ((kind, text),) = ask("http://127.0.0.1:9", tmp_path, f"some/tiny@{SHA}", call="open")
    assert kind == "HubUnavailable"
    assert "has no weights; try again later" in text
    ((kind, text),) = ask("http://127.0.0.1:9", tmp_path, f"some/gone@{SHA}", call="open")
    assert kind == "HubUnavailable"
    assert "does not have it either" in text
    assert time.monotonic() - started < 15  # the client's own retries take 23 s for each request


def test_what_a_job_names_is_not_trusted(hub: LocalHub, tmp_path: Path):
    wrong = (f"some/nothing@{SHA}", "../bundled/python-tiny", "a/b/c", "python-tiny/../python-tiny", "..", f"some/gated@{SHA}", "some/code")
    found = ask(hub, tmp_path, *wrong, call="open")
    assert [kind for kind, _ in found] == ["ModelNotFound"] * 6 + ["UnsupportedModel"]


LOAD = """
import json, sys
from extractor.models.tokenizer import load_tokenizer
from extractor.models.load import load_dense
from extractor.errors import TaskNotExpressible
from extractor.models.reference import open_model, resolve_pair
from extractor.data.prompts import tokenize_task
from tasks import find_task, task_names
source = open_model(resolve_pair(sys.argv[1])[0])
dense = load_dense(source)
tokenizer = load_tokenizer(source.path)
told = []
for name in task_names():
    try:
        tokenize_task(find_task(name), tokenizer)
        told.append(name)
    except TaskNotExpressible:
        pass
tied = dense.model.lm_head.weight is dense.model.transformer.wte.weight
shapes = [list(dense.model.transformer.wte.weight.shape), list(dense.model.transformer.wpe.weight.shape)]
print(json.dumps([dense.name, dense.facts, tied, shapes, tokenizer.get_vocab_size(), told]))
"""


def test_a_model_laid_out_as_gpt2_is_pinned_downloaded_and_loaded(tmp_path: Path):
    (tmp_path / "model").mkdir()
    write_gpt2_sized(tmp_path / "model")
    repository = Repository({SHA: {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}}, parameters=137_022_720)
    with serve(LocalHub(models={"gpt2": repository})) as hub:
        out = python(LOAD, "gpt2", env=hub.environment(tmp_path / "home"))
    name, facts, tied, shapes, entries, told = json.loads(out)
    assert name == facts["model"] == f"gpt2@{SHA}"
    assert (tied, entries) == (True, VOCABULARY)
    assert shapes == [[VOCABULARY, 16], [1024, 16]]
    assert "quote_close" in told
