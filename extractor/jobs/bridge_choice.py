"""The settings of a bridging by the dense model's config.json: its context, and whether it starts from the dense weights. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from extractor.jobs.cost.bridging import bridging_cost, longest_prompt, start_obstacle
from extractor.models.checks import SPARSE_TYPE
from extractor.models.shape import DenseShape
from extractor.spec.fields import changed
from extractor.spec.presets import bridge_spec
from extractor.spec.schema import BridgeSpec


@dataclass(frozen=True)
class BridgeChoice:
    """The settings of a bridging before its dense model is known.

    preferred   the settings of the preset with the user's changes
    otherwise   those of a dense model whose weights training cannot start from; None where the user chose the start
    by_user     the fields that the user set
    """

    preferred: BridgeSpec
    otherwise: BridgeSpec | None = None
    by_user: frozenset[str] = frozenset()

    @classmethod
    def of(cls, preset: str, init: str | None, changes: Mapping[str, str]) -> BridgeChoice:
        """From the options of a request. Raises SpecError."""
        preferred = changed(bridge_spec(preset, init), changes, "bridge.")
        is_settled = init is not None or preferred.init == "scratch" or preferred.layers is not None
        otherwise = None if is_settled else changed(bridge_spec(preset, "scratch"), changes, "bridge.")
        return cls(preferred, otherwise, frozenset(changes))

    def _why_otherwise(self, config: Mapping[str, Any]) -> str:
        """Why the model with this config.json is bridged with the settings `otherwise`; '' where it is not. Raises UnsupportedModel."""
        if self.otherwise is None or config.get("model_type") == SPARSE_TYPE:
            return ""
        why = start_obstacle(config, DenseShape.of(config), self._short(config, self.preferred))
        return f"training starts from scratch (--init scratch), not from the dense model's weights: {why}" if why else ""

    def beside(self, config: Mapping[str, Any], prunes_dense: bool, on_note: Callable[[str], None]) -> BridgeSpec:
        """The settings beside the model with this config.json, checked; on_note receives a line where they are those `otherwise`.

        Raises SpecError where the model cannot be bridged with them, UnsupportedModel.
        """
        if config.get("model_type") == SPARSE_TYPE:
            return self.preferred
        if prunes_dense:
            longest_prompt(config, self.preferred, prunes_dense)
            return self.preferred
        why = self._why_otherwise(config)
        if why:
            on_note(why)
        found = self._short(config, self.otherwise if why and self.otherwise else self.preferred)
        bridging_cost(config, found)
        return found

    def batch_of(self, chosen: BridgeSpec) -> tuple[int, ...]:
        """(sequences, tokens of each) of a step of `chosen`, the settings beside a model, where they are not the preset's; else ()."""
        is_short = chosen.optim.context != self.preferred.optim.context
        return (chosen.optim.batch, chosen.optim.context) if is_short else ()

    def _short(self, config: Mapping[str, Any], spec: BridgeSpec) -> BridgeSpec:
        """The settings with a context that the model has positions for, and the same number of tokens a step, where the user set neither.

        Raises UnsupportedModel.
        """
        positions, optim = DenseShape.of(config).positions, spec.optim
        if "optim.context" in self.by_user or not positions or positions >= optim.context:
            return spec
        batch = optim.batch if "optim.batch" in self.by_user else round(optim.batch * optim.context / positions)
        return spec.model_copy(update={"optim": optim.model_copy(update={"context": positions, "batch": batch})})
