"""A task that the dense model does not do, in a batch: no circuit, or a circuit of the sparse model only, and both are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from worker.batches import results
from worker.batches.page import headline, page
from worker.cli.views.batch import show_summary

WHY = "the dense model does not do this task: 0.978 nats on held-out prompts, 63.5% right"
EMPTY = dict.fromkeys((*results.NUMBERS, *results.VERDICT, "report", "error")) | {"job": "j", "state": "succeeded"}
REFUSED = EMPTY | {"meets_target": False, "holds_for_dense": False, "why": WHY}
FOUND = EMPTY | {"nodes": 12, "edges": 43, "loss": 0.1, "meets_target": True}


def summary_of(**cells: dict[str, Any]) -> dict[str, Any]:
    model = {"model": "m", "reference": "m", "parameters": 5, "left_out": {}, "tasks": cells}
    facts = {"batch": "b", "state": "succeeded", "asked": {}, "counts": {"succeeded": len(cells)}, "refused": []}
    return facts | {"tasks": [*cells], "models": [model]}


def test_a_strict_jobs_result_has_no_numbers_but_its_verdict(tmp_path: Path):
    row = dict.fromkeys(results.NUMBERS) | {"task": "t", "meets_target": False, "holds_for_dense": False, "why": WHY}
    (tmp_path / "tasks.json").write_text(json.dumps([row]))
    assert results._numbers(tmp_path) == {"meets_target": False, "holds_for_dense": False, "why": WHY}


@pytest.mark.parametrize("foreign", [REFUSED, FOUND | {"holds_for_dense": False, "why": WHY}], ids=["refused", "found"])
def test_page_and_table_say_that_it_is_not_the_dense_models(foreign: dict[str, Any], capsys: pytest.CaptureFixture):
    summary = summary_of(brackets=foreign, quotes=FOUND | {"holds_for_dense": True})
    text = page(summary)
    assert text.count(WHY) >= 2, "as the cell's hint and in the list below the table"
    assert "Tasks that the dense model does not do" in text
    assert headline(summary).startswith(f"1 of {1 + (foreign['edges'] is not None)} circuits in 1 model meet")
    show_summary(summary, "out")
    shown = capsys.readouterr()
    assert "not the dense model's" in shown.out
    assert f"m, brackets: {WHY}" in shown.out + shown.err


def test_a_batch_that_has_ended_without_a_circuit_does_not_say_yet():
    assert headline(summary_of(brackets=REFUSED)) == "No circuit found in 1 model."
    assert headline(summary_of(brackets=REFUSED | {"state": "running"})) == "No circuit found yet in 1 model."


def test_results_of_earlier_versions_say_nothing_of_it(capsys: pytest.CaptureFixture):
    summary = summary_of(quotes={name: value for name, value in FOUND.items() if name != "holds_for_dense"})
    assert "does not do" not in page(summary)
    show_summary(summary, "out")
    assert "not the dense" not in capsys.readouterr().out
