"""The page of a circuit in a browser: bytes, first paint, and how soon a changed node shows.

Circuits of 100 and 300 nodes, random ones of a random model of python-tiny's shape and vocabulary. The browser is Debian's chromium.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from playwright.sync_api import Browser, sync_playwright

from extractor.circuits.graph import CircuitMask
from extractor.models.reference import BUNDLED
from extractor.models.tokenizer import load_tokenizer
from tests.benchmarks.measure import ROOT, Row

SHAPE = {"vocab_size": 1024, "n_layer": 2, "d_model": 128, "d_head": 16, "d_mlp": 512, "n_ctx": 128}
TOKENS, PAIRS, REPEATS = 40, 4, 9
BYTES = {100: 1_500_000, 300: 1_500_000}
PAINT_MS, CHANGE_MS = 1000, 50
# The paint of the first content; milliseconds from the click to the frame that shows its result.
PAINTED = """() => new Promise(done => {
    const look = () => {
        const found = performance.getEntriesByName('first-contentful-paint')[0];
        found ? done(found.startTime) : setTimeout(look, 5);
    };
    look(); })"""
CHANGED = """() => new Promise(done => {
    const button = [...document.querySelectorAll('#card .switches button')].find(one => one.textContent === NAME);
    const began = performance.now();
    button.click();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - began), 0)); })"""


def rows(threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        shown = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for nodes, most in BYTES.items():
            path, node = _page(Path(folder), nodes)
            yield Row(f"page of {nodes} nodes: bytes over 1.5 MB", path.stat().st_size / most, "<= 1.0")
            painted, changed, in_view = _times(shown, path, node)
            yield Row(f"... first paint from disk over {PAINT_MS} ms", painted / PAINT_MS, "<= 1.0")
            yield Row(f"... a node switched off shows, over {CHANGE_MS} ms", changed / CHANGE_MS, "<= 1.0")
            yield Row("... the same with the table of tokens in the window", in_view / CHANGE_MS, "<= 1.0")
        shown.close()


def _page(folder: Path, nodes: int) -> tuple[Path, str]:
    """The page of a circuit of so many nodes, and one of its nodes."""
    sys.path[:0] = [str(ROOT / "tests" / name) for name in ("support", "sparse")]
    from circuit_worlds import World
    from live_pages import written

    world = World("added_positions", **SHAPE, site_k={})
    world.batch = world.prompts(PAIRS, TOKENS)
    world.batch.last.fill_(TOKENS - 1)
    chosen = torch.randperm(len(world.index), generator=world.random)[:nodes]
    graph = CircuitMask(world.model, world.index.flags(chosen))
    tokenizer = load_tokenizer(BUNDLED / "python-tiny-1")
    place = folder / str(nodes)
    place.mkdir()
    return written(place, world, graph, tokenizer, with_text=True), world.circuit(graph).nodes[nodes // 2].id


def _times(browser: Browser, path: Path, node: str) -> tuple[float, float, float]:
    """Medians of the first paint, of a change, and of a change with the table in the window, milliseconds."""
    painted: list[float] = []
    changed: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(path.as_uri() + f"#node={node}")
        painted.append(page.evaluate(PAINTED))
        for found, place in zip(changed, ("#card", "#heat"), strict=True):
            page.locator(place).evaluate("place => place.scrollIntoView()")
            page.wait_for_timeout(300)
            for name in ("off", "as computed"):
                found.append(page.evaluate(CHANGED.replace("NAME", json.dumps(name))))
                page.wait_for_timeout(150)
        page.close()
    return median(painted), median(changed[0]), median(changed[1])
