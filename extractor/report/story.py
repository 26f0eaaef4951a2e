""" "How it works": the claims of `validation.mechanism` as sentences, every node a link to its card. The wording is `spec.story`'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extractor.report.html import nats, percent, plain, section, token
from extractor.spec.story import FAILED, Notation, how_measured, mechanism_of, no_story, tell


def story_section(result: Mapping[str, Any]) -> str:
    """The section; empty where the mechanism was not measured."""
    found = mechanism_of(result)
    if not found:
        return ""
    steps = "".join(f"<li>{one.text}{_FAILED if one.holds is False else ''}</li>" for one in tell(found, _HTML))
    none = no_story(found, _HTML)
    simple = f"<p><strong>{none[0]}</strong>{none[1]}</p>" if none else ""
    return section("story", "How it works", f'{simple}<ol class="story card">{steps}</ol><p class="note">{how_measured(found)}</p>')


def _node_link(node: str) -> str:
    return f'<a class="id" href="#node={plain(node)}"><code class="id">{plain(node)}</code></a>'


_FAILED = f' <strong class="why">{FAILED}</strong>'
_HTML = Notation(token, _node_link, nats, percent)
