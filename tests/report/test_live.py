"""The circuit that runs in the page: in a real browser it computes what Python does, and follows what the reader changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_worlds import World, every_kind
from live_pages import tokens_of, written
from tokenizers import Tokenizer
from torch import Tensor
from worlds import ROOT

from extractor.circuits.graph import CircuitMask
from extractor.circuits.observed import ObservedRun, observe
from extractor.data.encoding import text_ids
from extractor.jobs import live_data as live
from extractor.models.reference import BUNDLED
from extractor.models.tokenizer import load_tokenizer

browsers = pytest.importorskip("test_browser")
sync_api = browsers.sync_api
pytestmark = browsers.pytestmark
browser = browsers.browser
EXAMPLE = json.loads((ROOT / ".github" / "example" / "result.json").read_text(encoding="utf-8"))
TEXTS = [
    "print('a b",
    "\tx = [\"é\", '…']\r\n",
    "naïve 你好 🙂 \u00a0 x",
    "  def f(a,b):\n    return 1000000",
    "",
    "<|endoftext|>a",
    "isn't'S",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(BUNDLED / "python-tiny-1")


@pytest.fixture
def opened(browser, tmp_path: Path) -> Iterator[Any]:
    """A function that opens a world's page and says nothing on its console."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(browsers.PATIENCE)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))

    def open_page(path: Path, fragment: str = ""):
        page.goto("about:blank")
        page.goto(path.as_uri() + fragment)
        return page

    yield open_page
    context.close()
    assert said == []


RUN = """([pair, edits]) => circuit.both(circuit.ids(pair), pair, edits).map(run => ({
    diff: run.diff,
    values: Object.fromEntries([...run.values].map(([node, values]) => [node, [...values]])),
    patterns: Object.fromEntries([...run.patterns].map(([head, rows]) => [head, rows.map(row => [...row])]))}))"""


def of_one_length(world: World, last: Tensor) -> World:
    """The world with other last tokens (2P,)."""
    world.batch = replace(world.batch, last=last)
    return world


@every_kind
def test_it_computes_what_python_does(kind: str, opened, tokenizer: Tokenizer, tmp_path: Path):
    """Logit difference, every node at every token and attention, with a node off, one scaled, and one with the other prompt's values."""
    world = World(kind)
    of_one_length(world, world.batch.last.view(-1, 2).amax(1).repeat_interleave(2))
    graph = world.graph(0.4, 0.5)
    page = opened(written(tmp_path, world, graph, tokenizer))
    plain = observe(graph, world.base, world.batch)
    off, scaled, other = (list(plain.values)[i] for i in (3, len(plain.values) // 2, len(plain.values) - 4))
    mean = next(node.mean for node in world.circuit(graph).nodes if node.id == off)
    swapped = plain.values[other][torch.arange(len(world.batch.ids)) ^ 1]
    changes = {off: lambda x: torch.full_like(x, mean), scaled: lambda x: -0.5 * x, other: lambda x: swapped}
    changed = observe(graph, world.base, world.batch, changes)
    assert (changed.diff - plain.diff).abs().max() > 0.005
    for wanted, edits in ((plain, {}), (changed, {off: "off", scaled: -0.5, other: "other"})):
        for pair in range(2):
            for which, found in enumerate(page.evaluate(RUN, [pair, edits])):
                assert_same_run(found, wanted, 2 * pair + which, int(world.batch.last[2 * pair]) + 1)


def assert_same_run(found: dict[str, Any], wanted: ObservedRun, row: int, end: int) -> None:
    assert found["diff"] == pytest.approx(wanted.diff[row].item(), abs=1e-4)
    assert set(found["values"]) == set(wanted.values)
    for node, values in wanted.values.items():
        assert found["values"][node] == pytest.approx(values[row, :end].tolist(), abs=1e-4), node
    assert set(found["patterns"]) == {f"{layer}.{head}" for layer, head in wanted.patterns}
    for (layer, head), pattern in wanted.patterns.items():
        for i, shares in enumerate(found["patterns"][f"{layer}.{head}"]):
            assert shares == pytest.approx(pattern[row, i, : i + 1].tolist(), abs=1e-4)


@pytest.fixture(scope="module")
def typed(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, CircuitMask, Path]:
    """A page in which prompts can be typed: a random circuit over the vocabulary of python-tiny."""
    world = World("added_positions", vocab_size=1024)
    of_one_length(world, torch.full_like(world.batch.last, 11))
    graph = world.graph(0.3, None)
    return world, graph, written(tmp_path_factory.mktemp("typed"), world, graph, tokenizer)


def test_typed_prompts_become_the_tokens_that_python_reads(opened, typed, tokenizer: Tokenizer):
    page = opened(typed[2])
    for text in TEXTS:
        wanted = text_ids(tokenizer, text)
        if 0 < len(wanted) <= 16:
            assert page.evaluate("text => circuit.encode(text)", text) == wanted, text
        else:
            message = page.evaluate("text => { try { circuit.encode(text) } catch (error) { return error.message } }", text)
            assert ("at least one token" if not wanted else "are too many: this page has positions for 16") in message


def test_a_typed_prompt_is_run_and_shown(opened, typed, tokenizer: Tokenizer):
    world, graph, path = typed
    page, text = opened(path), "for i in x"
    first = page.locator("#live textarea").first
    first.fill(text)
    ids = text_ids(tokenizer, text)
    assert page.locator(".heat thead button").count() == len(ids)
    first_row = world.batch.rows(torch.tensor([0]))
    prompt = replace(first_row, ids=torch.tensor([ids]), last=torch.tensor([len(ids) - 1]))
    run = observe(graph, world.base, prompt)
    wanted = world.circuit(graph).calibration.apply(run.diff).sigmoid().item()
    said = page.locator("#pair-answers .answer-bar").first.get_attribute("aria-label")
    assert float(said.split(" %")[0]) == pytest.approx(100 * wanted, abs=0.06)
    second = page.locator("#live textarea").last
    second.fill(text * 20)
    assert "Second prompt: " in page.locator("#live-problem").inner_text()
    assert "are too many" in page.locator("#live-problem").inner_text()
    assert [box.get_attribute("aria-invalid") for box in (first, second)] == ["false", "true"]
    assert page.locator("#pair-answers .answer-bar").first.get_attribute("aria-label") == said, "the other prompt is still run"
    second.press("Escape")
    assert second.evaluate("box => box === document.activeElement")
    page.locator("#live-undo").click()
    assert page.locator("#live-problem").is_hidden()
    assert first.input_value() == page.evaluate("circuit.typed(0, 0)")
    assert page.locator("#live-undo").is_hidden()


def test_a_node_is_switched_off_patched_and_scaled_from_its_card(opened, typed):
    world, graph, path = typed
    strongest = max(observe(graph, world.base, world.batch).values, key=lambda node: effect_of(world, graph, node))
    page = opened(path, f"#node={strongest}")
    label = lambda: page.locator("#card .answer-bar").first.get_attribute("aria-label")  # noqa: E731
    chip = page.locator(f'.picture .node[data-id="{strongest}"] rect').first
    assert chip.evaluate("box => getComputedStyle(box).strokeDasharray") == "none"
    plain, row = label(), page.locator(f'.heat tbody tr:has(th:has-text("{strongest}"))').first
    colours = row.evaluate("row => row.innerHTML")
    page.get_by_role("button", name="off", exact=True).click()
    off = label()
    assert off != plain
    page.wait_for_timeout(300)  # what is not in the window is drawn later
    assert row.evaluate("row => row.innerHTML") != colours
    assert f"{strongest} is off: it has its mean" in page.locator("#live-edits").inner_text()
    assert page.locator("#card output").inner_text() == "\u2013"
    dashes = chip.evaluate("box => getComputedStyle(box).strokeDasharray")
    assert dashes != "none"
    page.get_by_role("button", name="other prompt\u2019s value").click()
    assert label() not in (plain, off)
    page.locator("#card input[type=range]").fill("2.5")
    assert f"{strongest} is multiplied by 2.5" in page.locator("#live-edits").inner_text()
    assert page.locator("#card output").inner_text() == "2.5"
    sync_api.expect(page).to_have_url(re.compile(r"2\.5$"))
    address, scaled = page.evaluate("location.href"), label()
    page.get_by_role("button", name=f"Undo the change of {strongest}").click()
    assert label() == plain
    again = opened(path, "#" + address.partition("#")[2])
    assert again.locator("#card .answer-bar").first.get_attribute("aria-label") == scaled


def test_rows_of_a_long_table_that_are_outside_the_window_follow_a_change_too(opened, typed):
    """The page after a change shows in every row what the same page shows when it opens with that change."""
    world, graph, path = typed
    node = max(observe(graph, world.base, world.batch).values, key=lambda one: effect_of(world, graph, one))
    page = opened(path, f"#node={node}")
    page.set_viewport_size({"width": 1440, "height": 300})
    page.locator("#heat thead").evaluate("head => head.scrollIntoView()")
    shown = lambda: page.locator("#heat tbody td").evaluate_all("cells => cells.map(cell => [cell.style.background, cell.title])")  # noqa: E731
    page.wait_for_timeout(300)
    before = shown()
    page.locator("#card").get_by_role("button", name="off", exact=True).evaluate("button => button.click()")
    page.wait_for_timeout(300)
    changed = shown()
    assert sum(a != b for a, b in zip(before, changed, strict=True)) > 1
    assert page.locator("#heat tbody").bounding_box()["height"] > 300  # some rows are outside
    assert page.locator("#heat").get_by_role("row").count() == page.locator("#heat tr").count() > 10  # for screen readers it is a table
    page = opened(path, f"#node={node}&set={node}=off")
    page.wait_for_timeout(300)
    assert shown() == changed


def test_a_card_shows_the_node_in_every_pair_of_the_task(opened, typed):
    """A token's colour is its value there, whatever pair, prompt and changes the page shows."""
    world, graph, path = typed
    values = observe(graph, world.base, world.batch).values
    node = max(values, key=lambda one: float(values[one].std()))
    mean = next(one.mean for one in world.circuit(graph).nodes if one.id == node)
    page = opened(path, f"#node={node}&pair=2&set={node}%3Doff&prompt=a&prompt=b")
    page.locator("#card summary").click()
    rows = page.locator("#card details .passages code")
    sync_api.expect(rows).to_have_count(len(world.batch.ids))
    for row, last in enumerate(world.batch.last.tolist()):
        titles = rows.nth(row).locator("span").evaluate_all("spans => spans.map(span => span.title)")
        found = [float(title.split(" ")[0].replace("\u2212", "-")) for title in titles]
        assert found == pytest.approx((values[node][row, : last + 1] - mean).tolist(), abs=2e-3, rel=1e-2)


def test_a_card_names_head_partners_and_what_a_write_adds(opened, typed, tokenizer: Tokenizer, tmp_path: Path):
    world, graph, _ = typed
    names = [node.id for node in world.circuit(graph).nodes]
    query, key = (next(name for name in names if f".attn.{place}." in name) for place in ("q", "k"))
    other = next(name for name in names if ".attn.k." in name and name != key)
    write = next(name for name in names if ".resid_delta." in name)
    none = {"auc": {"difference": None, "after": None, "end": None}}
    own = {query: none | {"head": 7}, key: none | {"head": 7}, other: none | {"head": 3}, write: none | {"direct": [1.25, -0.5]}}
    result = json.loads(json.dumps(EXAMPLE))
    result["validation"]["mechanism"] = {**result["validation"]["mechanism"], "nodes": own}
    page = opened(written(tmp_path, world, graph, tokenizer, result), f"#node={query}")
    card = page.locator("#card")
    assert "head 7" in card.inner_text()
    met = card.locator('h4:has-text("Meets the keys of its head") + ul a')
    assert met.all_inner_texts() == [key]
    page.evaluate(f"location.hash = '#node={write}'")
    sync_api.expect(card.locator("dd", has_text="logits before").first).to_contain_text("+1.25 logits before")
    sync_api.expect(card.locator("dd", has_text="logits before").first).to_contain_text("0.5 before")
    page.evaluate(f"location.hash = '#node={other}'")
    sync_api.expect(card).to_contain_text("The circuit has none of them: they have their means.")


def effect_of(world: World, graph: CircuitMask, node: str) -> float:
    """The lesser of what it does to the first pair to switch the node off and to give it the other prompt's values."""
    plain = observe(graph, world.base, world.batch)
    mean = next(one.mean for one in world.circuit(graph).nodes if one.id == node)
    swapped = plain.values[node][torch.arange(len(world.batch.ids)) ^ 1]
    runs = [observe(graph, world.base, world.batch, {node: change}) for change in (lambda x: torch.full_like(x, mean), lambda x: swapped)]
    return min((plain.diff - run.diff)[:2].abs().min().item() for run in runs)


def test_prompts_of_two_lengths_have_no_values_to_exchange(opened, typed):
    world, graph, path = typed
    page = opened(path, f"#node={next(iter(observe(graph, world.base, world.batch).values))}")
    other = page.get_by_role("button", name="other prompt\u2019s value")
    assert other.is_enabled()
    page.get_by_role("button", name="other prompt\u2019s value").click()
    page.locator('[data-shown="difference"]').click()
    page.locator(".heat thead button").last.click()
    assert "differences at token 12" in page.locator("#token-note").inner_text()
    own = page.locator("#live textarea").first.input_value()
    page.locator("#live textarea").first.fill("a = b")
    assert other.is_disabled()
    assert page.locator('[data-shown="difference"]').is_disabled()
    assert "is as computed: the prompts have different numbers of tokens" in page.locator("#live-edits").inner_text()
    assert page.locator("#token-note").is_hidden()
    page.locator("#live textarea").first.fill(own)
    assert other.is_enabled()
    page.wait_for_function("!location.hash.includes('prompt=')")  # the address follows after a pause in typing


def test_a_link_restores_its_view_and_nothing_of_the_one_before(opened, typed):
    world, graph, path = typed
    nodes = list(observe(graph, world.base, world.batch).values)
    page = opened(path, f"#node={nodes[0]}&set={nodes[0]}%3Doff&set={nodes[1]}%3D7&set={nodes[2]}%3D1&prompt=a&prompt=b&shown=second")
    assert "is multiplied by 3" in page.locator("#live-edits").inner_text()
    assert page.locator("#live-edits li").count() == 2
    page.evaluate("location.hash = '#pair=2'")
    sync_api.expect(page.locator("#live-edits li")).to_have_count(0)
    assert page.locator("#pair").input_value() == "1"
    assert page.locator('[data-shown="first"]').get_attribute("aria-pressed") == "true"
    page.locator(f'.heat a:has-text("{nodes[3]}")').first.click()
    assert page.locator("#card h3").inner_text() == nodes[3]
    assert page.locator("#pair").input_value() == "1", "a link within the page leaves the rest as it is"
    page.go_back()
    sync_api.expect(page.locator("#card h3")).to_have_count(0)


def test_of_a_large_vocabulary_only_the_shown_tokens_are_in_the_page(
    opened, typed, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world, graph, _ = typed
    monkeypatch.setattr(live, "MOST_BYTES", 10_000)
    path = written(tmp_path, world, graph, tokenizer)
    page = opened(path, f"#node={next(iter(observe(graph, world.base, world.batch).values))}")
    assert page.locator("#live textarea").first.is_hidden()
    page.get_by_role("button", name="off", exact=True).click()
    assert "is off" in page.locator("#live-edits").inner_text()
    found = page.evaluate(RUN, [1, {}])[1]
    assert found["diff"] == pytest.approx(observe(graph, world.base, world.batch).diff[3].item(), abs=1e-3)
    data = live.live_data(world.compiled(graph), tokenizer, tokens_of(world, graph, tokenizer))
    assert data["tokenizer"] is None
    assert len(data["texts"]) == len(data["tokens"]) < 200


def test_tokens_of_an_older_result_have_no_circuit_in_the_page(typed, tokenizer: Tokenizer):
    world, graph, _ = typed
    tokens = tokens_of(world, graph, tokenizer)
    del tokens["ids"]
    assert live.live_data(world.compiled(graph), tokenizer, tokens) is None


@pytest.mark.slow
@pytest.mark.parametrize(("width", "colours"), [(1440, "light"), (390, "dark")])
def test_the_panel_is_accessible_and_fits(browser, typed, width: int, colours: str):
    from axe_playwright_python.sync_playwright import Axe

    world, graph, path = typed
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
    context.set_default_timeout(browsers.PATIENCE)
    page, node = context.new_page(), next(iter(observe(graph, world.base, world.batch).values))
    page.goto(path.as_uri() + f"#node={node}&set={node}%3Doff")
    found = Axe().run(page, options=browsers.NO_SKIP_LINKS)
    assert [(one["id"], [part["html"][:160] for part in one["nodes"][:2]]) for one in found.response["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()
