"""The page of the whole service: tables, printed once or redrawn every second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from extractor.jobs.cost.units import show_roughly
from worker.cli.views.job import COLOURS, age
from worker.cli.views.progress import duration, seconds
from worker.cli.views.tables import PlainTable, styled

REDRAW_SECONDS = 1.0
BAR_WIDTH = 8

Facts = dict[str, Any]


def show_once(facts: Facts, limit: int) -> None:
    """Print the page."""
    Console().print(page(facts, limit), highlight=False)


def show_live(poll: Callable[[], Facts | None], limit: int, console: Console) -> None:
    """Redraw the page until Ctrl-C. poll: returns the current facts, or None while the server does not answer."""
    shown: RenderableType = ""
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                facts = poll()
                if facts is None:
                    live.update(Group(styled("the server does not answer; retrying", style="red"), shown), refresh=True)
                else:
                    shown = page(facts, limit)
                    live.update(shown, refresh=True)
                time.sleep(REDRAW_SECONDS)
        except KeyboardInterrupt:
            return


def page(facts: Facts, limit: int) -> Group:
    """The page: a header, then at most `limit` workers and `limit` open jobs."""
    now = time.time()
    running = [job for job in facts["open"] if job["state"] == "running"]
    queued = [job for job in facts["open"] if job["state"] == "queued"]
    parts: list[RenderableType] = [_head(facts)]
    parts += _section(_workers(facts["workers"][:limit], now), len(facts["workers"]), limit, "workers")
    if running:
        parts += _section(_running(running), facts["jobs"]["running"], limit, "running")
    if queued:
        parts += _section(_queued(queued), facts["jobs"]["queued"], len(queued), "queued")
    return Group(*parts)


def _head(facts: Facts) -> Text:
    text = styled(f"server   {facts['server']}{' (embedded)' if facts['embedded'] else ''}")
    text.append("\njobs     ")
    numbers = [styled(f"{number} {state}", style=COLOURS[state] if number else "") for state, number in facts["jobs"].items()]
    text.append_text(styled("  ").join(numbers))
    lengths = "  ".join(f"{number} {priority}" for priority, number in facts["queues"].items())
    wait = f"; oldest waiting: {duration(facts['longest_wait_seconds'])}" if facts["jobs"]["queued"] else ""
    text.append(f"\nqueues   {lengths}{wait}")
    if facts["out_of_reach"]:
        what = "queued job needs" if facts["out_of_reach"] == 1 else "queued jobs need"
        text.append(f"\n         {facts['out_of_reach']} {what} more memory than any live worker has", style="yellow")
    if not facts["workers"]:
        text.append("\nworkers  none; start one with `extract worker`")
    if not facts["open"]:
        text.append("\nno open jobs; `extract list` shows ended jobs")
    return text


def _section(table: PlainTable, total: int, limit: int, what: str) -> list[RenderableType]:
    if not table.row_count:
        return []
    more = [styled(f"and {total - limit} more {what}", style="dim")] if total > limit else []
    return ["", table, *more]


def _workers(workers: list[Facts], now: float) -> PlainTable:
    table = _table("worker", "device", "job", "memory", "GPU", "up", "seen")
    for worker in workers:
        table.add_row(
            worker["name"],
            worker["device"].removeprefix("NVIDIA "),
            worker["job"] or styled("idle", style="dim"),
            _size(worker["memory"]),
            _size(worker["gpu_memory"]),
            duration(max(0, now - worker["started"])) if worker["started"] else "",
            f"{max(0, now - worker['seen']):.0f} s",
        )
    return table


def _running(jobs: list[Facts]) -> PlainTable:
    table = _table("job", "worker", "stage", "", "", "loss", "tokens/s", "left", "attempt")
    short = {job["worker"].partition("@")[0] for job in jobs if job["worker"]}
    is_short = len(short) == len(jobs)  # in containers all workers may have the same pid
    for job in jobs:
        progress, metrics, worker = job["progress"], job["metrics"], job["worker"] or ""
        done, total = progress.get("step") or 0, progress.get("total") or 0
        stage = f"{progress.get('index')}/{progress.get('of')} {progress['stage']}" if "stage" in progress else ""
        phase, left = progress.get("phase"), seconds(progress, "total_seconds_left")
        if left is None:  # engines of earlier versions tell that of the present count only
            left = seconds(progress, "seconds_left")
        table.add_row(
            job["job"],
            worker.partition("@")[0] if is_short else worker,
            styled("cancelling", style="yellow") if job["cancelling"] else ", ".join(filter(None, [stage, phase])),
            ProgressBar(total=max(total, 1), completed=done, width=BAR_WIDTH),
            f"{100 * done / total:.0f} %" if total else "",
            _figure(metrics.get("loss"), ".4g"),
            _figure(metrics.get("tokens_per_s"), ",.0f"),
            "" if left is None else show_roughly(left),
            str(job["attempt"]),
        )
    return table


def _queued(jobs: list[Facts]) -> PlainTable:
    table = _table("job", "task", "model", "priority", "age", "attempts")
    for job in jobs:
        model = Path(job["model"]).name if job["model"] else ""
        table.add_row(job["job"], job["task"] or job["kind"], model, job["priority"], age(job["created"]), str(job["attempt"]))
    return table


def _table(*names: str) -> PlainTable:
    table = PlainTable(padding=(0, 1, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _figure(value: Any, style: str) -> str:
    """A formatted metric, '' if it is not a number."""
    return format(value, style) if isinstance(value, (int, float)) else ""


def _size(count: int) -> str:
    return "" if not count else f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
