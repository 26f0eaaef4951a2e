"""The report's section on steering: whether an edit of circuit nodes changes the dense model's answer. Plots, examples, a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from extractor.report.html import count, identifier, percent, plain, scroll, section, spaced, table, token, track
from extractor.report.picture import short_name
from extractor.spec.unmeasured import why_no_steering

FLIPPED = 0.5  # probability of the other answer, against the right one, above which the answer counts as changed
_MAX_NODES = 8  # rows of the table
_WIDTH, _HEIGHT = 360, 236  # user units of the plot; few, so that its text stays legible on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 44
_HEAD = ("node", "edited value", "other answer")
_EDITED = {"read": "the input of one sublayer", "stream": "the residual stream from this site on"}


def steering_section(result: dict) -> str:
    """The section as HTML for result["steering"] (see `extractor.bridges.steering.evaluate`); without it, why there is none."""
    found, agreement = result.get("steering"), _causal(result)
    if not found:
        return section("steering", "Steering", f"{agreement}<p>Not measured: {plain(why_no_steering(result))}.</p>")
    model, together = plain(short_name(result["model"])), found.get("together")
    cards = _card(f"One node: {identifier(found['node'])}", found, found["strengths"])
    if together:
        cards += _card(
            f"{count(len(together['nodes']), 'node')} of {together['width']} at {identifier(together['site'])}",
            together,
            found["strengths"],
        )
    note = (
        f"An edit of the sparse model, decoded into {model}: the node&rsquo;s change from the presented prompt to the other prompt of its "
        "pair, times its decoder direction, times the strength. Random: edits of the same length in random directions, at every token. "
        f"Means over the {found['prompts']} of {2 * found['pairs']} held-out prompts that {model} answers correctly without an edit. "
        "Probability: of the other answer against the right one."
    )
    claims = agreement + _few(found, model)
    body = f'{claims}<p>{_finding(found, model)}</p>{_note(note)}<div class="examples">{cards}</div>{_nodes(found, result)}'
    return section("steering", f"Steering {model}", body)


def _causal(result: dict) -> str:
    """Whether edits do in the dense model what they do in the sparse one; '' where that was not measured."""
    found = result.get("causal")
    if not found:
        return ""
    nodes, sets, random, model = found["nodes"], found.get("sets"), found.get("random"), plain(short_name(result["model"]))
    text = (
        f"<strong>Causal agreement.</strong> Each of {count(nodes['count'], 'node')} takes its value of the pair&rsquo;s other prompt in "
        f"the sparse model, and the same change is carried into {model}: the effects on the logit difference correlate by "
        f"{_two(nodes['correlation'])}, with slope {_two(nodes['slope'])}; {percent(nodes['same_sign'])} of the effects that matter have "
        "the same sign."
    )
    text += f" All nodes of a site together: {_two(sets['correlation'])}, slope {_two(sets['slope'])}." if sets else ""
    text += f" Random nodes of the same sites: {_two(random['correlation'])}." if random else ""
    return f"<p>{text}</p>"


def _few(found: dict, model: str) -> str:
    """What sets of at most five nodes do, chosen in the circuit and in the whole sparse model; '' in results of older versions."""
    return "".join(
        _set(found.get(name), model, where) for name, where in (("few", "of the circuit"), ("few_of_model", "of the sparse model"))
    )


def _set(few: dict | None, model: str, where: str) -> str:
    if not few or not few.get("held_out"):
        return ""
    names, held_out, size = ", ".join(identifier(node) for node, _ in few["nodes"]), few["held_out"], len(few["nodes"])
    held = "" if where == "of the circuit" else f", of which the circuit holds {few['in_circuit']}"
    text = (
        f"<strong>{count(size, 'node')} {where}</strong> ({names}{held}), chosen on other prompts, {_verb(held_out['flipped'])} {model}: "
        f"{_flips(held_out)} of {held_out['prompts']} right answers change on held-out prompts; with the strongest of random edits, chosen "
        f"alike, {percent(held_out['random_flipped'])}."
    )
    sizes = held_out.get("by_size", ())
    text += f" The first {', '.join(map(str, range(1, size)))} of them: {', '.join(map(percent, sizes[:-1]))}." if len(sizes) > 1 else ""
    shifted = few.get("shifted")
    if shifted:
        text += f" On shifted prompts {_flips(shifted)} of {shifted['prompts']}, random {percent(shifted['random_flipped'])}."
    return f"<p>{text}</p>"


def _verb(flipped: float) -> str:
    return "turn" if flipped > FLIPPED else "move"


def _flips(measured: dict) -> str:
    low, high = measured["interval"]
    return f"{percent(measured['flipped'])} (95&nbsp;% interval {percent(low)} to {percent(high)})"


def _two(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _finding(found: dict, model: str) -> str:
    """The result in words: one node changes the answer, else all nodes of one site together, else neither."""
    before, after = found["probability"][0], found["probability"][-1]
    moves = f"from {_percent(before)} to {_percent(after)} probability of the other answer"
    one = f"In the mean over prompts: One node, {identifier(found['node'])}, moves {model} {moves}"
    if after > FLIPPED:
        return f"{one}: this single edit changes the answer. {_against_random(found)}"
    together = found.get("together")
    if not together:
        return f"{one}, which does not change the answer. {_against_random(found)}"
    many, reached = (
        f"All {len(together['nodes'])} circuit nodes at {identifier(together['site'])} together reach",
        together["probability"][-1],
    )
    enough = "changes the answer" if reached > FLIPPED else "does not change it either"
    return f"{one}; no single node changes the answer. {many} {_percent(reached)}, which {enough}. {_against_random(together)}"


def _against_random(curves: dict) -> str:
    mean, worst = curves["random"][-1], curves["random_worst"][-1]
    return f"Random edits of the same length reach {_percent(mean)} on average and {_percent(worst)} at most."


def _card(title: str, curves: dict, strengths: Sequence[float]) -> str:
    flipped, all_tokens = _percent(curves["flipped"][-1]), _percent(curves["vocabulary"][-1])
    facts = (
        f"At full strength the answer changes on {flipped} of the prompts; among all tokens the other answer has {all_tokens} probability."
    )
    where = f"The edit changes {_EDITED[curves['way']]}."
    example = _example(curves["example"]) if curves.get("example") else ""
    return f'<div class="card"><h3 style="margin:0 0 12px">{title}</h3>{_plot(curves, strengths)}{_note(f"{facts} {where}")}{example}</div>'


def _plot(curves: dict, strengths: Sequence[float]) -> str:
    """A plot of the probability of the other answer against the strength of the edit."""
    across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> str:
        return f"{_LEFT + across * x:.1f},{_TOP + up * (1 - y):.1f}"

    def line(values: Sequence[float]) -> str:
        return " ".join(at(x, y) for x, y in zip(strengths, values, strict=True))

    band = f"{line(curves['random_worst'])} {at(strengths[-1], 0)} {at(strengths[0], 0)}"
    bottom, middle = _TOP + up, _LEFT + across / 2
    grid = "".join(
        f'<text x="{_LEFT - 6}" y="{_TOP + up * (1 - y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        f'<path d="M{at(0, y)} L{at(1, y)}" stroke="var(--line)"{_DASHED if y == FLIPPED else ""}/>'
        for y in (0, 0.5, 1)
    )
    ticks = "".join(f'<text x="{_LEFT + across * x:.1f}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>' for x in (0, 0.5, 1))
    names = (
        f'<text x="{middle:.1f}" y="{bottom + 34}" text-anchor="middle">strength of the edit</text>'
        f'<text transform="translate(12 {_TOP + up / 2:.1f}) rotate(-90)" text-anchor="middle">other answer</text>'
    )
    drawn = (
        f'<polygon points="{band}" fill="var(--random)" fill-opacity=".3"/>'
        f'<polyline points="{line(curves["random"])}" fill="none" stroke="var(--random)" stroke-width="2"/>'
        f'<polyline points="{line(curves["probability"])}" fill="none" stroke="var(--circuit)" stroke-width="2.5" stroke-linejoin="round"/>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_summary(curves)}" style="display:block;width:100%;height:auto;'
        f'max-width:560px" font-size="12" fill="var(--soft)">{grid}{ticks}{names}{drawn}</svg>{_LEGEND}'
    )


_DASHED = ' stroke-dasharray="4 4" style="stroke:var(--soft)"'
_LEGEND = (
    '<p class="note" style="display:flex;flex-wrap:wrap;gap:2px 16px;margin:2px 0 8px">'
    + "".join(
        f'<span style="white-space:nowrap"><i style="display:inline-block;width:18px;height:{height}px;vertical-align:middle;'
        f'background:var(--{colour});opacity:{opacity}"></i> {name}</span>'
        for name, colour, height, opacity in (
            ("the edit", "circuit", 3, 1),
            ("random mean", "random", 2, 1),
            ("up to the largest random", "random", 10, 0.3),
        )
    )
    + "</p>"
)


def _summary(curves: dict) -> str:
    """The plot in a sentence, for screen readers."""
    first, last = curves["probability"][0], curves["probability"][-1]
    return (
        f"Probability of the other answer against the strength of the edit: from {first:.3f} at 0 to {last:.3f} at full strength; "
        f"random edits end at {curves['random'][-1]:.3f}, the largest at {curves['random_worst'][-1]:.3f}."
    )


def _example(example: dict) -> str:
    """A prompt with the probability of the other answer before and after the edit."""
    prompt = '<span class="space">↵</span>\n'.join(map(spaced, example["prompt"].split("\n")))
    answer, other = token(example["answer"]), token(example["other"])
    rows = "".join(
        f'<dt>{name}</dt><dd>{track(p, 1.0, kind)}</dd><dd class="number">{_percent(p)}</dd>'
        for name, p, kind in (("before", example["before"], "full"), ("after", example["after"], "circuit"))
    )
    return f'<pre>{prompt}</pre><p class="note">{other} against {answer}, before and after the edit</p><dl class="bars">{rows}</dl>'


def _nodes(found: dict, result: dict) -> str:
    """The nodes whose edits change the dense model's answer most, each edited alone."""
    shown = found["tried"][:_MAX_NODES]
    rows = [(identifier(node), _EDITED[way], _percent(value)) for node, value, way in shown]
    note = f"Each node edited alone at full strength, on separate prompts; best {len(shown)} of {len(found['tried'])} nodes."
    fixed = (result.get("circuit") or {}).get("nodes", 0) - len(found["tried"])
    if fixed > 0:
        note += f" {count(fixed, 'node')} of the circuit cannot be edited: queries, keys and position channels."
    return f'<p class="note" style="margin-top:14px">{note}</p>{scroll(table(_HEAD, rows, numbers={2}), "Steering by node")}'


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _percent(value: Any) -> str:
    return "&lt;0.1&nbsp;%" if value is not None and 0 < value < 0.001 else percent(value)
