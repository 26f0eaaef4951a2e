"""What an adapter_config.json asks of a model, checked before PEFT acts on it: ranks, and patterns of module names. No torch.

PEFT allocates matrices of the ranks that the config names, and matches its patterns with `re`, which can take for ever.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from extractor.errors import UnsupportedModel

MAX_RANK = 4096
SECONDS = 10  # for all patterns of a config over all modules of a model
_PLAIN = re.compile(r"[\w.]*")
_MATCH = """
import json, re, sys
asked = json.load(sys.stdin)
for how, pattern in asked["patterns"]:
    for name in asked["names"]:
        getattr(re, how)(pattern, name)
"""


def check_lora_config(config: Mapping[str, Any], label: str) -> None:
    """Check ranks and options. `label`: how errors name the adapter. Raises UnsupportedModel."""
    if config.get("layer_replication"):
        raise UnsupportedModel(f"adapter {label} repeats layers of its base (layer_replication); such adapters do not merge")
    for field, rank in [("r", config.get("r", 8)), *(("rank_pattern", rank) for rank in _table(config, "rank_pattern", label).values())]:
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise UnsupportedModel(
                f"adapter {label} has rank {str(rank)[:40]} ({field} in its config), no whole number from 1 to {MAX_RANK:,}"
            )


def check_ranks(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], label: str) -> None:
    """Check that a config names no larger rank than the LoRA's tensors have: PEFT allocates it. Raises UnsupportedModel."""
    check_lora_config(config, label)
    found = [shape[0] for name, shape in shapes.items() if name.endswith(("lora_A.weight", "lora_embedding_A")) and shape]
    table = _table(config, "rank_pattern", label)
    named = max(table.values()) if table else config.get("r", 8)  # with a table, perhaps no module has rank r
    if found and named > max(found):
        raise UnsupportedModel(f"adapter {label} has rank {named:,} in its config, its tensors have {max(found):,}; save the adapter again")


def check_patterns(config: Mapping[str, Any], modules: Iterable[str], label: str) -> None:
    """Check that the config's patterns of module names can be matched in a few seconds. Raises UnsupportedModel."""
    patterns = _patterns(config, label)
    if not patterns:
        return
    asked = json.dumps({"patterns": patterns, "names": list(modules)})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _MATCH], input=asked, text=True, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedModel(
            f"adapter {label} has a pattern of modules in its config that takes more than {SECONDS} s to match; write the modules' names"
        ) from None
    if done.returncode:
        raise UnsupportedModel(f"adapter {label} has a pattern of modules in its config that is no regular expression")


def _patterns(config: Mapping[str, Any], label: str) -> list[tuple[str, str]]:
    """(function of `re`, pattern) of the regular expressions that PEFT builds from a config."""
    whole = [value for value in (config.get("target_modules"), config.get("exclude_modules")) if isinstance(value, str)]
    found = [("fullmatch", value) for value in whole if not _is_plain(value)]
    layers, saved = config.get("layers_pattern") or [], config.get("modules_to_save") or []
    layers = [layers] if isinstance(layers, str) else layers
    keys = [key for field in ("rank_pattern", "alpha_pattern") for key in _table(config, field, label)]
    for template, parts in ((r"(?:^|.*?\.){}\.(?P<idx>\d+)\.", layers), (r"(^|.*\.){}($|\..*)", saved), (r"(.*\.)?({})$", keys)):
        found += [("match", template.replace("{}", str(part))) for part in parts if not _is_plain(part)]
    return found


def _is_plain(text: object) -> bool:
    return isinstance(text, str) and _PLAIN.fullmatch(text) is not None


def _table(config: Mapping[str, Any], field: str, label: str) -> dict[str, Any]:
    value = config.get(field) or {}
    if not isinstance(value, dict):
        raise UnsupportedModel(f"adapter {label} has no table of modules as {field} in its config; save the adapter again")
    return value
