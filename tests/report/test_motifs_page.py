"""The page of motifs: what it says, its drawings and links, nothing that runs, accessible at two widths."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from motif_circuits import SMALL, circuit_of, folder_of, planted
from test_browser import BROWSER, PATIENCE, QUIET, sync_api

from extractor.report.motifs_page import LISTED, motifs_page
from extractor.results import motifs as counting
from extractor.results.result import load

motifs = partial(counting.motifs, signs="each")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    circuits = {"t": circuit_of(planted()), "a b<i>": circuit_of(SMALL)}
    return folder_of(tmp_path_factory.mktemp("motifs") / "out", circuits)


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    return motifs(load(place), 2000)


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of a table without their marks, of the section with this title."""
    part = page.split(f">{title}</h2>")[1].split("</section>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)]
    return [[re.sub(r"<svg.*?</svg>|<[^>]+>", "", cell) for cell in row] for row in cells]


def test_the_page_says_what_was_found(found):
    page = motifs_page(found)
    frequent, rare = (sum(row[name] for row in found["motifs"]) for name in ("significant", "rare"))
    assert frequent > 0
    assert f"<h1>{frequent} of {found['tested']} tested motifs {'is' if frequent == 1 else 'are'} more frequent" in page
    assert f"{rare or 'none'} of {found['tested_rare']} rarer.</h1>" in page
    assert "2 circuits of 1 sparse model · 2,000 shuffles · seed 0" in page
    head, first, *_ = rows(page, "Tested motifs")
    best = found["motifs"][0]
    assert dict(zip(head, first, strict=True)) | {"examples": ""} == {
        "motif": "triangle: attn.act_in -&gt; attn.q (+) ~ attn.k (+); one head",
        "verdict": "more frequent",
        "count": "12",
        "expected": f"{best['expected']:.1f}&nbsp;&plusmn;&nbsp;{best['sd']:.1f}",
        "p": "0.0005",
        "q": f"{best['q']:.3f}",
        "circuits": "1",
        "examples": "",
    }
    assert len(rows(page, "Tested motifs")) + len(rows(page, "Motifs that are counted only")) == len(found["motifs"]) + 2


def test_examples_open_in_their_reports(found, place):
    page = motifs_page(found)
    links = re.findall(r'href="([^"]+)"', page)
    assert f"circuits/t/report.html#node={found['motifs'][0]['examples'][0]['nodes'][0]}" in links
    assert "circuits/a%20b%3Ci%3E/report.html" in links
    assert all(link.startswith("circuits/") for link in links)
    elsewhere = re.findall(r'href="([^"]+)"', motifs_page(found, lambda folder: f"../x{folder.removeprefix(str(place))}"))
    assert elsewhere == [f"../x/{link}" for link in links]
    assert "href" not in motifs_page(found, lambda folder: "")


def test_of_several_results_the_folder_is_named(found):
    rows = [dict(row) for row in found["motifs"]]
    rows[0]["examples"] = [dict(rows[0]["examples"][0], folder="/home/x/other")]
    page = motifs_page(found | {"motifs": rows}, lambda folder: "")
    assert '<code class="id">other: t</code>' in page
    assert '<code class="id">out: t</code>' in page


def test_a_motif_is_drawn_with_its_signs_and_links(found):
    page = motifs_page(found)
    drawn = page.split('aria-label="triangle: attn.act_in -&gt; attn.q (+) ~ attn.k (+); one head">')[1].split("</svg>")[0]
    assert drawn.count("<rect") == 3
    assert re.findall(r"<text[^>]*>([^<]+)<", drawn) == ["+", "+", "attn.act_in", "attn.q A", "attn.k A"]
    assert drawn.count('class="positive"') == drawn.count("<polygon") == 2
    assert drawn.count("stroke-dasharray") == 1
    stream = page.split('aria-label="chain: attn.v -&gt; attn.resid_delta (-) -&gt; mlp.act_in (residual)">')[1].split("</svg>")[0]
    assert re.findall(r'<g class="(\w+)"', stream) == ["negative", "neutral"]
    assert stream.count("<polygon") == 2


def test_a_product_of_signs_is_told_and_no_arrow_has_one(place):
    page = motifs_page(motifs(load(place), 100, signs="product"))
    assert "attn.act_in -&gt; attn.q ~ attn.k; one head; balanced" in page
    assert "a circle is balanced where" in page
    assert 'class="positive"' not in page


def test_nothing_in_the_page_runs_and_text_of_others_is_escaped(found):
    evil = "<script>alert(1)</script>\x1b[31m"
    rows = [dict(row, motif=evil, examples=[{"folder": evil, "task": evil, "nodes": [evil]}]) for row in found["motifs"][:1]]
    page = motifs_page(found | {"motifs": rows, "left_out": [{"folder": evil, "task": evil, "why": evil}], "seed": evil})
    assert "<script" not in page
    assert "\x1b" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'" in page
    assert "Circuits that are left out" in page


def test_too_few_shuffles_are_named(found):
    none = found | {"motifs": [row for row in found["motifs"] if not row["significant"]]}
    assert "With 2,000 shuffles a single motif cannot be significant among" in motifs_page(none | {"least_q": 0.2})
    assert "cannot be significant" not in motifs_page(none | {"least_q": 0.04})
    assert "cannot be significant" not in motifs_page(found | {"least_q": 0.2})


def test_of_many_motifs_the_first_are_shown_and_of_none_that_is_said(found):
    page = motifs_page(found | {"motifs": found["motifs"][:1] * (LISTED + 7)})
    assert len(rows(page, "Tested motifs")) == LISTED + 1
    assert "7 more are not shown." in page
    empty = motifs_page(motifs([], 5))
    assert "None of 0 tested motifs is more frequent" in empty
    assert "No motif varies between the shuffles." in empty


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium, or name one in EXTRACT_TEST_BROWSER")
@pytest.mark.parametrize(("width", "colours"), [(1440, "dark"), (390, "light")])
def test_the_page_is_accessible(found, tmp_path, width, colours):
    from axe_playwright_python.sync_playwright import Axe

    few = found["motifs"][:4] + found["motifs"][-4:]
    (tmp_path / "motifs.html").write_text(motifs_page(found | {"motifs": few}), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET, timeout=PATIENCE)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
        page.goto((tmp_path / "motifs.html").as_uri())
        violations = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"][:160] for node in one["nodes"][:2]]) for one in violations] == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        browser.close()
