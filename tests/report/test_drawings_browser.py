"""Circuits that can be chosen in the page, the core of a large one, and notes, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_browser import BROWSER, EXAMPLE, NO_SKIP_LINKS, NODE, PATIENCE, QUIET, TOKENS, sync_api

from extractor.circuits.circuit import Circuit, Edge, Node
from extractor.report import drawings
from extractor.report.drawings import CORE
from extractor.report.page import write_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium, or name one in EXTRACT_TEST_BROWSER")

CIRCUIT = Circuit.from_json(json.loads((EXAMPLE / "circuit.json").read_text(encoding="utf-8")))
RESULT = json.loads((EXAMPLE / "result.json").read_text(encoding="utf-8"))
IDS = [node.id for node in CIRCUIT.nodes]
EDGES = [[edge.source, edge.target, edge.weight] for edge in CIRCUIT.edges]
ADDED = "0.mlp.act_in.9"


def other(nodes: list[str], edges: list, **facts) -> dict:
    usual = {"standard": "paper", "target": 0.05, "seed": 0, "loss": 0.01, "met": True, "positions": []}
    return usual | {"size": [len(nodes), len(edges)], "nodes": nodes, "edges": edges} | facts


def others() -> list[dict]:
    """A larger circuit, a smaller one without NODE, another seed's, and one that is too large."""
    target = next(name for name in IDS if ".mlp.post_act." in name)
    fewer = [name for name in IDS if name != NODE]
    return [
        other([*IDS, ADDED], [*EDGES, [ADDED, target, 0.5]]),
        other(fewer, [edge for edge in EDGES if NODE not in edge], target=0.3, loss=0.4, met=False),
        other(IDS, EDGES, seed=1, target=0.15),
        other([], [], standard="robust", target=0.15, size=[1342, 15143]) | {"nodes": None, "edges": None},
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    write_report(place, CIRCUIT, RESULT, [], tokens=TOKENS, others=others())
    return place


@pytest.fixture
def page(browser: sync_api.Browser, folder: Path) -> Iterator[sync_api.Page]:
    """The open page; it says nothing on the console."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((folder / "report.html").as_uri())
    yield page
    context.close()
    assert said == []


def chip(page: sync_api.Page, node: str) -> sync_api.Locator:
    return page.locator(f'.picture .node[data-id="{node}"]')


def classes(locator: sync_api.Locator) -> set[str]:
    return set(locator.evaluate("shape => [...shape.classList]"))


def choose(page: sync_api.Page, label: str) -> None:
    page.locator("#drawings").get_by_role("button", name=label, exact=True).click()


def test_a_larger_circuit_outlines_what_it_adds(page):
    assert page.locator("#drawings button").all_inner_texts() == [
        *("paper, 0.15 nats", "paper, 0.05 nats", "paper, 0.3 nats", "seed 1", "robust, 0.15 nats")
    ]
    assert chip(page, ADDED).count() == 0
    choose(page, "paper, 0.05 nats")
    assert "added" in classes(chip(page, ADDED))
    assert page.locator(".picture path.edge.added").count() == 1
    assert not classes(chip(page, NODE)) & {"added", "left", "absent"}
    note = page.locator("#drawing-note").inner_text()
    assert "Not in the circuit of this page: 1 node and 1 edge (dashed)" in note
    assert "0.010 nats on held-out pairs by the paper\u2019s standard, meets 0.05" in note
    choose(page, "paper, 0.15 nats")
    assert chip(page, ADDED).count() == 0
    assert page.locator("#drawing-note").is_hidden()


def test_a_smaller_circuit_fades_what_it_lacks_and_hides_what_only_others_have(page):
    choose(page, "paper, 0.3 nats")
    assert "left" in classes(chip(page, NODE))
    assert page.locator(".picture path.edge.left").count() == sum(NODE in edge for edge in EDGES)
    assert chip(page, ADDED).is_hidden()
    assert "does not meet 0.3" in page.locator("#drawing-note").inner_text()
    chip(page, NODE).click()  # a node of the page's circuit keeps its card
    assert page.locator("#card h3").inner_text() == NODE
    choose(page, "seed 1")
    assert "left" not in classes(chip(page, NODE))


def test_a_circuit_that_is_too_large_is_named(page):
    assert not page.locator("#drawings button", has_text="robust, 0.15 nats").is_visible()
    note = page.locator(".undrawn").inner_text()
    assert "robust, 0.15 nats: 1,342 nodes, 15,143 edges" in note
    assert "Too large to be drawn" in note
    assert chip(page, ADDED).count() == 0


def test_the_address_keeps_the_chosen_circuit(page, folder):
    choose(page, "paper, 0.3 nats")
    address = page.evaluate("location.href")
    assert address.endswith("#circuit=3")
    page.goto("about:blank")
    page.goto(address)
    assert "left" in classes(chip(page, NODE))
    page.goto("about:blank")
    page.goto((folder / "report.html").as_uri() + "#circuit=9")
    assert page.locator('#drawings [aria-pressed="true"]').inner_text() == "paper, 0.15 nats"


def test_the_drawn_circuit_is_saved(page, tmp_path: Path):
    choose(page, "paper, 0.3 nats")
    with page.expect_download() as started:
        page.locator('[data-save="svg"]').click()
    started.value.save_as(tmp_path / "circuit.svg")
    text = (tmp_path / "circuit.svg").read_text(encoding="utf-8")
    assert text.count('visibility="hidden"') >= 1
    assert 'opacity="0.18"' in text[text.index(f'data-id="{NODE}"') :].partition(">")[0]


def test_the_address_keeps_how_the_picture_is_painted(page, folder):
    page.locator("#fill").select_option("auc")
    page.locator("#wires").select_option("removed")
    address = page.evaluate("location.href")
    assert address.endswith("#fill=auc&wires=removed")
    page.goto("about:blank")
    page.goto(address)
    assert (page.locator("#fill").input_value(), page.locator("#wires").input_value()) == ("auc", "removed")
    assert "AUC" in page.locator("#paint-note").inner_text()
    page.goto("about:blank")
    page.goto((folder / "report.html").as_uri() + "#fill=x&wires=y")
    assert (page.locator("#fill").input_value(), page.locator("#wires").input_value()) == ("value", "weight")


def test_closing_a_card_by_keyboard_keeps_the_place(page):
    chip(page, NODE).click()
    page.get_by_label("Close the card").focus()
    page.keyboard.press("Enter")
    assert page.locator("#card h3").count() == 0
    assert page.evaluate("document.activeElement.className") == "picture"


def test_the_picture_is_dark_where_the_page_is(browser, folder):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto((folder / "report.html").as_uri())
    light = r"""[...document.querySelectorAll('.picture rect')].map(box => getComputedStyle(box).fill)
        .filter(fill => fill.match(/\d+/g).slice(0, 3).every(part => part > 128))"""
    assert page.evaluate(light) == []
    dark = light.replace("rect", "text").replace("> 128", "< 128")
    assert page.evaluate(dark) == []
    context.close()


@pytest.mark.parametrize("plain_bytes", [0, 10**9])
def test_a_large_circuit_begins_with_its_core(browser, tmp_path, monkeypatch, plain_bytes):
    """Its complete picture is kept as it is, or compressed: it shows the same."""
    monkeypatch.setattr(drawings, "PLAIN_BYTES", plain_bytes)
    nodes = [Node(f"0.mlp.act_in.{i}", "0.mlp.act_in", i, 0.0) for i in range(100)]
    nodes += [Node(f"0.mlp.post_act.{i}", "0.mlp.post_act", i, 0.0) for i in range(100)]
    edges = [Edge(f"0.mlp.act_in.{i}", f"0.mlp.post_act.{i}", 0.001 + i / 100) for i in range(100)]
    circuit = replace(CIRCUIT, nodes=tuple(nodes), edges=tuple(edges))
    validation = {
        name: part for name, part in RESULT["validation"].items() if name not in ("mechanism", "roles", "activations", "edge_effects")
    }
    write_report(tmp_path, circuit, RESULT | {"validation": validation}, [])
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    shown = {name.rsplit(".", 1)[1] for name in page.locator(".picture .node").evaluate_all("all => all.map(one => one.dataset.id)")}
    assert shown == {str(i) for i in range(70, 100)}  # both ends of the heaviest edges
    assert page.locator("#drawings button").all_inner_texts() == [f"core: {CORE} nodes", "all 200 nodes"]
    choose(page, "all 200 nodes")
    sync_api.expect(page.locator(".picture .node")).to_have_count(200)
    assert ("gzip" in (tmp_path / "report.html").read_text(encoding="utf-8").partition("<script>")[2].partition("drawings")[2][:40]) == (
        not plain_bytes
    )
    page.goto("about:blank")
    page.goto((tmp_path / "report.html").as_uri() + "#circuit=2&node=0.mlp.act_in.3")
    sync_api.expect(page.locator('.picture .chosen[data-id="0.mlp.act_in.3"]')).to_be_visible()
    page.close()


def write_note(page: sync_api.Page, node: str, text: str, group: str) -> None:
    if page.locator("#card h3").count() == 0 or page.locator("#card h3").inner_text() != node:
        chip(page, node).click()
    page.get_by_label("Note", exact=True).fill(text)
    page.get_by_label("Group").fill(group)


def test_notes_are_kept_and_travel_with_the_saved_page(browser, page, tmp_path):
    hostile = '"><img src=x onerror="console.log(1)"> & $& </script><b>'
    assert page.locator("#save-notes").is_disabled()
    write_note(page, NODE, hostile, "writer")
    first = IDS[0]
    write_note(page, first, "", "reader")
    assert {"grouped", "noted"} <= classes(chip(page, NODE))
    colour = lambda node: chip(page, node).locator("rect").first.evaluate("box => getComputedStyle(box).stroke")  # noqa: E731
    assert colour(NODE) != colour(first)
    assert page.locator("#note-list li").all_inner_texts() == [f"{first} reader", f"{NODE} writer {hostile}"]
    page.reload()
    assert page.locator("#note-list li").count() == 2  # the browser has kept them
    with page.expect_download() as started:
        page.locator("#save-notes").click()
    saved = tmp_path / started.value.suggested_filename
    started.value.save_as(saved)
    assert saved.read_text(encoding="utf-8").count("<script") == 1
    context = browser.new_context()
    fresh, said = context.new_page(), []
    fresh.on("console", lambda message: said.append(message.text))
    fresh.on("pageerror", lambda error: said.append(str(error)))
    fresh.goto(saved.as_uri())
    assert fresh.locator("#note-list li").all_inner_texts() == [f"{first} reader", f"{NODE} writer {hostile}"]
    assert fresh.locator("#card h3").count() == 0  # nothing is chosen in it: it is the page as it was loaded
    chip(fresh, NODE).click()
    assert fresh.get_by_label("Note", exact=True).input_value() == hostile
    assert said == []
    context.close()


def test_notes_of_other_circuits_and_broken_ones_are_left_out(page):
    write_note(page, NODE, "mine", "")
    key = page.evaluate("Object.keys(localStorage)")[0]
    page.evaluate('([key]) => localStorage.setItem(key, \'{"9.x.1": {"text": "stray"}, "' + NODE + "\": 5}')", [key])
    page.reload()
    assert page.locator("#note-list li").count() == 0
    page.evaluate("([key]) => localStorage.setItem(key, 'no JSON')", [key])
    page.reload()
    assert page.locator(".picture .node").count() == len(IDS)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "colours"), [(1440, "dark"), (390, "light")])
def test_the_new_parts_are_accessible(browser, folder, width, colours):
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
    page = context.new_page()
    page.goto((folder / "report.html").as_uri() + f"#node={NODE}&circuit=2")
    page.get_by_label("Note", exact=True).fill("a note")
    page.get_by_label("Group").fill("group")
    assert page.locator("#card").is_visible()
    found = Axe().run(page, options=NO_SKIP_LINKS)
    assert [(one["id"], [node["html"][:160] for node in one["nodes"][:2]]) for one in found.response["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()
