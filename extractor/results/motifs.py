"""Motifs: small labelled subgraphs counted over circuits, and compared with shuffles of their edges. No torch.

A motif is a chain, a fan-out, a fan-in or a triangle of three nodes, or a bi-fan or a diamond of four (`motif_forms.SHAPES`). Its nodes
have a kind, the site without its layer; queries, keys and values are of one head or of several; its arrows are edges by sign, or links that
need no weight (`motif_graph`). The sign of a v or residual channel, and of a q and k channel together, is arbitrary: a model computes the
same with all weights of the channel turned. With signs='product' edges have no sign, and motifs with a circle are balanced or not: whether
the product of the signs around it is positive, and its two ways agree.

Shuffles keep every node's number of edges in and out, by site of the other end, layers included, and by sign (`motif_shuffles`). Links stay
as they are: they follow from channel numbers, so other links would need other nodes, while with other edges between the same nodes each
shuffle is a possible circuit. Circuits of one sparse model are shuffled together: an edge that several have moves in all of them, since
circuits that share edges are not independent.

Such degrees leave little open. The number of most motifs of three nodes is the same in every shuffle (`motif_counts`): these are counted
only. Tested are those that tell which head has what, triangles, and motifs of four nodes: whether a motif is more frequent than in
shuffles, and whether it is rarer. Left out of the tests is a motif whose counts allow no p of 0.05 or less, whichever of the graphs is the
circuit: that does not depend on which one is.

p is a share of graphs, the circuits and their shuffles: never below 1 / (shuffles + 1). With few shuffles no motif can stay significant
among many (`least_q`). Motifs overlap, so their tests are not independent, and shuffles that follow each other in a chain are alike a
little. Where the edges have little room (`moved`), a shuffle is like the circuit, and no test finds anything.
Papers: Milo et al. 2002 (motifs), Benjamini and Hochberg 1995 (q), Gilbert 2005 (motifs left out of the tests).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from extractor.errors import BrokenArtifact, UsageError
from extractor.files import MANIFEST, read_json
from extractor.results.motif_counts import counts
from extractor.results.motif_forms import Motif
from extractor.results.motif_graph import MotifGraph, head_width
from extractor.results.motif_shuffles import Array, PooledEdges, moved, shuffled

if TYPE_CHECKING:
    from extractor.results.result import Result

SHUFFLES = 3000  # enough for one motif among 150 to be significant
MOST_SHUFFLES = 20_000
MOST_EDGES = 2000  # of a circuit
LEVEL = 0.05
EXAMPLES = 5  # of a motif
SIGNS = ("each", "product")


@dataclass
class _Tally:
    """A motif over all circuits. shuffled: its number in each shuffle, (shuffles,)."""

    shuffled: Array
    number: int = 0
    circuits: int = 0
    examples: list[list[dict[str, Any]]] = field(default_factory=list)  # of each circuit


class _Tallies(dict[Motif, _Tally]):
    def __init__(self, shuffles: int, signs: str):
        super().__init__()
        self.shuffles, self.signs = shuffles, signs

    def of(self, motif: Motif) -> _Tally:
        motif = motif.without_signs() if self.signs == "product" else motif
        if motif not in self:
            self[motif] = _Tally(np.zeros(self.shuffles, dtype=np.int64))
        return self[motif]

    def add(self, result: Result, graph: MotifGraph, shuffled: dict[Motif, Array]) -> None:
        """The motifs of a circuit, and those of its shuffles."""
        examples: dict[int, tuple[_Tally, list[dict[str, Any]]]] = {}
        for motif, number, nodes in graph.instances():
            one = self.of(motif)
            one.number += number
            if not motif.varies:
                one.shuffled += number
            _, own = examples.setdefault(id(one), (one, []))
            if len(own) < EXAMPLES:
                own.append({"folder": str(result.folder), "task": result.task, "nodes": list(nodes)})
        for one, own in examples.values():
            one.circuits += 1
            one.examples.append(own)
        for motif, numbers in shuffled.items():
            self.of(motif).shuffled += numbers


def motifs(
    results: Iterable[Result], shuffles: int = SHUFFLES, seed: int = 0, signs: Literal["each", "product"] = "product"
) -> dict[str, Any]:
    """The motifs of circuits: `motifs(result)` counts over all tasks of a result, `motifs([*one, *other])` over those of two.

    circuits    number of circuits;  models: of sparse models that they are circuits of
    shuffles, seed, signs   as asked
    moved       share of the edges that a shuffle moves, over all shuffles; None without edges
    tested      number of motifs that are tested for being frequent;  tested_rare: for being rare
    least_q     the `q` of a single motif that is more frequent than in all shuffles; None where none is tested
    motifs      [{motif: text, parts: `Motif.parts`, count, circuits: that have it, expected: mean over the shuffles, sd: their standard
                deviation, tested, p, q, significant, p_rare, q_rare, rare, examples}], the smallest p first, then the largest distance
                from `expected` in units of sd. Motifs without a count are there only if rare
                p           share of graphs with at least this count, 1 where not tested;  p_rare: with at most this count
                q           p corrected for the number of tests, None where not tested;  significant: q of at most 0.05
                q_rare      the same of p_rare;  rare: q_rare of at most 0.05
                examples    [{folder, task, nodes: ids in the order of parts}]
    left_out    [{folder, task, why}], circuits of more than 2,000 edges

    The same circuits in the same order, shuffles and seed give the same values. Raises BrokenArtifact for damaged files, UsageError for
    other signs, and for numbers of shuffles and seeds out of range (1 to 20,000, 0 to 2**31 - 1).
    """
    for name, value, least, most in (("shuffles", shuffles, 1, MOST_SHUFFLES), ("seed", seed, 0, 2**31 - 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"{name}={value!r} is no whole number from {least} to {most:,}")
    if signs not in SIGNS:
        raise UsageError(f"signs={signs!r} is unknown; choose one of {', '.join(SIGNS)}")
    models, left_out = _read(results)
    tallies = _Tallies(shuffles, signs)
    edges, changed = 0, 0.0
    for number, circuits in enumerate(models):
        pool = PooledEdges.of([graph for _, graph in circuits])
        ids, targets = shuffled(pool, shuffles, np.random.default_rng([seed, number]))
        edges, changed = edges + len(pool.ends), changed + moved(pool, targets)
        for i, (result, graph) in enumerate(circuits):
            own = pool.of_circuit(i)
            tallies.add(result, graph, counts(graph, [pool.ends[edge] for edge in own], ids, targets[:, own]))
    rows = [_row(motif, tally) for motif, tally in tallies.items()]
    tested, tested_rare = _correct(rows, "p", "q", "significant"), _correct(rows, "p_rare", "q_rare", "rare")
    shown = [row | {"tested": row["q"] is not None} for row in rows if row["count"] or row["rare"]]
    return {
        "circuits": sum(map(len, models)),
        "models": len(models),
        "shuffles": shuffles,
        "seed": seed,
        "signs": signs,
        "moved": changed / edges if edges else None,
        "tested": tested,
        "tested_rare": tested_rare,
        "least_q": min(1.0, tested / (shuffles + 1)) if tested else None,
        "motifs": sorted(shown, key=lambda row: (not row["tested"], row["p"], -_distance(row), -row["count"], row["motif"])),
        "left_out": left_out,
    }


def _read(results: Iterable[Result]) -> tuple[list[list[tuple[Result, MotifGraph]]], list[dict[str, str]]]:
    """The circuits by sparse model, each once; and those that are left out."""
    models: dict[tuple[str, ...], list[tuple[Result, MotifGraph]]] = {}
    left_out, seen = [], set()
    for result in results:
        if (place := result.place.resolve()) in seen:
            continue
        seen.add(place)
        edges = len(result.circuit.edges)
        if edges <= MOST_EDGES:
            graph = MotifGraph.of(result.circuit, head_width(result.folder), result.place / "circuit.json")
            models.setdefault(_model(result), []).append((result, graph))
        else:
            why = f"it has {edges:,} edges, more than {MOST_EDGES:,}"
            left_out.append({"folder": str(result.folder), "task": result.task, "why": why})
    return list(models.values()), left_out


def _model(result: Result) -> tuple[str, ...]:
    """What is equal for circuits of one sparse model: the digests of its weights in the manifest; without these, the folder."""
    path = result.folder / MANIFEST
    listed = read_json(path)
    try:
        found = [facts["sha256"] for name, facts in sorted(listed["files"].items()) if name.startswith("model/model")]
    except (KeyError, TypeError, AttributeError):
        raise BrokenArtifact(f"{path} lists no files; copy the result again") from None
    return tuple(map(str, found)) or (str(result.folder.resolve()),)


def _row(motif: Motif, tally: _Tally) -> dict[str, Any]:
    numbers, own = tally.shuffled, tally.number
    return {
        "motif": str(motif),
        "parts": motif.parts(),
        "count": own,
        "circuits": tally.circuits,
        "expected": float(numbers.mean()),
        "sd": float(numbers.std()),
        "tested": False,
        **_chance(own, numbers, "p", "q", "significant"),
        **_chance(-own, -numbers, "p_rare", "q_rare", "rare"),
        "examples": _mixed(tally.examples),
    }


def _chance(own: int, numbers: Array, p: str, q: str, significant: str) -> dict[str, Any]:
    """The share of graphs with at least this number. q is 1 where the motif is tested, and corrected later; None where it is not."""
    most = max(own, int(numbers.max()))
    least_p = (int((numbers == most).sum()) + (own == most)) / (len(numbers) + 1)  # the smallest p that the counts allow
    tested = least_p <= LEVEL
    share = (int((numbers >= own).sum()) + 1) / (len(numbers) + 1)
    return {p: share if tested else 1.0, q: 1.0 if tested else None, significant: False}


def _correct(rows: Sequence[dict[str, Any]], p: str, q: str, significant: str) -> int:
    """Set q of the rows that are tested by Benjamini and Hochberg's correction. Returns how many these are."""
    tested = sorted((row for row in rows if row[q] is not None), key=lambda row: row[p])
    least = 1.0
    for rank in range(len(tested), 0, -1):
        row = tested[rank - 1]
        least = min(least, row[p] * len(tested) / rank)
        row[q], row[significant] = least, least <= LEVEL
    return len(tested)


def _mixed(examples: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first of every circuit, then the second of every circuit, and so on."""
    ranked = [(rank, example) for own in examples for rank, example in enumerate(own)]
    return [example for _, example in sorted(ranked, key=lambda pair: pair[0])[:EXAMPLES]]


def _distance(row: dict[str, Any]) -> float:
    """From the mean of the shuffles, in standard deviations."""
    apart = row["count"] - row["expected"]
    return apart / row["sd"] if row["sd"] else math.copysign(math.inf, apart) if apart else 0.0
