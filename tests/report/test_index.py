"""The page of a job of several tasks: a row for each, the harsh figures beside the others."""

import re

from extractor.report.index import index_page

NUMBERS = ("nodes", "edges", "loss", "full_loss", "accuracy", "without", "random", "standard", "agreement")
MADE = dict(zip(NUMBERS, (1200, 4300, 0.117, 0.016, 0.96, 0.68, 0.69, "paper", 0.95), strict=True))
VALIDATION = {
    "conditions": {"mean": {"loss": 0.5}, "other": {"loss": 4.248}},
    "removed": {"nothing": 0.0003, "edges": 0.0945},
    "shifted": {"accuracy": {"full": 0.97, "circuit": 0.449}},
    "mechanism": {"holds": True},
}
BRIDGE = {"bigram_loss": 3.0, "explained": {"source": "stdlib", "mean": 0.839, "worst": 0.748}}


def made(task: str, **changes) -> dict:
    return MADE | {"task": task, "meets_target": True, "holds_for_dense": True, "why": None} | changes


def refused(task: str, why: str) -> dict:
    return dict.fromkeys(NUMBERS) | {"task": task, "meets_target": False, "holds_for_dense": None, "why": why}


def page_of(rows: list[dict], results: dict | None = None, bridge: dict | None = None) -> str:
    return index_page(rows, {"model": "/home/someone/my-model", "target_loss": 0.15, "seed": 3, "bridge": bridge}, results or {})


def cells(page: str) -> list[list[str]]:
    """The text of each row of the table."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def test_a_row_has_the_tasks_numbers_and_the_harshest_of_its_circuit():
    head, row = cells(page_of([made("quote_close")], {"quote_close": {"validation": VALIDATION}}))
    found = dict(zip(head, row, strict=True))
    assert found == {
        "task": "quote_close",
        "verdict": "meets the target",
        "standard": "paper",
        "nodes": "1,200",
        "edges": "4,300",
        "circuit alone": "",
        "nats": "0.117",
        "worst ablation": "4.248",
        "full model": "0.016",
        "without": "0.680",
        "edges cut": "0.095",
        "random": "0.690",
        "right on shifted, and full model": "44.9&nbsp;% / 97&nbsp;%",
        "as dense": "95&nbsp;%",
        "story": "holds",
    }


def test_the_headline_counts_circuits_that_meet_the_target_and_those_that_do_without_calibration():
    rows = [made("a"), made("b"), made("c", holds_for_dense=False), refused("d", "it cannot be asked")]
    holds = {"validation": {"conditions": {"mean": {"loss": 0.05}, "other": {"loss": 0.149}}}}
    page = page_of(rows, {"a": {"validation": VALIDATION}, "b": holds}, BRIDGE)
    met = "2 of 4 tasks in my-model&rsquo;s sparse model have a circuit that meets 0.150 nats"
    assert f"<h1>{met}; 1 of these does so without calibration under all 5 ablations.</h1>" in page
    assert "explains 83.9&nbsp;% of the dense model&rsquo;s predictions beyond bigrams on stdlib, 74.8&nbsp;% at the worst crossing" in page
    assert [row[1] for row in cells(page)[1:]] == ["meets the target", "meets the target", "not the dense model&rsquo;s", "no circuit"]
    assert "none of these does so without calibration" in page_of([made("a")], {"a": {"validation": VALIDATION}})
    assert f"<h1>{met}.</h1>" in page_of(rows, {"b": holds}, BRIDGE), "what was not measured is not counted"


def test_a_task_without_a_circuit_has_a_reason_and_no_link():
    page = page_of([made("a/b <i>"), refused("d & e", "it <cannot> be asked.")])
    assert re.findall(r'href="([^"]+)"', page) == ["circuits/a%2Fb%20%3Ci%3E/report.html"]
    assert "a/b &lt;i&gt;</a>" in page
    assert "<b>d &amp; e</b>: it &lt;cannot&gt; be asked." in page
    assert "<script" not in page


def test_without_a_dense_model_nothing_is_compared_with_one():
    rows = [made("a", agreement=None, holds_for_dense=None)]
    assert "as dense" not in cells(page_of(rows))[0]
    assert "dense" not in page_of(rows).split("</style>")[1]
