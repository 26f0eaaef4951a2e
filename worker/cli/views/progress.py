"""What a job is doing, as text: its stage, its phase, how far it is, how long it has run and will run."""

from __future__ import annotations

from typing import Any

from extractor.jobs.cost.units import show_roughly

MAX_SECONDS = 1e10  # a longer duration is not credible and is not shown

Event = dict[str, Any]


def describe_stage(event: Event) -> str:
    """'[2/4] bridge'."""
    return f"{describe_place(event)} {event.get('stage')}"


def describe_place(event: Event) -> str:
    """'[2/4]'; '[..]' where the event does not say it."""
    return f"[{event['index']}/{event['of']}]" if event.get("index") and event.get("of") else "[..]"


def describe_progress(event: Event) -> str:
    """'robust edges 70/144, loss 2.31, 12,300 tokens/s, 5 min 40 s elapsed, about 2 min left', of what is known."""
    return ", ".join(filter(None, [describe_work(event), *_metrics(event), describe_times(event)]))


def describe_work(event: Event) -> str:
    """'robust edges 70/144'; '' where neither phase nor count is known."""
    return " ".join(filter(None, [str(event.get("phase") or ""), describe_count(event)]))


def describe_count(event: Event) -> str:
    """'70/144'; '' without a count, or where it counts to one."""
    step, total = event.get("step"), event.get("total")
    return f"{step}/{total}" if isinstance(step, (int, float)) and isinstance(total, (int, float)) and total > 1 else ""


def describe_loss(event: Event) -> str:
    """'loss 2.31'; '' outside of trainings."""
    metrics = event.get("metrics")
    return f"loss {show_number(metrics['loss'])}" if isinstance(metrics, dict) and "loss" in metrics else ""


def describe_times(event: Event) -> str:
    """'5 min 40 s elapsed, about 2 min left' of the whole job. Engines of earlier versions tell the time left of the present count only."""
    if "total_seconds_left" not in event and "elapsed_seconds" not in event:
        left = seconds(event, "seconds_left")
        return f"{duration(left)} left in this stage" if left is not None else ""
    elapsed, left = seconds(event, "elapsed_seconds"), seconds(event, "total_seconds_left")
    parts = ("" if elapsed is None else f"{duration(elapsed)} elapsed", "" if left is None else f"about {show_roughly(left)} left")
    return ", ".join(filter(None, parts))


def seconds(event: Event, name: str) -> float | None:
    """A duration of an event; None where it is missing or not credible."""
    value = event.get(name)
    return value if isinstance(value, (int, float)) and 0 <= value < MAX_SECONDS else None


def duration(seconds: float) -> str:
    """'1 h 20 min'; '' for a duration that is not credible."""
    if not abs(seconds) < MAX_SECONDS:
        return ""
    whole = int(seconds)
    for size, name, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {part}"
    return f"{whole} s"


def show_number(value: Any) -> str:
    """Four digits of a float, any other value as it is; '' for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _metrics(event: Event) -> list[str]:
    """'loss 2.31' and '12,300 tokens/s'. All other metrics are in metrics.jsonl and --json."""
    metrics = event.get("metrics")
    if not isinstance(metrics, dict):
        return []
    rate = metrics.get("tokens_per_s")
    return [describe_loss(event), f"{rate:,.0f} tokens/s" if isinstance(rate, (int, float)) else ""]
