"""The READMEs: links lead somewhere, commands, options and paths shown exist, figures are those of the stored result."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from worlds import ROOT

from extractor.spec.claims import worst_condition
from worker.cli import group

PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "extractor/README.md",
        "worker/README.md",
        "tasks/README.md",
        "tests/README.md",
        "tests/benchmarks/RESULTS.md",
        "deploy/README.md",
        ".github/CONTRIBUTING.md",
    )
]
MADE_LATER = ("deploy/secrets", "deploy/.env", "deploy/kubernetes/base/secrets")  # by commands of the operator's page
WORDS = re.compile(r"\$?\s*(?:deploy/in-venv (?:--dev )?)?extract ([a-z][^#]*)")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@every_page
def test_every_link_leads_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert ROOT in (target, *target.parents), link
        if anchor:
            assert anchor in anchors(target), link


def commands(page: Path) -> list[list[str]]:
    """The words after `extract` of every command line in a page, in code blocks and in inline code."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(extract [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = []
    for line in lines:
        if match := WORDS.match(line.strip()):
            shown = re.split(r"\s{2,}", match[1])[0]  # what follows two spaces explains
            found.append(shlex.split(shown.replace("[", "").replace("]", "").replace("'", "").replace("...", "").rstrip("\\")))
    return found


@every_page
def test_every_command_and_option_shown_exists(page: Path):
    for words in commands(page):
        command: click.Command = group
        for word in words:
            if not isinstance(command, click.Group) or word not in command.list_commands(click.Context(command)):
                break
            command = command.get_command(click.Context(command), word) or command
        assert command is not group, words
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
        assert {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known, words


@every_page
def test_every_path_named_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.-])((?:extractor|worker|tasks|tests|deploy|\.github|\.ci)/[\w./-]*[\w/])", text)
    for path in named:
        if "NAME" not in path and not path.startswith(MADE_LATER) and not (ROOT / path).exists():
            # a link's own text may be relative to its page
            assert (page.parent / path).exists(), path


def test_the_pages_show_enough_for_these_tests_to_mean_something():
    assert sum(len(commands(page)) for page in PAGES) > 60


def test_the_readme_fits_on_few_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_figures_of_the_readme_are_those_of_the_result_it_links_to():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    stored = json.loads((ROOT / ".github/example/result.json").read_text(encoding="utf-8"))
    circuit = stored["circuit"]
    assert text.count(f"{circuit['nodes']} nodes, {circuit['edges']} edges") == 1
    (losses,) = re.findall(r"^loss \(nats\) +(.*)$", text, re.MULTILINE)
    assert [float(part) for part in losses.split()] == pytest.approx(
        [stored["loss"][name] for name in ("full", "circuit", "without_circuit", "random")], rel=2e-3
    )
    (right,) = re.findall(r"^accuracy +(.*)$", text, re.MULTILINE)
    assert [float(part) for part in right.split()] == pytest.approx(
        [stored["accuracy"][name] for name in ("full", "circuit", "without_circuit", "random")], abs=1e-3
    )
    assert f"The {stored['bridge']['explained']['mean']:.0%} and {stored['bridge']['explained']['worst']:.0%}" in text
    assert f"{stored['validation']['uncalibrated']:.3f} nats" in text
    _, worst = worst_condition(stored.get("validation"))
    assert f"at worst {worst['loss']:.3f} nats and {worst['accuracy']:.1%} right" in text
