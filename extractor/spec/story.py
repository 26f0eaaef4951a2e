"""The claims of `validation.mechanism` as sentences: one wording for the page and the command line. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of a prompt, in order.
PLACES = {"difference": "at the token that differs", "after": "between that token and the last", "end": "at the last token"}
_FROM = {"end": "from the last token", "after": "from the tokens between the two"}
_AS_MUCH = 0.005  # difference of `moved` that does not show
_SOME_NODES = 4  # named in a sentence; of more the number is given as well
FAILED = "This does not hold on held-out prompts."

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Notation:
    """How a sentence shows a token's text, the id of a node, a loss in nats and a fraction. A number may be None: not measured."""

    token: Callable[[str], str]
    node: Callable[[str], str]
    nats: Callable[[Any], str]
    percent: Callable[[Any], str]


@dataclass(frozen=True)
class ToldClaim:
    """A claim as a sentence. holds: on held-out pairs; None for the difference of the prompts, which describes them and cannot fail."""

    text: str
    holds: bool | None


def mechanism_of(result: Facts) -> Facts | None:
    """`validation.mechanism` of the content of result.json; None where it was not measured."""
    return (result.get("validation") or {}).get("mechanism") or None


def tell(found: Facts, notation: Notation) -> list[ToldClaim]:
    """The claims of a mechanism as sentences, in its order. Raises KeyError, TypeError or ValueError where it is malformed."""
    teller = _Teller(found, notation)
    return [ToldClaim(teller.sentence(claim), None if claim["kind"] == "difference" else bool(claim["holds"])) for claim in found["claims"]]


def no_story(found: Facts, notation: Notation) -> tuple[str, str] | None:
    """('No simple story was found', how far the named nodes move the answer; what follows); None where the claims hold."""
    if found["holds"]:
        return None
    together = found["claims"][-1]
    moved = f": the nodes named here move {notation.percent(together['moved'])} of the answer together" if together["nodes"] else ""
    return "No simple story was found", f"{moved}. What was measured:"


def how_measured(found: Facts) -> str:
    """On which prompts the claims were measured, and what moved and flipped mean."""
    return (
        f"Chosen on other prompts, measured on {found['pairs']} held-out pairs in the circuit alone. Moved: how far the logit difference "
        "goes towards that of the other prompt of the pair when these nodes take their values from it; flipped: right answers that change."
    )


def plain_percent(value: Any) -> str:
    """A fraction as '44.9%'; a fraction below 1 never shows as 100%, and one that is not known as 'unknown'."""
    if value is None or not math.isfinite(value):
        return "unknown"
    text = f"{100 * value:.1f}".removesuffix(".0")
    return f"{'99.9' if text == '100' and value < 1 else text}%"


def plain_nats(value: Any) -> str:
    """A loss as '0.110', or 'unknown'."""
    if value is None or not math.isfinite(value):
        return "unknown"
    return "under 0.001" if 0 <= value < 0.001 else f"{value:.3f}"


@dataclass(frozen=True)
class _Teller:
    found: Facts
    show: Notation

    def sentence(self, claim: Facts) -> str:
        kinds = {"difference": self._difference, "mlp": self._mlp, "head": self._head, "node": self._node}
        return (kinds | {"write": self._write, "together": self._together})[claim["kind"]](claim)

    def _difference(self, claim: Facts) -> str:
        share, tokens = claim["one_token"], claim["tokens"]
        if not claim["holds"] or not tokens:
            return f"The two prompts of a pair differ in more than one token ({self.show.percent(1 - share)} of the pairs)."
        first, second, common = tokens[0]
        which = f"{self.show.token(first)} before the first answer, {self.show.token(second)} before the second"
        which = which if common == 1 else f"{which} in {self.show.percent(common)} of the pairs"
        distance = round(claim["before_end"])
        where = "it is the last token" if distance == 0 else f"{distance} token{'s' if distance > 1 else ''} before the last, at the median"
        return f"The two prompts of a pair differ in one token: {which}; {where}."

    def _mlp(self, claim: Facts) -> str:
        neurons = f"{len(claim['nodes'])} neurons" if len(claim["nodes"]) > 1 else "one neuron"
        return f"The MLP of layer {claim['layer']} has {neurons} in the circuit, {self._names(claim['nodes'])}: {self._effect(claim)}."

    def _head(self, claim: Facts) -> str:
        layer, head = claim["head"]
        differs = "token that differs" if self.found["claims"][0]["holds"] else "tokens that differ"
        looks = [f"{_FROM[place]} {self._share(claim, place)}" for place, a in claim["attention"].items() if a is not None]
        attention = f"gives {' and '.join(looks)} of its attention to the {differs}" if looks else "has no token to look from"
        brings = f"brings what {self._names(claim['nodes'])} hold there"
        return f"Head {head} of layer {layer} {attention}, and {brings}: {self._effect(claim)}."

    def _share(self, claim: Facts, place: str) -> str:
        """'30 % (60 % before the first answer, 5 % before the second)'; earlier versions measured the mean only."""
        both = (claim.get("attention_by_answer") or {}).get(place)
        mean = self.show.percent(claim["attention"][place])
        if both is None or None in both:
            return mean
        first, second = map(self.show.percent, both)
        return f"{mean} ({first} before the first answer, {second} before the second)"

    def _node(self, claim: Facts) -> str:
        auc = claim["auc"]
        which = "first" if auc is not None and auc > 0.5 else "second"
        apart = "AUC not known" if auc is None else f"AUC {max(auc, 1 - auc):.2f}, higher before the {which} answer"
        return f"{self._names(claim['nodes'])} tells the two prompts apart {PLACES[claim['place']]} ({apart}): {self._effect(claim)}."

    def _write(self, claim: Facts) -> str:
        verb = "writes" if len(claim["nodes"]) == 1 else "write"
        share = "all" if claim["share"] > 0.995 else self.show.percent(claim["share"])
        known = any(other["nodes"] == claim["nodes"] for other in self.found["claims"] if other["kind"] == "node")
        effect = "" if known else f": {self._effect(claim)}"
        what = f"{share} of the logit difference directly (share of its variance)"
        return f"At the last token {self._names(claim['nodes'])} {verb} {what}{effect}."

    def _together(self, claim: Facts) -> str:
        if not claim["nodes"]:
            return "No MLP, no head and no single node moves a fifth of the answer."
        alone = max((one for one in self.found["claims"] if one["kind"] == "node"), key=lambda one: one["moved"], default=None)
        enough = alone is not None and alone["moved"] >= claim["moved"] - _AS_MUCH
        beside = f" ({self._names(alone['nodes'])} alone does as much)" if alone is not None and enough else ""
        return f"All {len(claim['nodes'])} nodes named here together{beside}: {self._effect(claim)}."

    def _effect(self, claim: Facts) -> str:
        which, losses = "it" if len(claim["nodes"]) == 1 else "them", (claim["without"], self.found["loss"])
        without, now = map(self.show.nats, losses)
        moved, flipped = self.show.percent(claim["moved"]), self.show.percent(claim["flipped"])
        return f"moved {moved}, flipped {flipped}; without {which} the loss is {without} nats instead of {now}"

    def _names(self, nodes: Sequence[str]) -> str:
        shown = nodes if len(nodes) <= _SOME_NODES + 1 else nodes[:_SOME_NODES]
        more = f" and {len(nodes) - len(shown)} more nodes" if len(shown) < len(nodes) else ""
        return ", ".join(map(self.show.node, shown)) + more


PLAIN = Notation(repr, str, plain_nats, plain_percent)


def best_place(aucs: Mapping[str, float | None]) -> tuple[str, float] | None:
    """The place of a prompt at which a node separates the answers best, the last of equal ones, and its AUC there; None without any.

    aucs   {place: AUC, or None where it was not measured}, of `validation.mechanism`
    """
    known = [(place, value) for place in reversed(PLACES) if (value := aucs.get(place)) is not None]
    return max(known, key=lambda one: math.floor(1e6 * abs(one[1] - 0.5)), default=None)
