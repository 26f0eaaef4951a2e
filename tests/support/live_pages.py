"""Pages of random circuits that run in the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from circuit_worlds import World
from tokenizers import Tokenizer
from worlds import ROOT

from extractor.circuits.graph import CircuitMask
from extractor.circuits.observed import observe
from extractor.data.encoding import token_text
from extractor.jobs import live_data as live
from extractor.jobs.page_data import STEPS
from extractor.report.page import write_report
from extractor.validation.passages import AFTER, BEFORE, BINS, MOST_EACH, MOST_PASSAGES, RANKS

EXAMPLE = json.loads((ROOT / ".github" / "example" / "result.json").read_text(encoding="utf-8"))


def on_text(world: World, node: str, texts: int, each: int) -> dict[str, dict[str, Any]]:
    """Random passages and a random histogram of a node, as long as those of a job."""
    draw = lambda high, size: torch.randint(high, (size,), generator=world.random).tolist()  # noqa: E731
    length, ranks = BEFORE + 1 + AFTER, (*RANKS, *(1 - rank for rank in reversed(RANKS[:-1])))
    passages = [
        {"rank": rank, "tokens": draw(texts, length), "values": [value - STEPS for value in draw(2 * STEPS + 1, length)], "at": BEFORE}
        for rank in ranks
        for _ in range(each)
    ]
    return {
        "passages": {node: {"scale": 1.0, "texts": passages}},
        "histograms": {node: {"low": -1.0, "high": 1.0, "counts": draw(5000, BINS)}},
    }


def tokens_of(world: World, graph: CircuitMask, tokenizer: Tokenizer, with_text: bool = False) -> dict[str, Any]:
    """tokens.json of the world's prompts; with_text: also of ordinary text."""
    batch, run = world.batch, observe(graph, world.base, world.batch)
    ids = sorted({*batch.ids.flatten().tolist(), *batch.correct.tolist(), *batch.wrong.tolist()})
    ends = [int(last) + 1 for last in batch.last]
    place = {token: i for i, token in enumerate(ids)}
    calibrated = world.circuit(graph).calibration.apply(run.diff).sigmoid().tolist()

    def by_pair(rows: list) -> list:
        return [rows[row : row + 2] for row in range(0, len(rows), 2)]

    prompts = [[place[token] for token in row[:end]] for row, end in zip(batch.ids.tolist(), ends, strict=True)]
    answers = by_pair([place[token] for token in batch.correct.tolist()])
    pairs = [
        {"tokens": prompt, "answers": answer, "first": first}
        for prompt, answer, first in zip(by_pair(prompts), answers, by_pair(calibrated), strict=True)
    ]
    nodes, means = {}, {node.id: node.mean for node in world.circuit(graph).nodes}
    for node, values in run.values.items():
        deviation = values - means[node]
        scale = float(deviation.abs().max().clamp_min(1e-6))
        rows = [[round(step, 2) for step in (row[:end] / scale * 127).tolist()] for row, end in zip(deviation, ends, strict=True)]
        nodes[node] = {"scale": scale, "values": by_pair(rows)}
    heads = {
        f"{layer}.{head}": by_pair(
            [[row[: i + 1].mul(255).int().tolist() for i, row in enumerate(one[:end])] for one, end in zip(pattern, ends, strict=True)]
        )
        for (layer, head), pattern in run.patterns.items()
    }
    return {
        "texts": [token_text(tokenizer, token) for token in ids],
        "ids": ids,
        "pairs": pairs,
        "nodes": nodes,
        "heads": heads,
        **(_on_text(world, list(nodes), len(ids)) if with_text else {"passages": {}, "histograms": {}}),
    }


def _on_text(world: World, nodes: list[str], texts: int) -> dict[str, dict[str, Any]]:
    each, found = max(1, min(MOST_EACH, MOST_PASSAGES // len(nodes))), {"passages": {}, "histograms": {}}
    for node in nodes:
        for name, part in on_text(world, node, texts, each).items():
            found[name] |= part
    return found


def written(
    place: Path, world: World, graph: CircuitMask, tokenizer: Tokenizer, result: dict[str, Any] = EXAMPLE, with_text: bool = False
) -> Path:
    tokens = tokens_of(world, graph, tokenizer, with_text)
    data = live.live_data(world.compiled(graph), tokenizer, tokens)
    write_report(place, world.circuit(graph), result, [], tokens=tokens, live=data)
    return place / "report.html"
