"""Why a number of a result could not be measured, in words for the job's notes, its summary and its report. No torch.

result.json has `not_measured` {what: why} where the engine knows a reason that its other numbers do not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extractor.spec.claims import loss_shares

CONSTANT_TEXT = 0.05  # nats per token; a bigram model with less predicts nearly every token of the held-out text
_EARLIER = "the version that made this result did not record why"


def why_no_share(result: Mapping[str, Any]) -> str | None:
    """Why it is not known how much of the dense model is explained; None where it is. result: the content of result.json."""
    bridge = result.get("bridge")
    if not bridge:
        return reason(result, "bridge", "there is no dense model beside the one that was pruned")
    if bridge.get("explained") or loss_shares(bridge):
        return None
    if not {"recovered", "loss_recovered"} & bridge.keys() or bridge.get("bigram_loss") is None or bridge.get("dense_loss") is None:
        return _EARLIER
    return no_gain(bridge)


def no_gain(bridge: Mapping[str, Any]) -> str:
    """The line for a dense model that is no better than bigrams; `bridge` is the content of faithfulness.json."""
    return (
        f"on the held-out text the dense model ({bridge['dense_loss']:.3f} nats per token) is no better than a bigram model "
        f"({bridge['bigram_loss']:.3f}); choose another text with --corpus or --dataset"
    )


def is_constant(bridge: Mapping[str, Any]) -> bool:
    """Whether the held-out text is the same everywhere; `bridge` is the content of faithfulness.json."""
    return bridge.get("bigram_loss") is not None and bridge["bigram_loss"] < CONSTANT_TEXT


def why_no_steering(result: Mapping[str, Any]) -> str | None:
    """Why no node's edit of the dense model was measured; None where one was. result: the content of result.json."""
    if result.get("steering"):
        return None
    return reason(result, "steering", _EARLIER if result.get("bridge") else "there is no dense model beside the one that was pruned")


def why_no_causal(result: Mapping[str, Any]) -> str | None:
    """Why effects were not compared with those in the dense model; None where they were. result: the content of result.json."""
    if result.get("causal"):
        return None
    return reason(result, "steering", _EARLIER if result.get("bridge") else "there is no dense model beside the one that was pruned")


def reason(result: Mapping[str, Any], what: str, otherwise: str) -> str:
    """What the engine recorded of a missing number, or `otherwise`."""
    return str((result.get("not_measured") or {}).get(what) or otherwise)
