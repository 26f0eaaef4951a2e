"""Which models a batch takes: by metadata alone, each refused for a reason that is told, what is taken pinned and taken once.

The hub is a small server on this machine, its client the real one in a fresh process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from local_hub import TOKEN, LocalHub, Repository, serve
from simulated_hub import KINDS, SHA, expected, gpt2_files, index, simulated_hub, weights
from worlds import ROOT, python

from extractor.data.task_choice import choose
from extractor.errors import UsageError
from extractor.jobs.bridge_choice import BridgeChoice
from extractor.spec.schema import BridgeSpec
from worker.batches.hub_search import parse_query
from worker.batches.selection import ModelDecision, Rules, Selection, select
from worker.batches.sources import open_source

OTHER = "89abcdef0123456789abcdef0123456789abcdef"
RULES = Rules(limit=100, most_parameters=200_000_000, setting="--max-params")

CHOOSE = """
import dataclasses, itertools, json, sys
from worker.batches.sources import open_source
from worker.batches.selection import Rules, Selection, ModelDecision, select
from extractor.spec.schema import BridgeSpec
from extractor.jobs.bridge_choice import BridgeChoice
from extractor.data.task_choice import choose
sources, rules, before = json.loads(sys.argv[1])
rules['owners'] = frozenset(rules['owners'])
before = Selection(**{kind: tuple(ModelDecision(**v) for v in before[kind]) for kind in ('taken', 'refused')}) if before else None
candidates = itertools.chain.from_iterable(open_source(s).candidates() for s in sources)
tasks, bridge = choose(['quote_close', 'for_while']), BridgeChoice(BridgeSpec())
print(json.dumps(dataclasses.asdict(select(candidates, Rules(**rules), tasks, bridge, before))))
assert not {'torch', 'transformers'} & set(sys.modules)
"""


def choose_from(hub: LocalHub, home: Path, *sources: str, before: dict | None = None, token: str = "", **rules: object) -> dict:
    """A selection, as JSON has it."""
    limits = {"limit": 1000, "most_parameters": 200_000_000, "setting": "--max-params", "owners": []} | rules
    environment = hub.environment(home) | {"HF_TOKEN": token}
    return json.loads(python(CHOOSE, json.dumps([sources, limits, before]), env=environment))


def taken(selection: dict) -> list[str]:
    return [verdict["asked"] for verdict in selection["taken"]]


def reasons(selection: dict) -> dict[str, str]:
    return {verdict["asked"]: verdict["reason"] for verdict in selection["refused"]}


@pytest.fixture
def small(tmp_path: Path):
    """A hub of four GPT-2s."""
    models = {f"{name}": Repository({SHA: gpt2_files(name)}, parameters=1000) for name in ("lab/a", "lab/b", "other/c", "lab/d")}
    with serve(LocalHub(models)) as hub:
        yield hub


def folder(place: Path, text: str, tokenizer: Path) -> Path:
    """A model's folder with a real tokenizer; its weights are known by the text."""
    place.mkdir(parents=True)
    for name, content in gpt2_files(text).items():
        (place / name).write_bytes(content)
    shutil.copy(tokenizer / "tokenizer.json", place)
    return place


def test_of_a_hub_of_200_models_the_right_ones_are_taken_and_every_other_is_refused_for_its_own_reason(tmp_path: Path):
    (tmp_path / "named.txt").write_text("# not in the listing\nlab/hidden-0\n\nlab/hidden-1\n  lab/hidden-2\nlab/hidden-3\nlab/hidden-3\n")
    with serve(simulated_hub()) as hub:
        found = choose_from(hub, tmp_path, "hub:lab/", str(tmp_path / "named.txt"))
    wanted = expected()
    assert len(wanted) == 200
    assert found["is_complete"]
    assert taken(found) == [name for name, why in wanted.items() if not why]
    assert {verdict["reference"] for verdict in found["taken"]} == {f"{name}@{SHA}" for name, why in wanted.items() if not why}
    refused = reasons(found)
    assert set(refused) == {name for name, why in wanted.items() if why}
    assert [(name, why, refused[name]) for name, why in wanted.items() if why and why not in refused[name]] == []
    assert all("\n" not in reason for reason in refused.values())
    assert {file for _, file in hub.fetched} == {"config.json", "model.safetensors.index.json"}  # no weights
    by_listing = {kind.name for kind in KINDS} & {"gated", "huge", "bert", "gptj", "pickled", "gguf", "quantized", "code", "lora"}
    assert len(by_listing) == 9
    assert not [name for name in hub.looked if name.partition("/")[2].rpartition("-")[0] in by_listing]


def test_a_search_is_by_words_owner_and_tags_and_goes_no_further_than_the_limit(tmp_path: Path):
    with serve(simulated_hub()) as hub:
        assert taken(choose_from(hub, tmp_path, "hub:small author=lab", limit=3)) == ["lab/small-0", "lab/small-1", "lab/small-2"]
        assert len(hub.looked) < 20
        found = choose_from(hub, tmp_path, "hub:filter=text-generation,neo")
        assert taken(found) == [f"lab/neo-{number}" for number in range(4)]
        assert choose_from(hub, tmp_path, "hub:author=nobody") == {"taken": [], "refused": [], "is_complete": True}
        assert not choose_from(hub, tmp_path, "hub:small", limit=3)["is_complete"]


def test_owners_that_are_not_allowed_are_refused_without_a_question_to_the_hub(small: LocalHub, tmp_path: Path):
    found = choose_from(small, tmp_path, "hub:/", owners=["lab"])
    assert taken(found) == ["lab/a", "lab/b", "lab/d"]
    assert "'other/c' on the hub has an owner that is not allowed (lab)" in reasons(found)["other/c"]
    assert "other/c" not in small.looked


def test_the_same_weights_are_taken_once_be_they_on_the_hub_or_in_a_folder(small: LocalHub, tmp_path: Path, gpt2_folder: Path):
    own = folder(tmp_path / "models" / "mine", "lab/b", gpt2_folder)
    found = choose_from(small, tmp_path, "hub:lab/", str(tmp_path / "models"))
    assert taken(found) == ["lab/a", "lab/b", "lab/d"]
    assert "is a duplicate of 'lab/b': the same weights" in reasons(found)[str(own)]
    assert taken(choose_from(small, tmp_path, str(tmp_path / "models"), "hub:lab/")) == [str(own), "lab/a", "lab/d"]


def test_what_was_taken_stays_pinned_and_what_was_refused_is_looked_at_again(small: LocalHub, tmp_path: Path):
    small.models["lab/d"].status = 503
    first = choose_from(small, tmp_path, "hub:lab/")
    assert taken(first) == ["lab/a", "lab/b"]
    assert "out of order (503)" in reasons(first)["lab/d"]
    small.models["lab/d"].status = 0
    small.models["lab/a"].commits[OTHER] = gpt2_files("lab/a, trained on")
    del small.models["lab/b"]
    second = choose_from(small, tmp_path, "hub:lab/", before=first)
    assert second["taken"][:2] == first["taken"]
    assert taken(second) == ["lab/a", "lab/b", "lab/d"]
    assert second["refused"] == []
    fresh = choose_from(small, tmp_path, "hub:lab/")
    assert [verdict["reference"] for verdict in fresh["taken"]] == [f"lab/a@{OTHER}", f"lab/d@{SHA}"]


def test_refusals_are_kept_when_the_limit_was_reached_before(small: LocalHub, tmp_path: Path):
    small.models["lab/a"].gated = True
    first = choose_from(small, tmp_path, "hub:lab/", limit=2)
    assert (taken(first), list(reasons(first))) == (["lab/b", "lab/d"], ["lab/a"])
    again = choose_from(small, tmp_path, "hub:lab/", limit=2, before=first)
    assert again["taken"] == first["taken"]
    assert again["refused"] == first["refused"]


def test_metadata_that_is_broken_in_any_way_costs_its_own_model_only(small: LocalHub, tmp_path: Path):
    odd = {
        "list": b"[]",
        "text": b'"gpt2"',
        "null": b"null",
        "bytes": b"\xff\xfe",
        "deep": b"[" * 200_000,
        "large": b'{"model_type": "' + b"x" * 2_000_000 + b'"}',
        "long": b'{"model_type": "' + b"x" * 100_000 + b'"}',
        "type": b'{"model_type": ["gpt2"]}',
        "names": b'{"model_type": "gpt2", "architectures": 7}',
        "escape": b'{"model_type": "gpt2", "quantization_config": {"quant_method": "\\u001b[2J\\n"}}',
        "method": b'{"model_type": "gpt2", "quantization_config": 4}',
    }
    for name, config in odd.items():
        small.models[f"lab/odd-{name}"] = Repository({SHA: gpt2_files(name) | {"config.json": config}}, parameters=1000)
    small.models["lab/odd-count"] = Repository({SHA: gpt2_files("count")}, parameters="many")  # type: ignore[arg-type]
    found = choose_from(small, tmp_path, "hub:lab/")
    assert taken(found) == ["lab/a", "lab/b", "lab/d"]
    refused = reasons(found)
    assert set(refused) == {f"lab/odd-{name}" for name in (*odd, "count")}
    assert all(reason.isprintable() and 20 < len(reason) < 510 for reason in refused.values()), refused
    assert "is quantized (?[2J )" in refused["lab/odd-escape"]


def test_a_token_opens_what_is_gated(small: LocalHub, tmp_path: Path):
    small.models["lab/a"].gated = "manual"
    assert "lab/a" in reasons(choose_from(small, tmp_path, "hub:lab/"))
    assert "lab/a" in taken(choose_from(small, tmp_path, "hub:lab/", token=TOKEN))


def test_a_folder_of_this_machine_never_stands_in_for_a_model_that_a_search_found(small: LocalHub, tmp_path: Path, gpt2_folder: Path):
    folder(tmp_path / "here" / "lab" / "a", "something else", gpt2_folder)
    script = f"import os; os.chdir({str(tmp_path / 'here')!r})\n{CHOOSE}"
    limits = {"limit": 9, "most_parameters": 10**9, "setting": "--max-params", "owners": []}
    environment = small.environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    found = json.loads(python(script, json.dumps([["hub:lab/a"], limits, None]), env=environment))
    assert found["taken"][0]["reference"] == f"lab/a@{SHA}"


@pytest.mark.parametrize(
    ("environment", "said"),
    [({}, "the hub forbids it"), ({"HF_TOKEN": "hf_bad"}, "rejects your HF_TOKEN"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_a_hub_that_cannot_be_searched_is_told_in_a_line(tmp_path: Path, environment: dict[str, str], said: str):
    script = """
import sys
from extractor.errors import ServiceUnavailable
from worker.batches.sources import open_source
try:
    list(open_source('hub:gpt2').candidates())
except ServiceUnavailable as error:
    print(error)
"""
    with serve(LocalHub(searchless=401 if "HF_TOKEN" in environment else 403)) as hub:
        line = python(script, env=hub.environment(tmp_path) | environment)
    assert line.startswith("cannot search hub:gpt2 sort=downloads: ")
    assert said in line


def select_here(*sources: str, tasks: tuple[str, ...] = ("quote_close",)) -> Selection:
    candidates = (candidate for source in sources for candidate in open_source(source).candidates())
    return select(candidates, RULES, choose(tasks), BridgeChoice(BridgeSpec()))


def test_folders_are_searched_for_models_and_what_is_left_of_models(tmp_path: Path, gpt2_folder: Path):
    kept = folder(tmp_path / "jobs" / "k3v9" / "result" / "model", "one", gpt2_folder)
    adapter = kept / "bridges"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("nothing")
    broken = folder(tmp_path / "broken", "two", gpt2_folder)
    (broken / "config.json").write_text("[")
    pickled = folder(tmp_path / "pickled", "three", gpt2_folder)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    found = select_here(str(tmp_path))
    assert [verdict.reference for verdict in found.taken] == [str(kept)]
    assert {verdict.asked for verdict in found.refused} == {str(broken), str(pickled)}


def test_a_link_to_a_model_folder_is_taken_and_no_other_is_followed(tmp_path: Path, gpt2_folder: Path):
    folder(tmp_path / "kept" / "deep", "one", gpt2_folder)
    (tmp_path / "collection").mkdir()
    (tmp_path / "collection" / "model").symlink_to(tmp_path / "kept" / "deep")
    (tmp_path / "collection" / "all").symlink_to(tmp_path / "kept")
    (tmp_path / "collection" / "loop").symlink_to(tmp_path / "collection")
    (tmp_path / "collection" / "gone").symlink_to(tmp_path / "nowhere")
    found = select_here(str(tmp_path / "collection"))
    assert [verdict.reference for verdict in found.taken] == [str(tmp_path / "kept" / "deep")]
    assert found.refused == ()


def test_a_list_of_models_may_begin_with_a_byte_order_mark(tmp_path: Path, gpt2_folder: Path):
    (tmp_path / "models.txt").write_bytes(b"\xef\xbb\xbf" + str(gpt2_folder).encode() + b"\n")
    assert [verdict.asked for verdict in select_here(str(tmp_path / "models.txt")).taken] == [str(gpt2_folder)]


def test_tasks_that_a_local_tokenizer_cannot_express_are_left_out_and_a_model_without_any_is_refused(tmp_path: Path, gpt2_folder: Path):
    own = str(folder(tmp_path / "mine", "one", gpt2_folder))
    pairs = tmp_path / "impossible.jsonl"
    row = {"positive": "ab", "negative": "cd", "answers": ["one two three four five six", "seven eight nine ten eleven"]}
    pairs.write_text("\n".join(json.dumps(row | {"positive": f"ab{n}", "negative": f"cd{n}"}) for n in range(40)))
    found = select_here(own, tasks=("quote_close", str(pairs)))
    assert list(found.taken[0].left_out) == ["impossible"]
    none = select_here(own, tasks=(str(pairs),))
    assert none.taken == ()
    assert "none of 1 tasks can be asked of this model" in none.refused[0].reason


def test_references_that_lead_nowhere_are_refused_each_in_a_line(tmp_path: Path, monkeypatch):
    (tmp_path / "names").write_text(f"/nowhere\n{tmp_path / 'names'}\n../../x\nword word\n\x01\n" + "x" * 300 + "\n")
    found = select_here(str(tmp_path / "names"))
    assert found.taken == ()
    assert len(found.refused) == 6
    assert all(verdict.reason and "\n" not in verdict.reason for verdict in found.refused)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hub:", "matches every model"),
        ("hub:  ", "matches every model"),
        ("hub:sort=likes", "matches every model"),
        ("hub:gpt2 sort=size", "sort=size is unknown"),
        ("hub:owner=me", "'owner=me' is not"),
        ("hub:author=", "'author=' is not"),
        ("", "not a file, folder or search"),
        ("nothing/there", "not a file, folder or search"),
        ("/dev/null", "not a file, folder or search"),
        ("a\0b", "not a file, folder or search"),
    ],
)
def test_sources_that_are_none_are_refused(text: str, said: str):
    with pytest.raises(UsageError, match=said):
        open_source(text)


@pytest.mark.parametrize(("content", "said"), [(b"", "names no model"), (b"# only\n\n", "names no model"), (b"\xff\xfe\x00", "not UTF-8")])
def test_files_that_name_nothing_are_refused(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        open_source(str(tmp_path / "list"))


def test_the_same_question_has_one_identity(tmp_path: Path):
    (tmp_path / "one").write_text("a/b\nc/d\n")
    (tmp_path / "two").write_text("# the same\n a/b\n\nc/d\na/b")
    assert open_source(str(tmp_path / "one")).identity == open_source(str(tmp_path / "two")).identity
    assert str(parse_query("  gpt2   author=x  small ")) == str(parse_query("gpt2 small author=x"))


def test_weights_under_names_of_their_own_are_not_taken_for_each_other(small: LocalHub, tmp_path: Path):
    for name in ("lab/a", "lab/b"):
        files = gpt2_files(name) | {"model.safetensors.index.json": index("shard-1.safetensors"), "shard-1.safetensors": weights(name)}
        del files["model.safetensors"]
        small.models[name].commits = {SHA: files}
    assert taken(choose_from(small, tmp_path, "hub:lab/")) == ["lab/a", "lab/b", "lab/d"]


def test_a_verdict_is_of_a_taken_model_or_gives_a_reason():
    assert ModelDecision("a", "a@1").is_taken
    assert not ModelDecision("a", reason="no").is_taken
