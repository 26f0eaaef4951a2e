"""The frontier of a sweep as plot and page: writes sweep.json, frontier.svg, frontier.png, index.html, points/.

    x       held-out loss, nats per token      colour   total parameters
    y       circuit size, edges (log)          area     nonzeros
    solid lines join equal widths, dotted ones equal nonzeros

Deterministic: the same sweep gives the same bytes. The folder is self-contained, with a copy of every circuit's report and picture.
Paper: Sec. 3.1, Fig. 3.
"""

from __future__ import annotations

import io
import shutil
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor import files
from worker.sweeps.claims import equal_l0
from worker.sweeps.grid import Facts
from worker.sweeps.page import page, summary, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SOFT, _GRID = "#1b1f24", "#57606a", "#e6eaef"
_LARGEST, _SMALLEST = 620.0, 60.0  # marker areas in square points


def write_frontier(out: Path, sweep: str, comparison: Facts) -> Facts:
    """Write all files into `out`, replacing those of an earlier call.

    comparison: from `claims.compare`. Returns it with the paths of the copies, as in sweep.json. Raises ExtractorError when the disk is
    full.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = comparison | {"points": [copy_circuits(out, point) for point in comparison["points"]]}
    svg, png = draw(written)
    files.write_json(out / "sweep.json", {"version": 1, "sweep": sweep} | written)
    files.write_text(out / "frontier.svg", svg)
    with files.explain_full_disk(out / "frontier.png"):
        (out / "frontier.png").write_bytes(png)
    shades = colours([point for point in written["points"] if "held_out_loss" in point])
    files.write_text(out / "index.html", page(sweep, written, svg, shades))
    return written


def copy_circuits(out: Path, point: Facts) -> Facts:
    """Copy a point's reports and pictures to points/JOB/; each task then names its 'report' and 'picture', relative to `out`."""
    tasks = {}
    for task, facts in point.get("tasks", {}).items():
        source, target = Path(point["result"]) / "circuits" / task, out / "points" / point["job"]
        found = dict(facts)
        for kind, name in (("report", "report.html"), ("picture", "circuit.svg")):
            if (source / name).is_file():
                target.mkdir(parents=True, exist_ok=True)
                copy = target / f"{task}{Path(name).suffix}"
                with files.explain_full_disk(copy):
                    shutil.copyfile(source / name, copy)
                found[kind] = copy.relative_to(out).as_posix()
        tasks[task] = found
    return point | {"tasks": tasks} if "tasks" in point else point


def draw(comparison: Facts) -> tuple[str, bytes]:
    """The plot as SVG text, with a title at every point, and as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    points = [point for point in comparison["points"] if "held_out_loss" in point]
    style: dict[Any, Any] = {"svg.hashsalt": "frontier", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10.5}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.2, 5.6), dpi=150)
        axes = figure.add_axes((0.085, 0.11, 0.68, 0.84))
        _frame(axes, comparison, points)
        _lines(axes, points)
        _markers(axes, points)
        _legends(axes, points)
        buffers = io.BytesIO(), io.BytesIO()
        figure.savefig(buffers[0], format="svg", metadata={"Date": None, "Creator": "extractor"})
        figure.savefig(buffers[1], format="png", metadata={"Software": "extractor"})
    return _with_titles(buffers[0].getvalue().decode(), points), buffers[1].getvalue()


def colours(points: list[Facts]) -> dict[int, str]:
    """Total parameters -> colour, from dark (small) to bright (large)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    sizes = sorted({point["parameters"] for point in points})
    map_ = colormaps["viridis"]
    return {size: to_hex(map_(0.12 + 0.73 * (number / max(1, len(sizes) - 1)))) for number, size in enumerate(sizes)}


def _area(point: Facts, points: list[Facts]) -> float:
    return max(_SMALLEST, _LARGEST * point["nonzeros"] / max(p["nonzeros"] for p in points))


def _frame(axes: Axes, comparison: Facts, points: list[Facts]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    tasks = comparison["compared_tasks"]
    over = f"geometric mean over {len(tasks)} tasks" if len(tasks) != 1 else tasks[0]
    axes.set_xlabel("Held-out loss (nats per token)", color=_INK)
    axes.set_ylabel(f"Circuit size (edges, {over})", color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#c5cdd6")
    sizes = [point["edges_geometric_mean"] for point in points if point["edges_geometric_mean"] is not None]
    losses = [point["held_out_loss"] for point in points]
    if losses:
        reach = max(losses) - min(losses) or 0.1
        axes.set_xlim(min(losses) - 0.1 * reach, max(losses) + 0.27 * reach)  # labels stand to the right
    if not sizes:
        axes.set_yticks([])
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "no circuit met the target loss", transform=axes.transAxes, ha="center", color=_SOFT, fontsize=13)
        return
    axes.set_yscale("log")
    low, high = min(sizes) / 1.35, max(sizes) * (1.6 if len(sizes) < len(points) else 1.35)
    axes.set_ylim(low, high)
    nice = [m * 10**e for e in range(8) for m in _steps(high / low)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in nice if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.text(0.012, 0.015, "↙ better", transform=axes.transAxes, color=_SOFT, fontsize=9.5)


def _steps(ratio: float) -> tuple[float, ...]:
    """Leading digits of the ticks of an axis that spans this ratio."""
    return (1, 2, 5) if ratio > 15 else (1, 1.5, 2, 3, 5, 7) if ratio > 4 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)


def _lines(axes: Axes, points: list[Facts]) -> None:
    """Solid lines join points of equal width, dotted lines points with equal nonzeros."""
    drawn = [point for point in points if point["edges_geometric_mean"] is not None]
    shade = colours(points) if points else {}
    for width in sorted({point["d_model"] for point in drawn}):
        line = sorted((p for p in drawn if p["d_model"] == width), key=lambda p: p["l0"])
        if len(line) > 1:
            axes.plot(*_places(line), color=shade[line[-1]["parameters"]], linewidth=1.8, alpha=0.55, zorder=2)
    left = sorted(drawn, key=lambda p: (p["l0"], p["d_model"]))
    while left:
        line = [point for point in left if equal_l0(point, left[0])]
        left = [point for point in left if point not in line]
        if len(line) > 1:
            axes.plot(*_places(sorted(line, key=lambda p: p["d_model"])), color=_SOFT, linewidth=1.3, linestyle=(0, (1, 2.4)), zorder=1)


def _places(points: list[Facts]) -> tuple[list[float], list[float]]:
    return [p["held_out_loss"] for p in points], [p["edges_geometric_mean"] for p in points]


def _markers(axes: Axes, points: list[Facts]) -> None:
    shade = colours(points) if points else {}
    for point in sorted(points, key=lambda p: -p["nonzeros"]):
        x, y, area, colour = point["held_out_loss"], point["edges_geometric_mean"], _area(point, points), shade[point["parameters"]]
        if y is None:
            marker = axes.scatter([x], [0.965], s=110, facecolors="none", edgecolors=colour, linewidths=1.6, zorder=3)
            marker.set_transform(marker.get_transform())
            marker.set_offset_transform(axes.get_xaxis_transform())
            above = axes.get_xaxis_transform()
            axes.annotate(point["label"], (x, 0.965), (8, 0), above, "offset points", va="center", color=_SOFT, fontsize=8.5, zorder=5)
        else:
            marker = axes.scatter([x], [y], s=area, color=colour, edgecolors="white", linewidths=1.4, zorder=4, alpha=0.95)
            reach = area**0.5 / 2 + 3
            axes.annotate(point["label"], (x, y), (reach, 0), textcoords="offset points", va="center", color=_INK, fontsize=8.5, zorder=5)
        marker.set_gid(f"point-{point['job']}")


def _legends(axes: Axes, points: list[Facts]) -> None:
    """Legends beside the axes: colours, areas, lines."""
    from matplotlib.lines import Line2D

    def dot(colour: str, area: float) -> Line2D:
        return Line2D([], [], linestyle="", marker="o", markersize=area**0.5, color=colour, markeredgecolor="white")

    if not points:
        return
    sizes = [(dot(colour, 90), f"{thousands(size)}") for size, colour in colours(points).items()]
    extremes = sorted({min(points, key=_nonzeros)["job"], max(points, key=_nonzeros)["job"]})
    areas = sorted((p for p in points if p["job"] in extremes), key=_nonzeros)
    shown = [(dot("#8b96a3", _area(p, points)), thousands(p["nonzeros"])) for p in areas]
    lines = [
        (Line2D([], [], color=_SOFT, linewidth=1.8), "equal width"),
        (Line2D([], [], color=_SOFT, linewidth=1.3, linestyle=(0, (1, 2.4))), "equal nonzeros"),
    ]
    if any(point["edges_geometric_mean"] is None for point in points):
        lines.append((Line2D([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", color=_SOFT), "no size to compare"))
    top = 1.0
    for title, entries in (("Parameters", sizes[:12]), ("Nonzeros", shown), ("", lines)):
        legend = axes.legend(
            [handle for handle, _ in entries],
            [label for _, label in entries],
            title=title or None,
            loc="upper left",
            bbox_to_anchor=(1.02, top),
            frameon=False,
            labelspacing=1.2 if title == "Nonzeros" else 0.9,
            alignment="left",
            handletextpad=1.0,
        )
        legend.get_title().set_color(_SOFT)
        axes.add_artist(legend)
        top -= 0.085 * (len(entries) + (2 if title else 1))


def _nonzeros(point: Facts) -> int:
    return int(point["nonzeros"])


def _with_titles(svg: str, points: list[Facts]) -> str:
    for point in points:
        mark = f'<g id="point-{point["job"]}">'
        svg = svg.replace(mark, f"{mark}\n<title>{escape(summary(point))}</title>")
    return svg
