"""The report's part on controls that can succeed: null searches, random live circuits, the adversary, interchange, the field's numbers.

Reads result["validation"]; leaves out what an older result lacks. See `extractor.validation`.
"""

from __future__ import annotations

from extractor.report.html import count, nats, percent, scroll, table

_SEARCHES = {
    "task": "The task itself, ranked by attribution, sufficiency only",
    "inverted": "The right answers exchanged",
    "coin": "The right answers of each pair exchanged by a coin",
    "random_weights": "The task, weights permuted within each matrix",
}


def controls_part(result: dict) -> str:
    """The part as HTML; empty where nothing of it was measured."""
    found = result.get("validation") or {}
    sentences = [_random(found.get("random_circuits")), _adversary(found), _curve(found.get("faithfulness"))]
    text = " ".join(filter(None, sentences))
    return _searches(found.get("null_searches")) + (f"<p>{text}</p>" if text else "")


def _searches(found: dict | None) -> str:
    if not found:
        return ""
    rows = [
        (
            _SEARCHES[kind],
            standard,
            *(f"{one[name]:,}" for name in ("nodes", "edges")),
            nats(one["loss"]),
            "yes" if one["met"] else "no circuit",
        )
        for standard, searches in found.items()
        for kind, one in searches.items()
    ]
    head = ("quick search", "standard", "nodes", "edges", "nats", "target met")
    note = (
        "The same quick search on the task, and where there is nothing to find. A circuit of like size there would say that the size of "
        "this circuit means little; where none is found, the row has the best of the search."
    )
    drawn = table(head, rows, numbers={2, 3, 4})
    return f'<h3 id="controls">Controls that can succeed</h3><p class="note">{note}</p>{scroll(drawn, "Controls")}'


def _random(found: dict | None) -> str:
    if not found:
        return ""
    enough, needed, least = found["sufficiency"], found["necessity"], found["minimality"]
    text = (
        f"Against {found['draws']} random live circuits with as many edges, at the means and calibrated: p = {enough['p']:.3f} that one "
        f"alone is as good (best {nats(enough['best'])} nats), p = {needed['p']:.3f} that the model misses one as much (most "
        f"{nats(needed['best'])} nats)"
    )
    if least:
        text += f"; {least['needed']} of {count(least['edges'], 'edge')} cost more when removed than a random edge does (p at most 0.05)"
    return text + "."


def _adversary(found: dict) -> str:
    worst, rows = found.get("adversarial"), found.get("interchange")
    if not worst or not rows:
        return ""
    text = (
        f"Where an adversary sets each ablated node between its mean and its own value, the same share for all prompts, the circuit has "
        f"{nats(worst['loss'])} nats after {worst['steps']} steps and is right on {percent(worst['accuracy'])}."
    )
    share, loss = max(rows, key=lambda row: row[1])
    return (
        f"{text} With {percent(share)} of its nodes set to their values in the full model it has {nats(loss)} nats, the most of all shares."
    )


def _curve(found: dict | None) -> str:
    if not found:
        return ""
    parts = [
        f"{standard}: {kind}s CPR {one['cpr']['log']:.2f}, CMD {one['cmd']['log']:.2f}"
        for standard, kinds in found.items()
        for kind, one in kinds.items()
        if one["cpr"]
    ]
    return f"Attribution alone, over ten sizes (log scale): {'; '.join(parts)}."
