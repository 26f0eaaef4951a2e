"""What the page must not get wrong: what belongs to which circuit, saved pictures and notes, links, unlike prompts, the way to a node."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_browser import BROWSER, NODE, TOKENS, hover_until, sync_api
from test_drawings_browser import ADDED, CIRCUIT, EDGES, IDS, browser, chip, choose, classes, folder, page

from extractor.report.picture import residual_streams

__all__ = ["browser", "folder", "page"]  # fixtures
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium, or name one in EXTRACT_TEST_BROWSER")
KEY = next(node for node in IDS if ".attn.k." in node)


def saved_picture(page: sync_api.Page, place: Path) -> str:
    with page.expect_download() as started:
        page.locator('[data-save="svg"]').click()
    started.value.save_as(place)
    return place.read_text(encoding="utf-8")


def card(page: sync_api.Page) -> str:
    return page.locator("#card").inner_text()


def test_a_saved_picture_shows_no_text_of_nodes_that_are_not_drawn(page, tmp_path: Path):
    choose(page, "paper, 0.3 nats")
    text = saved_picture(page, tmp_path / "circuit.svg")
    group = re.search(rf'<g [^>]*data-id="{re.escape(ADDED)}".*?</g>', text, flags=re.S)[0]
    assert group.count("<text") >= 1
    assert group.count('visibility="hidden"') == 1 + group.count("<text") + group.count("<rect")


def test_a_saved_picture_fades_what_the_page_fades(page, tmp_path: Path):
    chip(page, IDS[0]).click()
    page.wait_for_timeout(400)  # the fading takes an eighth of a second
    text = saved_picture(page, tmp_path / "circuit.svg")
    faded = page.locator(".picture path.edge:not(.lit, .path)").count()
    assert faded
    assert text.count('stroke-opacity="0.07"') >= faded


def test_a_node_of_another_circuit_has_a_card_of_its_own(page):
    choose(page, "paper, 0.05 nats")
    chip(page, ADDED).click()
    assert page.locator("#card h3").inner_text() == ADDED
    assert "Not in the circuit of this page" in card(page)
    assert "in: paper, 0.05 nats." in card(page)
    assert "To 1 node" in card(page)
    assert "mean" not in card(page)  # this file was written without it
    assert page.locator("#card .switches").count() == 0
    page.locator("#card a.id").first.click()
    assert "those of the circuit of this page (paper, 0.15 nats)" in card(page)
    choose(page, "paper, 0.15 nats")
    assert "those of the circuit of this page" not in card(page)


def test_what_lies_before_and_after_is_that_of_the_drawn_circuit(page):
    """Without NODE nothing that came only through it stays clear, and what is faded is on no way."""
    choose(page, "paper, 0.3 nats")
    source = next(a for a, b, _ in EDGES if b == NODE)
    chip(page, source).click()
    assert "path" not in classes(chip(page, NODE))
    assert page.locator(".picture .left.path, .picture .absent.path, .picture .left.lit").count() == 0


def test_queries_and_keys_come_before_what_their_head_writes_and_before_no_value(page):
    value = next(node for node in IDS if ".attn.v." in node)
    chip(page, value).click()
    assert not classes(chip(page, KEY)) & {"lit", "path"}
    chip(page, NODE).click()
    assert classes(chip(page, KEY)) & {"path"}


def test_a_node_that_the_drawn_circuit_lacks_has_one_drawn_that_has_it(page, folder):
    page.goto("about:blank")
    page.goto((folder / "report.html").as_uri() + f"#node={ADDED}")
    assert page.locator("#card h3").inner_text() == ADDED
    assert page.locator('#drawings [aria-pressed="true"]').inner_text() == "paper, 0.05 nats"
    choose(page, "paper, 0.15 nats")  # the card stays; nothing is faded for a node that is not there
    assert page.locator(".picture .focused").count() == 0


def test_every_drawn_circuit_is_reached_by_tab_and_names_itself(page):
    for label in ("paper, 0.05 nats", "paper, 0.3 nats", "seed 1"):
        choose(page, label)
        stops = page.locator('.picture .node[tabindex="0"]')
        assert stops.count() == 1
        assert stops.is_visible()
        assert page.locator(".picture svg > text", has_text=f"edges; {label}").count() == 1


def test_the_legend_says_what_widths_mean(page):
    legend = page.locator(".picture svg > text", has_text="the wider, the")
    weight = legend.inner_html()
    page.locator("#wires").select_option("removed")
    assert legend.inner_html() == "the wider, the more the loss rises without it"
    page.locator("#wires").select_option("weight")
    assert legend.inner_html() == weight


def test_a_link_to_a_section_keeps_the_address_and_opens_what_is_closed(page):
    chip(page, NODE).click()
    address = page.evaluate("location.href")
    page.locator(".contents a", has_text="All nodes").click()
    assert page.evaluate("location.href") == address
    assert page.locator("section[aria-labelledby='nodes'] details").evaluate("one => one.open")


def test_back_returns_to_the_place_and_a_link_to_the_chosen_node_makes_no_entry(page):
    chip(page, KEY).click()
    before = page.evaluate("history.length")
    link = page.locator(f'section[aria-labelledby="edges"] a[href="#node={NODE}"]').first
    link.click()
    link.click()
    assert page.evaluate("history.length") == before + 1


def test_edges_that_were_not_measured_are_dotted_where_edges_show_what_they_do(page):
    choose(page, "paper, 0.05 nats")
    page.locator("#wires").select_option("removed")
    added = page.locator(f'.picture path.edge[data-source="{ADDED}"]')
    assert added.evaluate("path => getComputedStyle(path).strokeDasharray") == "1px, 4px"
    assert "dotted: not measured" in page.locator("#paint-note").inner_text()
    page.locator("#wires").select_option("weight")
    assert added.evaluate("path => path.style.strokeDasharray") == ""


def test_the_note_on_a_token_says_whose_values_are_shown(page):
    choose(page, "paper, 0.3 nats")
    page.locator(".heat thead button").last.click()
    assert "in the circuit of this page" in page.locator("#token-note").inner_text()


def test_two_windows_keep_each_others_notes(browser, page, folder):
    other = page.context.new_page()
    other.goto(page.url)
    for window, node in ((page, NODE), (other, KEY)):
        chip(window, node).click()
        window.get_by_label("Note", exact=True).fill(f"of {node}")
    for window in (page, other):
        sync_api.expect(window.locator("#note-list li")).to_have_count(2)
    other.close()


def test_a_field_shows_what_another_window_has_written(page):
    other = page.context.new_page()
    other.goto(page.url)
    for window in (page, other):
        chip(window, NODE).click()
    other.bring_to_front()
    other.get_by_label("Note", exact=True).fill("from the other")
    sync_api.expect(page.get_by_label("Note", exact=True)).to_have_value("from the other")
    other.close()


def test_a_saved_page_shows_its_own_notes_where_the_browser_has_others(page, tmp_path: Path):
    chip(page, NODE).click()
    page.get_by_label("Note", exact=True).fill("theirs > mine")
    with page.expect_download() as started:
        page.locator("#save-notes").click()
    saved = tmp_path / "report-with-notes.html"
    started.value.save_as(saved)
    page.get_by_label("Note", exact=True).fill("mine")
    window = page.context.new_page()
    window.goto(saved.as_uri())
    assert "theirs > mine" in window.locator("#note-list").inner_text()
    assert "data-notes" not in window.locator("main").inner_text()
    window.close()


def test_what_lies_before_and_after_a_node_stays_clear(page):
    chip(page, NODE).click()
    before, waiting = {NODE}, [NODE]
    joined = [(a, b) for a, b, _ in EDGES] + [(s.source.id, s.target.id) for s in residual_streams(CIRCUIT.nodes) if s.source and s.target]
    while waiting:
        one = waiting.pop()
        found = {a for a, b in joined if b == one} - before
        before |= found
        waiting += found
    assert len(before) > 2
    for node in before - {NODE}:
        assert classes(chip(page, node)) & {"lit", "path"}, node
    page.keyboard.press("Escape")
    assert page.locator(".picture .path").count() == 0


def test_a_card_names_what_the_residual_stream_joins(page):
    stream = next(one for one in residual_streams(CIRCUIT.nodes) if one.source and one.target)
    chip(page, stream.target.id).click()
    assert f"Reads what is written by no weight\n{stream.source.id}" in card(page)
    chip(page, stream.source.id).click()
    assert "Is read by no weight" in card(page)
    assert stream.target.id in card(page)


def test_ids_in_tables_and_sentences_are_links(page):
    link = page.locator(f'section[aria-labelledby="edges"] a[href="#node={NODE}"]').first
    link.click()
    assert page.locator("#card h3").inner_text() == NODE


def test_every_section_is_in_the_list_of_contents(page):
    named = page.locator(".contents a").evaluate_all("links => links.map(link => link.getAttribute('href').slice(1))")
    assert named == page.locator("main h2[id]").evaluate_all("headings => headings.map(heading => heading.id)")
    assert len(named) > 8


def test_attention_names_its_tokens_and_answers_to_cells_and_keys(page):
    figure = page.locator("#attention figure").first
    tokens = TOKENS["pairs"][0]["tokens"][0]
    assert figure.locator("svg text").count() == len(tokens)
    cell = figure.locator("svg g").nth(2).locator("rect").nth(1)
    hover_until(cell, figure.locator("rect.at"), 1)
    assert "of the attention of" in figure.locator(".reads").inner_text()
    page.mouse.move(1, 1)
    page.wait_for_timeout(300)  # the browser tells elements of the pointer's new place later
    figure.locator("svg").focus()
    page.wait_for_timeout(300)
    before = figure.locator(".reads code").count()
    page.keyboard.press("ArrowDown")
    sync_api.expect(figure.locator(".reads code")).to_have_count(before + 1)
    page.locator('[data-shown="difference"]').click()
    assert page.locator("#attention figure").count() == 2 * len(TOKENS["heads"])


def test_back_at_once_after_a_change_leaves_page_and_address_alike(page):
    page.locator(f'section[aria-labelledby="edges"] a[href="#node={NODE}"]').first.click()
    page.evaluate("state => { location.hash = state }", f"node={KEY}")
    sync_api.expect(page.locator("#card h3")).to_have_text(KEY)
    page.evaluate("""() => { document.querySelector('#card .note-fields input').focus(); history.back(); }""")
    sync_api.expect(page.locator("#card h3")).to_have_text(NODE)
    page.wait_for_timeout(400)
    assert unquote(page.evaluate("location.hash")) == f"#node={NODE}"


def test_a_page_without_an_address_works(browser, folder):
    context = browser.new_context()
    outer, failed = context.new_page(), []
    outer.on("pageerror", lambda error: failed.append(str(error)))
    text = (folder / "report.html").read_text(encoding="utf-8")
    outer.set_content("<iframe style='width: 1400px; height: 900px'></iframe>")
    outer.locator("iframe").evaluate("(frame, text) => { frame.srcdoc = text }", text)
    inner = outer.frame_locator("iframe")
    inner.locator(f'.picture .node[data-id="{NODE}"]').click()
    assert inner.locator("#card h3").inner_text() == NODE
    assert failed == []
    context.close()


@pytest.mark.parametrize("before", [False, True])
def test_nothing_is_cut_on_paper_after_the_picture_was_enlarged(page, before):
    if before:
        for _ in range(3):
            page.get_by_role("button", name="Larger").click()
        page.locator(".picture").evaluate("frame => { frame.scrollLeft = 200 }")
        page.wait_for_timeout(100)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})
    assert set(page.locator(".picture text.kept").evaluate_all("all => all.map(one => getComputedStyle(one).transform)")) == {"none"}
    assert page.locator(".picture svg").evaluate("svg => svg.getBoundingClientRect().right <= innerWidth")
    assert page.locator(".heat").evaluate("table => table.getBoundingClientRect().right <= innerWidth")


def test_edges_show_what_they_bring_to_the_chosen_token(page):
    """Against the stored numbers: weight times the source's deviation there; to a write, through the attention of its head."""
    page.locator("#wires").select_option("passed")
    pair = TOKENS["pairs"][0]
    at = len(pair["tokens"][0]) - 1
    deviation = lambda node, token: TOKENS["nodes"][node]["values"][0][0][token] * TOKENS["nodes"][node]["scale"] / 127  # noqa: E731
    shares = TOKENS["heads"][next(iter(TOKENS["heads"]))][0][0]
    for token in (at, 3):
        if token != at:
            page.locator(".heat thead button").nth(token).click()
        brought = {
            (a, b): w
            * (
                sum(share / 255 * deviation(a, i) for i, share in enumerate(shares[token]))
                if "attn.resid_delta" in b
                else deviation(a, token)
            )
            for a, b, w in EDGES
        }
        most = max(map(abs, brought.values()))
        for (a, b), value in brought.items():
            path = page.locator(f'.picture path.edge[data-source="{a}"][data-target="{b}"]')
            width, colour = path.evaluate("path => [path.style.strokeWidth, path.style.stroke]")
            assert float(width) == pytest.approx(0.3 + 6 * (abs(value) / most) ** 0.5, abs=0.02), (a, b, token)
            if abs(value) > 1e-6:
                assert ("below" if value < 0 else "above") in colour
    assert "what they bring to the chosen token" in page.locator("#paint-note").inner_text()
    assert page.evaluate("location.href").endswith("wires=passed&token=4") or "wires=passed" in page.evaluate("location.href")
    page.locator("#wires").select_option("weight")
    assert page.locator(".picture path.edge").first.evaluate("path => path.style.stroke") == ""
