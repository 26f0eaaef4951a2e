"""The page that compares two circuits: of one model in one picture, of two models side by side, accessible at two widths."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_browser import BROWSER, PATIENCE, QUIET, sync_api
from worlds import ROOT

import extractor
from extractor.report.compare_page import FIRST, SECOND, SHARED, compare_page
from extractor.report.plain_page import report_address
from extractor.results.compare import compare
from worker.cli.pages import Viewer

FOLDER = ROOT / "tests" / "frozen" / "result"
RESULT = extractor.load(FOLDER)
NODES = [node.id for node in RESULT.circuit.nodes]
ADDRESSES = (lambda node: report_address("/0", RESULT.task, node), lambda node: "")


@pytest.fixture(scope="module")
def same() -> dict:
    return compare(RESULT, RESULT)


def test_nodes_and_edges_have_the_colour_of_the_circuits_that_have_them(same):
    part = RESULT.circuit
    fewer = type(part)(**{**part.__dict__, "nodes": part.nodes[:-1], "edges": part.edges[:-2]})
    text = compare_page(same, (part, fewer), ADDRESSES)
    drawn = text[text.index("<svg") : text.index("</svg>")]
    assert drawn.count(f'stroke="{SECOND}"') == 0
    edges = [line for line in drawn.split("\n") if 'class="edge' in line]
    assert sum(f'stroke="{FIRST}"' in line for line in edges) == 2
    own = [chip for chip in drawn.split('<g class="node" ')[1:] if f'stroke="{FIRST}"' in chip.partition("</g>")[0]]
    assert [chip.startswith(f'data-id="{part.nodes[-1].id}"') for chip in own] == [True]
    assert f'stroke="{SHARED}"' in drawn
    assert drawn.count('class="edge') == len(part.edges)


def test_of_two_models_both_pictures_stand_side_by_side(same):
    matched = [[NODES[0], NODES[1], 0.95, -0.91]]
    other = same | {"same_model": False, "by_name": None}
    other["by_values"] = same["by_values"] | {"matched": matched, "only": [NODES[1:], NODES[:1]]}
    text = compare_page(other, (RESULT.circuit, RESULT.circuit), ADDRESSES)
    assert text.count("<svg") == 2
    assert "1 node of each has similar values" in text
    assert "+0.95" in text
    assert "-0.91" in text
    assert f'href="/0/circuits/{RESULT.task}/report.html#node={NODES[0]}"' in text  # the second has no address
    assert "names are not compared" in text


def test_what_cannot_be_compared_is_said(same):
    other = same | {"by_name": None, "by_values": None, "why_no_values": "the models read <different> tokens"}
    text = compare_page(other, (RESULT.circuit, RESULT.circuit), ADDRESSES)
    assert "the models read &lt;different&gt; tokens" in text


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium, or name one in EXTRACT_TEST_BROWSER")
@pytest.mark.parametrize(("width", "colours"), [(1440, "dark"), (390, "light")])
def test_the_pages_are_accessible(browser, same, tmp_path, width, colours):
    from axe_playwright_python.sync_playwright import Axe

    viewer = Viewer(["first", "second"], [RESULT, RESULT])
    pages = {"start": viewer.start({}), "compare": compare_page(same, (RESULT.circuit, RESULT.circuit), ADDRESSES)}
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
    page = context.new_page()
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        page.goto((tmp_path / f"{name}.html").as_uri())
        found = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"][:160] for node in one["nodes"][:2]]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()
