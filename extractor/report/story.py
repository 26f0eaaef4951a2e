""" "How it works": the claims of `validation.mechanism` as sentences, every node a link to its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from extractor.report.html import nats, percent, plain, section, token

_PLACES = {"difference": "at the token that differs", "after": "between that token and the last", "end": "at the last token"}
_AS_MUCH = 0.005  # difference of `moved` that does not show
_SOME_NODES = 4  # named in a sentence; of more the number is given as well


def story_section(result: Mapping[str, Any]) -> str:
    """The section; empty where the mechanism was not measured."""
    found = (result.get("validation") or {}).get("mechanism")
    if not found:
        return ""
    claims = found["claims"]
    steps = "".join(
        f"<li>{_sentence(claim, found)}{'' if claim['holds'] or claim['kind'] == 'difference' else _FAILED}</li>" for claim in claims
    )
    simple = "" if found["holds"] else f"<p>{_no_story(found)}</p>"
    note = (
        f"Chosen on other prompts, measured on {found['pairs']} held-out pairs in the circuit alone. Moved: how far the logit difference "
        "goes towards that of the other prompt of the pair when these nodes take their values from it; flipped: right answers that change."
    )
    return section("story", "How it works", f'{simple}<ol class="story card">{steps}</ol><p class="note">{note}</p>')


_FAILED = ' <strong class="why">This does not hold on held-out prompts.</strong>'


def _no_story(found: Mapping[str, Any]) -> str:
    together = found["claims"][-1]
    moved = f": the nodes named here move {percent(together['moved'])} of the answer together" if together["nodes"] else ""
    return f"<strong>No simple story was found</strong>{moved}. What was measured:"


def _sentence(claim: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    return {"difference": _difference, "head": _head, "node": _node, "write": _write, "together": _together}[claim["kind"]](claim, found)


def _difference(claim: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    share, tokens = claim["one_token"], claim["tokens"]
    if not claim["holds"] or not tokens:
        return f"The two prompts of a pair differ in more than one token ({percent(1 - share)} of the pairs)."
    first, second, common = tokens[0]
    which = f"{token(first)} before the first answer, {token(second)} before the second"
    which = which if common == 1 else f"{which} in {percent(common)} of the pairs"
    distance = round(claim["before_end"])
    where = "it is the last token" if distance == 0 else f"{distance} token{'s' if distance > 1 else ''} before the last, at the median"
    return f"The two prompts of a pair differ in one token: {which}; {where}."


def _head(claim: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    layer, head = claim["head"]
    differs = "token that differs" if found["claims"][0]["holds"] else "tokens that differ"
    looks = [f"{_FROM[place]} {percent(a)}" for place, a in claim["attention"].items() if a is not None]
    attention = f"gives {' and '.join(looks)} of its attention to the {differs}" if looks else "has no token to look from"
    return f"Head {head} of layer {layer} {attention}, and brings what {links(claim['nodes'])} hold there: {_effect(claim, found)}."


_FROM = {"end": "from the last token", "after": "from the tokens between the two"}


def _node(claim: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    auc = claim["auc"]
    which = "first" if auc is not None and auc > 0.5 else "second"
    apart = "AUC not known" if auc is None else f"AUC {max(auc, 1 - auc):.2f}, higher before the {which} answer"
    return f"{links(claim['nodes'])} tells the two prompts apart {_PLACES[claim['place']]} ({apart}): {_effect(claim, found)}."


def _write(claim: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    verb = "writes" if len(claim["nodes"]) == 1 else "write"
    share = "all" if claim["share"] > 0.995 else percent(claim["share"])
    known = any(other["nodes"] == claim["nodes"] for other in found["claims"] if other["kind"] == "node")
    effect = "" if known else f": {_effect(claim, found)}"
    return f"At the last token {links(claim['nodes'])} {verb} {share} of the logit difference directly (share of its variance){effect}."


def _together(claim: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if not claim["nodes"]:
        return "No head and no single node moves a fifth of the answer."
    alone = max((one for one in found["claims"] if one["kind"] == "node"), key=lambda one: one["moved"], default=None)
    enough = alone is not None and alone["moved"] >= claim["moved"] - _AS_MUCH
    beside = f" ({links(alone['nodes'])} alone does as much)" if alone is not None and enough else ""
    return f"All {len(claim['nodes'])} nodes named here together{beside}: {_effect(claim, found)}."


def _effect(claim: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    cost = (
        f"without {'it' if len(claim['nodes']) == 1 else 'them'} the loss is {nats(claim['without'])} nats instead of {nats(found['loss'])}"
    )
    return f"moved {percent(claim['moved'])}, flipped {percent(claim['flipped'])}; {cost}"


def links(nodes: Sequence[str]) -> str:
    """Nodes as links to their cards."""
    shown = nodes if len(nodes) <= _SOME_NODES + 1 else nodes[:_SOME_NODES]
    more = f" and {len(nodes) - len(shown)} more nodes" if len(shown) < len(nodes) else ""
    return ", ".join(map(node_link, shown)) + more


def node_link(node: str) -> str:
    return f'<a class="id" href="#node={plain(node)}"><code class="id">{plain(node)}</code></a>'
