"""Pages of random circuits that run in the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from circuit_worlds import World
from tokenizers import Tokenizer
from worlds import ROOT

from extractor.circuits.graph import CircuitMask
from extractor.circuits.observed import observe
from extractor.data.encoding import token_text
from extractor.jobs import live_data as live
from extractor.report.page import write_report

EXAMPLE = json.loads((ROOT / ".github" / "example" / "result.json").read_text(encoding="utf-8"))


def tokens_of(world: World, graph: CircuitMask, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokens.json of the world's prompts."""
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
        "passages": {},
    }


def written(place: Path, world: World, graph: CircuitMask, tokenizer: Tokenizer, result: dict[str, Any] = EXAMPLE) -> Path:
    tokens = tokens_of(world, graph, tokenizer)
    data = live.live_data(world.compiled(graph), tokenizer, tokens)
    write_report(place, world.circuit(graph), result, [], tokens=tokens, live=data)
    return place / "report.html"
