"""Tests the paper's two findings on a sweep, by counting pairs of points; and which tasks can be compared.

    fewer nonzeros at one width      smaller circuits, worse loss
    more width at equal nonzeros     smaller circuits, better loss

Every pair of neighbours on the grid is one observation for or against. Points that differ in another axis are not paired.
Paper: Sec. 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from worker.sweeps.grid import Facts

_EQUAL = 0.01  # relative difference up to which nonzeros count as equal
_VARIED = ("width", "l0", "sparsity.weight_frac")


def compare(points: list[Facts], tasks: tuple[str, ...]) -> Facts:
    """The content of sweep.json from the facts of all points.

    Circuit size is the geometric mean of edges over the tasks that met the target loss in every compared point. A point without any met
    task is not compared and has size None. Every point lists its unmet tasks.
    """
    done = [point for point in points if "held_out_loss" in point]
    met = {point["job"]: {task for task in tasks if (point["tasks"].get(task) or {}).get("meets_target")} for point in done}
    common = comparable(list(met.values()), tasks)
    described = []
    for point in points:
        mine = met.get(point["job"])
        size = _mean_edges(point, common) if mine is not None and common and set(common) <= mine else None
        unmet = [] if mine is None else [task for task in tasks if task not in mine]
        described.append(point | {"edges_geometric_mean": size, "unmet": unmet})
    claims = [claim(described) for claim in (_fewer_smaller, _fewer_worse, _wider_smaller, _wider_better)]
    return {"tasks": list(tasks), "compared_tasks": common, "points": described, "findings": claims}


def comparable(met: list[set[str]], tasks: tuple[str, ...]) -> list[str]:
    """The tasks to compare: those met by every point that met any task; without such tasks, the one met by most points."""
    some = [one for one in met if one]
    if not some:
        return []
    shared = [task for task in tasks if all(task in one for one in some)]
    return shared or [max(tasks, key=lambda task: sum(task in one for one in some))]


def _mean_edges(point: Facts, tasks: list[str]) -> float:
    logs = [math.log(max(1, point["tasks"][task]["edges"])) for task in tasks]
    return round(math.exp(sum(logs) / len(logs)), 2)


def _fewer_smaller(points: list[Facts]) -> Facts:
    return _claim("At one width, fewer nonzeros give smaller circuits", _same_width(points), "edges_geometric_mean", _edges, lower=True)


def _fewer_worse(points: list[Facts]) -> Facts:
    return _claim("At one width, fewer nonzeros give a worse loss", _same_width(points), "held_out_loss", _loss, lower=False)


def _wider_smaller(points: list[Facts]) -> Facts:
    return _claim(
        "At equal nonzeros, more width gives smaller circuits", _same_nonzeros(points), "edges_geometric_mean", _edges, lower=True
    )


def _wider_better(points: list[Facts]) -> Facts:
    return _claim("At equal nonzeros, more width gives a better loss", _same_nonzeros(points), "held_out_loss", _loss, lower=True)


def _claim(text: str, pairs: Iterator[tuple[str, Facts, Facts]], key: str, show: Callable[[float], str], *, lower: bool) -> Facts:
    """Test the claim that `key` becomes lower (or higher) from the first to the second point of each pair."""
    seen, unknown = [], 0
    for step, first, second in pairs:
        before, after = first.get(key), second.get(key)
        if before is None or after is None:
            unknown += 1
            continue
        agrees = after < before if lower else after > before
        seen.append({"from": first["job"], "to": second["job"], "agrees": agrees, "text": f"{step}: {show(before)} → {show(after)}"})
    agree = sum(pair["agrees"] for pair in seen)
    verdict = _verdict(agree, len(seen)) + (f"; {unknown} more cannot be decided" if unknown else "")
    return {"claim": text, "agree": agree, "of": len(seen), "unknown": unknown, "verdict": verdict, "pairs": seen}


def _verdict(agree: int, of: int) -> str:
    if of == 0:
        return "not tested: no two points can be compared"
    if agree == of:
        return f"yes, in {'the one pair' if of == 1 else f'all {of} pairs'}"
    return f"no, in none of {of} pair{'s' * (of > 1)}" if agree == 0 else f"partly, in {agree} of {of} pairs"


def _same_width(points: list[Facts]) -> Iterator[tuple[str, Facts, Facts]]:
    """Neighbouring points of one width, the one with more nonzeros first."""
    ordered = sorted((p for p in points if "held_out_loss" in p), key=lambda p: (p["d_model"], -p["l0"]))
    for number, more in enumerate(ordered):
        for fewer in ordered[number + 1 :]:
            if fewer["d_model"] == more["d_model"] and _alike(more, fewer) and not equal_l0(more, fewer):
                yield f"width {more['d_model']}, {more['l0']:,} → {fewer['l0']:,} nonzeros", more, fewer
                break


def _same_nonzeros(points: list[Facts]) -> Iterator[tuple[str, Facts, Facts]]:
    """Neighbouring points with equal numbers of nonzero block weights, the narrower one first."""
    ordered = sorted((p for p in points if "held_out_loss" in p), key=lambda p: (p["d_model"], p["l0"]))
    for number, narrow in enumerate(ordered):
        for wide in ordered[number + 1 :]:
            if wide["d_model"] > narrow["d_model"] and _alike(narrow, wide) and equal_l0(narrow, wide):
                yield f"{narrow['l0']:,} nonzeros, width {narrow['d_model']} → {wide['d_model']}", narrow, wide
                break


def equal_l0(one: Facts, two: Facts) -> bool:
    """Whether two points have equal numbers of nonzero block weights, within one percent."""
    return abs(one["l0"] - two["l0"]) <= _EQUAL * max(one["l0"], two["l0"])


def _alike(one: Facts, two: Facts) -> bool:
    """Whether two points differ only in width and nonzeros."""
    return all(one["axes"].get(name) == two["axes"].get(name) for name in {*one["axes"], *two["axes"]} - {*_VARIED})


def _edges(value: float) -> str:
    return f"{value:.4g} edges"


def _loss(value: float) -> str:
    return f"{value:.4f} nats"
