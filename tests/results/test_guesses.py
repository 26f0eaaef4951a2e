"""What a reader of a result types without reading: it works, or a line says what does."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.utils import logging
from worlds import ROOT

import extractor
from extractor.errors import ExtractorError, NotFound, UsageError
from extractor.results.compare import compare as compare_results
from extractor.results.result import Result

FOLDER = ROOT / "tests" / "frozen" / "result"  # of the last release


@pytest.fixture(scope="module")
def result() -> Result:
    return extractor.load(FOLDER)


@pytest.fixture(scope="module")
def pair(result: Result) -> tuple[str, str]:
    return result.held_out[0].prompt, result.held_out[1].prompt


def test_a_held_out_prompt_is_run_and_patched_as_its_text_is(result: Result, pair: tuple[str, str]):
    one, other = result.held_out[:2]
    node = result.circuit.nodes[0]
    assert result.run(one).margin == result.run(pair[0]).margin
    assert result.run(one, patch={node: other}).margin == result.run(pair[0], patch={node.id: pair[1]}).margin


def test_a_run_has_its_nodes_by_name_and_as_a_frame(result: Result, pair: tuple[str, str]):
    run, node = result.run(pair[0]), result.circuit.nodes[0]
    assert run[node] is run[node.id] is run.activations[node] is run.activations[node.id]
    for ask in (lambda: run["0.mlp.nothing.1"], lambda: run.activations["0.mlp.nothing.1"]):
        with pytest.raises(UsageError, match=r"is not in the circuit .* close: "):
            ask()
    assert run.activations.get("0.mlp.nothing.1") is None
    with pytest.raises(UsageError, match=r"named by \[layer, head\], as heads with a node of the circuit: .*; not by \(9, 9\)"):
        run.attention[9, 9]
    pytest.importorskip("pandas")
    frame = run.to_frame()
    assert (list(frame.index), "".join(frame.columns)) == ([one.id for one in result.circuit], pair[0])
    assert frame.iloc[0].tolist() == run[node].tolist()


@pytest.mark.parametrize(
    ("guess", "said"),
    [
        ("result.summary", "use result.loss, result.accuracy or result.numbers"),
        ("result.nodes", "use result.circuit, which has nodes"),
        ("result.predict('x')", r"use result.run\(prompt\)"),
        ("result.plot()", "use result.picture, which a notebook shows"),
        ("result.compare(result)", r"use extractor.compare\(result, other\)"),
        ("result.circut", "Result has no attribute 'circut'; close: circuit"),
        ("result.zzz", "Result has no attribute 'zzz'; it has accuracy, circuit, "),
        ("result._zzz", "Result has no attribute '_zzz'$"),
        ("result.circuit.draw()", "use result.picture, which a notebook shows"),
        ("result.circuit.run('x')", r"Circuit has no attribute 'run'; use result.run\(prompt\)"),
        ("run.top", "PromptRun has no attribute 'top'; use run.probability"),
        ("run.logits", "use run.margin"),
        ("run.patterns", r"use run.attention\[layer, head\]"),
    ],
)
def test_a_guess_that_is_no_attribute_is_told_what_is(result: Result, pair: tuple[str, str], guess: str, said: str):
    with pytest.raises(AttributeError, match=said) as refused:
        eval(guess, {"result": result, "run": result.run(pair[0])})
    assert "\n" not in str(refused.value)


def test_an_error_within_a_property_is_not_taken_for_a_missing_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(_folder: Path) -> None:
        raise AttributeError("the cause")

    monkeypatch.setattr("extractor.models.tokenizer.load_tokenizer", broken)
    with pytest.raises(AttributeError, match=r"^the cause$"):
        extractor.load(FOLDER).tokenizer  # noqa: B018 - the access is the test


def test_results_circuits_and_runs_are_copied_and_pickled(result: Result, pair: tuple[str, str]):
    for one in (result.circuit, copy.deepcopy(result.circuit), pickle.loads(pickle.dumps(result.circuit))):
        assert one == result.circuit
    assert copy.copy(result).circuit is result.circuit
    run = result.run(pair[0])
    assert pickle.loads(pickle.dumps(run)).activations.keys() == run.activations.keys()


def test_a_result_is_a_collection_of_its_tasks(result: Result):
    assert len(result) == 1
    assert "for_while" in result
    assert "quote_close" not in result


def test_the_compiled_circuit_takes_ids_in_every_form_and_no_text(result: Result, pair: tuple[str, str]):
    ids = result.tokenizer.encode(pair[0]).ids
    first, second = (torch.tensor([answer]) for answer in result.circuit.answer_ids)
    wanted = result.compiled(torch.tensor([ids]), None, first, second)
    for given in ([ids], ids, torch.tensor(ids)):
        assert torch.equal(result.compiled(given, None, first, second), wanted)
    for given in (pair[0], [], torch.zeros(1, 2), [[1], [2, 3]]):
        with pytest.raises(UsageError, match=r"reads token ids \(B, T\) or \(T,\), such as result.tokenizer.encode"):
            result.compiled(given)


def test_a_picture_is_the_png_of_the_result(result: Result, tmp_path: Path):
    with Image.open(result.place / "circuit.png") as stored, Image.open(io.BytesIO(result.picture._repr_png_())) as shown:
        assert shown.width == min(stored.width, 1600)
        assert shown.width / shown.height == pytest.approx(stored.width / stored.height, rel=0.01)
        small = stored.convert("L").resize((40, 40))
        assert max(abs(a - b) for a, b in zip(small.tobytes(), shown.convert("L").resize((40, 40)).tobytes(), strict=True)) < 40
    with pytest.raises(NotFound, match="there is no picture"):
        Result(tmp_path, "for_while").picture  # noqa: B018 - the access is the test


def test_the_report_opens_in_a_browser_where_there_is_one(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    monkeypatch.setenv("BROWSER", "some-browser")
    assert result.open() == result.report
    assert opened == [result.report.as_uri()]
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ExtractorError, match=f"there is no browser here; the report is one file, copy it to where one is: {result.report}"):
        result.open()
    with pytest.raises(NotFound, match="there is no page"):
        Result(tmp_path, "for_while").open()


def test_a_model_is_loaded_without_a_bar(capsys: pytest.CaptureFixture[str]):
    logging.enable_progress_bar()
    _ = extractor.load(FOLDER).model
    told = capsys.readouterr()
    assert told.out + told.err == ""
    assert logging.is_progress_bar_enabled()


def test_two_results_are_compared_by_folder_or_as_results(result: Result, tmp_path: Path):
    found = extractor.compare(result, FOLDER)
    assert dict(found) == compare_results(result, extractor.load(FOLDER))
    size = len(result.circuit)
    assert f"both circuits have {size} nodes (100%)" in repr(found)
    assert found.circuits[0]["nodes"] == found.circuits[1]["nodes"] == size
    assert found.circuits[0]["loss"] == result.loss["circuit"]
    assert found._repr_html_().count("<table>") == 2
    shutil.copytree(FOLDER, tmp_path / "two")
    shutil.copytree(tmp_path / "two" / "circuits" / "for_while", tmp_path / "two" / "circuits" / "again")
    with pytest.raises(UsageError, match=r"has circuits of again, for_while; give one, as extractor.load\(.*, 'again'\)"):
        extractor.compare(tmp_path / "two", result)
