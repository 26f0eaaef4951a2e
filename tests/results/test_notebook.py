"""The example notebook: valid, its cells run in order, and what they show is what is stored."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from notebooks import read_notebook, run_cells, text_of, texts
from worlds import ROOT

import extractor
from extractor.errors import BrokenArtifact
from extractor.spec.schema import read_job

FOLDER = ROOT / "extractor" / "examples"
NOTEBOOK = FOLDER / "read_a_circuit.ipynb"
NUMBER = re.compile(r"-?\d+\.\d+")
MOST_BYTES = 1_500_000  # of notebook and result


def similar(found: str, stored: str) -> bool:
    """Whether two texts are the same but for the rounding of numbers with a point."""
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (found, stored)]
    return NUMBER.sub("#", found) == NUMBER.sub("#", stored) and numbers[0] == pytest.approx(numbers[1], abs=5e-3)


@pytest.fixture(scope="module")
def book() -> dict[str, Any]:
    return read_notebook(NOTEBOOK)


@pytest.fixture(scope="module")
def shown(book: dict[str, Any]) -> dict[str, tuple[list, list]]:
    """{id of a code cell: (outputs of today, stored outputs)}."""
    return {cell["id"]: (outputs, cell["outputs"]) for cell, outputs in run_cells(book, FOLDER)}


def test_every_code_cell_shows_today_what_is_stored(shown: dict[str, tuple[list, list]]):
    assert len(shown) >= 8
    for name, (today, stored) in shown.items():
        assert stored, f"cell {name} stores nothing"
        assert [output["output_type"] for output in today] == [output["output_type"] for output in stored], name
        assert similar(texts(today), texts(stored)), f"cell {name} shows\n{texts(today)}\nand stores\n{texts(stored)}"
        for now, before in zip(today, stored, strict=True):
            assert now.get("data", {}).keys() == before.get("data", {}).keys(), name


def test_what_the_text_claims_is_what_the_cells_show(book: dict[str, Any], shown: dict[str, tuple[list, list]]):
    said = {name: texts(today) for name, (today, _) in shown.items()}
    assert "image/png" in shown["picture"][0][-1]["data"]
    assert "text/html" in shown["prompt"][0][-1]["data"]
    loss = {line.split()[0]: float(line.split()[1]) for line in said["numbers"].splitlines()[:4]}
    assert loss["circuit"] < 0.15 < 0.68 < min(loss["without_circuit"], loss["random"])
    strongest = [line.split()[1] for line in said["off"].splitlines()[1:]]
    assert "0.attn.k.35" in strongest
    assert all(node.startswith(("0.attn.act_in", "0.attn.k.35", "0.attn.v")) for node in strongest), "the five belong to one head"
    assert said["patch"].startswith("0.attn.act_in.46")
    shares = dict(re.findall(r"(\S+): (\d\.\d+)", said["attention"]))
    assert max(shares, key=lambda token: float(shares[token])) == "('"
    assert said["standards"].startswith("same circuit: True")
    markdown = "\n".join(text_of(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown")
    result = extractor.load(FOLDER / "quote_close")
    robust = result.numbers["standards"]["robust"]
    assert f"This circuit has {len(result.circuit)} nodes and {len(result.circuit.edges)} edges" in markdown
    assert f"needs {robust['edges']:,} of the model's {robust['edges_of_model']:,} edges" in " ".join(markdown.split())
    assert f"has {result.numbers['validation']['conditions']['other']['loss']:.2f} nats" in " ".join(markdown.split())


def test_links_lead_somewhere(book: dict[str, Any]):
    for cell in book["cells"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", text_of(cell["source"]) if cell["cell_type"] == "markdown" else ""):
            assert (FOLDER / link).is_file(), link
    for link in re.findall(r"\]\(([^)\s]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8")):
        assert (FOLDER / link).is_file(), link


def test_the_stored_result_is_complete_and_small(tmp_path: Path):
    result = extractor.load(FOLDER / "quote_close")
    result.verify()
    assert result.numbers["meets_target"]
    assert 10 <= len(result.circuit) <= 40
    assert read_job(FOLDER / "quote_close" / "spec.json").tasks == ("quote_close",)
    every = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in every) < MOST_BYTES
    assert not [path for path in every if path.suffix == ".py"], "modules below extractor/ are code of the package"
    shutil.copytree(FOLDER / "quote_close", tmp_path / "out")
    (tmp_path / "out" / "spec.json").write_text("{}")
    with pytest.raises(BrokenArtifact):
        extractor.load(tmp_path / "out").verify()


def test_a_text_with_another_number_or_word_is_not_similar():
    assert similar("p = 0.784 of 40", "p = 0.786 of 40")
    assert not similar("p = 0.784 of 40", "p = 0.794 of 40")
    assert not similar("p = 0.784 of 40", "p = 0.784 of 39")
    assert not similar("yes 0.1", "no 0.1")
