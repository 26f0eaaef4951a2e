"""The page in a real browser: every interaction, at three widths, light and dark, by mouse and by keyboard, and on paper.

The browser is Debian's chromium, or what EXTRACT_TEST_BROWSER names. `.ci/run` installs it where it may.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds import ROOT

from extractor.circuits.circuit import Circuit
from extractor.report.index import write_index
from extractor.report.page import Example, write_report

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = os.environ.get("EXTRACT_TEST_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium, or name one in EXTRACT_TEST_BROWSER")

EXAMPLE = ROOT / ".github" / "example"
TOKENS = json.loads((EXAMPLE / "tokens.json").read_text(encoding="utf-8"))
NODE = "1.attn.resid_delta.12"
CLAIMS = json.loads((EXAMPLE / "result.json").read_text(encoding="utf-8"))["validation"]["mechanism"]["claims"]
QUIET = ["--no-sandbox", *(f"--disable-{what}" for what in ("gpu", "quic", "background-networking", "component-update", "sync"))]
# Text of the tables that are wider than the window.
WIDE = """[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth + 1)
    .map(t => t.className || t.textContent.slice(0, 60))"""
PATIENCE = 120_000  # milliseconds that a browser may take on a busy machine
NO_SKIP_LINKS = {"rules": {"skip-link": {"enabled": False}}}  # links to nodes open a card; their fragments name no element


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the README's example, written by this version."""
    place = tmp_path_factory.mktemp("report")
    circuit, result = (json.loads((EXAMPLE / name).read_text(encoding="utf-8")) for name in ("circuit.json", "result.json"))
    for name in ("circuit.json", "result.json"):
        shutil.copy(EXAMPLE / name, place)
    write_report(place, Circuit.from_json(circuit), result, [Example("print('x", "')", '")', 0.9, 0.8, 0.5)], tokens=TOKENS)
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: sync_api.Browser, folder: Path) -> Iterator[sync_api.Page]:
    """The open page, 1440 pixels wide. It says nothing on the console, fails nowhere, and asks for no other address."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith((folder / "report.html").as_uri()) else None)
    page.goto((folder / "report.html").as_uri())
    yield page
    context.close()
    assert said == []


def chip(page: sync_api.Page, node: str) -> sync_api.Locator:
    return page.locator(f'.picture .node[data-id="{node}"]')


def test_a_node_is_chosen_by_mouse_and_let_go(page):
    card = page.locator("#card")
    assert "Choose a node" in card.inner_text()
    chip(page, NODE).hover()
    assert NODE in card.inner_text()
    page.mouse.move(1, 1)
    assert "Choose a node" in card.inner_text()
    chip(page, NODE).click()
    text = card.inner_text()
    assert "AUC at the last token\n1.00, higher before" in text
    (flipped,) = (claim["flipped"] for claim in CLAIMS if claim["kind"] == "node" and claim["nodes"] == [NODE])
    assert f"flips {100 * flipped:.1f} %" in text
    assert "In ordinary text" in text
    assert page.locator("#card > .passages li").count() == 7
    assert page.locator(".picture path.lit").count() > 0
    assert page.evaluate("location.href").endswith(f"#node={NODE}")
    page.keyboard.press("Escape")
    assert "Choose a node" in card.inner_text()
    assert page.locator(".picture path.lit").count() == 0


def test_every_link_to_a_node_opens_its_card(page):
    title, first = page.locator("#card h3"), page.locator(".story a").first
    first.click()
    sync_api.expect(title).to_have_text(first.inner_text())
    other = page.locator("#card .joined a").first
    name = other.inner_text()
    other.click()
    sync_api.expect(title).to_have_text(name)
    assert page.locator(f'.heat tr.chosen th:has-text("{name}")').count() == 1


def test_an_address_opens_the_same_view(page, folder):
    page.goto("about:blank")
    page.goto((folder / "report.html").as_uri() + f"#node={NODE}&pair=3&shown=difference&token=2")
    assert page.locator("#card h3").inner_text() == NODE
    assert page.locator("#pair").input_value() == "2"
    assert page.locator('[data-shown="difference"]').get_attribute("aria-pressed") == "true"
    assert page.locator('.heat thead button[aria-pressed="true"]').get_attribute("data-token") == "1"
    page.goto("about:blank")
    page.goto((folder / "report.html").as_uri() + "#node=<b>&pair=99&shown=x&token=-1")
    assert "Choose a node" in page.locator("#card").inner_text()
    assert page.locator("#pair").input_value() == "0"


def test_a_token_that_the_prompts_do_not_have_is_left_out(page, folder):
    page.goto("about:blank")
    page.goto((folder / "report.html").as_uri() + "#pair=2&token=9999")
    assert page.locator("#pair").input_value() == "1"
    assert page.locator("#token-note").is_hidden()


def test_back_leaves_what_a_link_chose(page, folder):
    page.locator(".story a").first.click()
    page.locator("#card h3").wait_for()
    page.go_back()
    page.locator("#card h3").wait_for(state="detached")
    assert "#" not in page.evaluate("location.href")


def test_the_token_view_shows_the_values_of_the_chosen_pair(page):
    page.locator("#pair").select_option("1")
    pair, own = TOKENS["pairs"][1], TOKENS["nodes"][NODE]
    page.locator('[data-shown="second"]').click()
    heads = page.locator(".heat thead button").all_inner_texts()
    assert len(heads) == len(pair["tokens"][1])
    row = page.locator(f'.heat tbody tr:has(th:has-text("{NODE}"))').first
    shown = [float(title.replace("+", "")) for title in row.locator("td").evaluate_all("cells => cells.map(cell => cell.title)")]
    assert shown == pytest.approx([step / 127 * own["scale"] for step in own["values"][1][1]], rel=0.01, abs=1e-6)
    page.locator('[data-shown="difference"]').click()
    differs = next(i for i, (a, b) in enumerate(zip(*pair["tokens"], strict=True)) if a != b)
    assert page.locator(".heat thead button.differs").count() == sum(a != b for a, b in zip(*pair["tokens"], strict=True))
    titles = row.locator("td").evaluate_all("cells => cells.map(cell => cell.title)")
    assert set(titles[:differs]) <= {"0"}
    assert titles[-1] != "0"


def test_a_token_colours_the_picture(page):
    box = chip(page, NODE).locator("rect").first
    plain = box.evaluate("box => getComputedStyle(box).fill")
    page.locator(".heat thead button").last.click()
    assert box.evaluate("box => getComputedStyle(box).fill") != plain
    assert "values at token" in page.locator("#token-note").inner_text()
    page.locator(".heat thead button").last.click()
    assert box.evaluate("box => getComputedStyle(box).fill") == plain


def hover_until(target, shown, count):
    """Points at a target again until what it shows is there: parts of the page that are drawn late move it from under the pointer."""
    for _ in range(20):
        target.hover()
        if shown.count() == count:
            break
        target.page.wait_for_timeout(100)
    sync_api.expect(shown).to_have_count(count)


def test_attention_lights_up_the_tokens_that_are_read(page):
    figures = page.locator("#attention figure")
    assert figures.count() == len(TOKENS["heads"])
    rows = figures.first.locator("svg g")
    assert rows.count() == len(TOKENS["pairs"][0]["tokens"][0])
    hover_until(rows.nth(2), figures.first.locator(".reads code"), 3)
    head = next(iter(TOKENS["heads"]))
    opacity = figures.first.locator("svg g").last.locator("rect").first.evaluate("box => box.style.fill")
    step = TOKENS["heads"][head][0][0][-1][0]
    most = max(share for row in TOKENS["heads"][head][0][0] for share in row)  # the darkest cell
    assert float(opacity.rstrip(")").split("/")[1]) == pytest.approx(0.06 + 0.94 * step / most, abs=2e-3)
    assert f"The darkest cell is {100 * most / 255:.1f}".removesuffix(".0") in figures.first.inner_text()


def test_by_keyboard_alone(page):
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('node')"):
            break
    first = page.locator("#card h3").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator("#card h3").inner_text()
    assert first != second
    page.keyboard.press("ArrowLeft")
    assert page.locator("#card h3").inner_text() == first
    page.keyboard.press("Escape")
    assert "Choose a node" in page.locator("#card").inner_text()
    top = page.evaluate("scrollY")
    for key in ("Enter", " "):  # a button: both open and close it
        page.keyboard.press(key)
        assert page.locator("#card h3").inner_text() == first
        page.keyboard.press(key)
        assert "Choose a node" in page.locator("#card").inner_text()
    assert page.evaluate("scrollY") == top


def test_the_picture_grows_shrinks_and_fits(page):
    width = lambda: page.locator(".picture svg").evaluate("svg => svg.getBoundingClientRect().width")  # noqa: E731
    usual = width()
    page.locator('[data-zoom="larger"]').click()
    assert width() > usual
    page.locator('[data-zoom="fit"]').click()
    assert page.locator(".picture svg").evaluate("svg => svg.getBoundingClientRect().height") <= 900
    page.locator('[data-zoom="width"]').click()
    assert width() == usual


def test_nodes_and_edges_are_painted_by_what_they_do(page):
    nodes = json.loads((EXAMPLE / "result.json").read_text(encoding="utf-8"))["validation"]["mechanism"]["nodes"]
    fill = lambda node: chip(page, node).locator("rect").first.evaluate("box => box.style.fill")  # noqa: E731
    by_removal = fill(NODE)
    assert by_removal.startswith("rgb(var(--")
    assert "without this node" in page.locator("#paint-note").inner_text()
    page.locator("#fill").select_option("auc")
    best = max((auc for auc in nodes[NODE]["auc"].values() if auc is not None), key=lambda auc: abs(auc - 0.5))
    assert fill(NODE).startswith(f"rgb(var({'--above' if best > 0.5 else '--below'})")
    assert "AUC" in page.locator("#paint-note").inner_text()
    page.locator("#fill").select_option("removed")
    most = max(nodes, key=lambda node: nodes[node].get("without", 0))
    assert fill(most) == "rgb(var(--above) / 0.500)"
    width = "path => getComputedStyle(path).strokeWidth"
    edge = page.locator(f'.picture path.edge[data-target="{NODE}"]').first
    plain = edge.evaluate(width)
    page.locator("#wires").select_option("removed")
    assert edge.evaluate(width) != plain
    page.locator("#wires").select_option("weight")
    page.locator("#fill").select_option("value")
    assert edge.evaluate(width) == plain
    assert fill(NODE) == by_removal


def test_the_painted_picture_is_saved(page, tmp_path: Path):
    page.locator("#fill").select_option("auc")
    for kind, begins in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with page.expect_download() as started:
            page.locator(f'[data-save="{kind}"]').click()
        place = tmp_path / f"circuit.{kind}"
        started.value.save_as(place)
        assert place.read_bytes().startswith(begins)
        assert started.value.suggested_filename == place.name
    text = (tmp_path / "circuit.svg").read_text(encoding="utf-8")
    assert "var(--" not in text
    assert NODE in text


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_is_inaccessible_or_cut_at_any_width(browser, folder, width, colours):
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto((folder / "report.html").as_uri() + f"#node={NODE}")
    found = Axe().run(page, options=NO_SKIP_LINKS)
    assert [(one["id"], [node["html"][:160] for node in one["nodes"][:2]]) for one in found.response["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()


@pytest.mark.parametrize(("width", "colours"), [(1440, "light"), (390, "dark")])
def test_the_page_of_all_tasks_is_accessible_and_its_links_open_reports(browser, folder, tmp_path, width, colours):
    from axe_playwright_python.sync_playwright import Axe

    row = {"task": "quote_close", "nodes": 31, "edges": 43, "loss": 0.1, "full_loss": 0.01, "accuracy": 0.9, "without": 0.6, "random": 0.69}
    rows = [row | {"meets_target": True}, dict.fromkeys(row) | {"task": "a < b", "meets_target": False, "why": "it cannot be asked"}]
    shutil.copytree(folder, tmp_path / "circuits" / "quote_close")
    write_index(tmp_path, rows, {"model": "m", "target_loss": 0.15, "seed": 0}, {})
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    assert Axe().run(page).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.get_by_role("link", name="quote_close").click()
    assert "Circuit report" in page.locator(".eyebrow").inner_text()
    context.close()


def test_on_paper_nothing_is_cut(page):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 794, "height": 1123})
    assert page.locator(".picture svg").evaluate("svg => svg.getBoundingClientRect().right") <= 794
    assert page.evaluate(WIDE) == []
    assert len(page.pdf(format="A4")) > 10_000
