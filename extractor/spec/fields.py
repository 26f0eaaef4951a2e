"""All settings of a job by dotted name: `model.d_model`, `vocab_size`, `prune.steps`, in circuit jobs also `bridge.optim.lr`.

The help text of a field is the comment on its line in schema.py.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from extractor.errors import SpecError
from extractor.spec.schema import BridgeSpec, CorpusSpec, PruneSpec, TrainSpec

OPTIONS = {  # fields with an option of their own on the command line
    "architecture": "--architecture",
    "tokenizer": "--tokenizer",
    "match_loss": "--match",
    "tensorboard": "--tensorboard",
    "corpus.sources": "--corpus",
    "corpus.datasets": "--dataset",
    "bridge.init": "--init",
}
TRAIN: dict[str, BaseModel] = {"": TrainSpec(), "prune": PruneSpec(), "corpus": CorpusSpec()}  # prefix -> part of a train job
CIRCUIT: dict[str, BaseModel] = {"bridge": BridgeSpec(), "prune": PruneSpec(), "corpus": CorpusSpec()}
S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Setting:
    """One field. name: dotted; value: before changes; kind: allowed values; meaning: help text; section: summary of its group."""

    name: str
    value: Any
    kind: str
    meaning: str
    section: str


def settings(parts: Mapping[str, BaseModel]) -> list[Setting]:
    """All fields of a job's parts that `changed` accepts, in the order of schema.py, with the values of these parts."""
    return [setting for prefix, spec in parts.items() for setting in _settings(spec, f"{prefix}." if prefix else "")]


def _settings(spec: BaseModel, prefix: str) -> Iterator[Setting]:
    meanings, about = _comments(type(spec)), inspect.getdoc(type(spec)) or ""
    properties = _properties(type(spec))
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            yield from _settings(value, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in OPTIONS:
            yield Setting(f"{prefix}{name}", value, _kind(properties[name]), meanings.get(name, ""), about.splitlines()[0])


@cache
def _properties(cls: type[BaseModel]) -> dict[str, Any]:
    """Field -> its JSON schema."""
    found: dict[str, Any] = cls.model_json_schema()["properties"]
    return found


@cache
def _comments(cls: type) -> dict[str, str]:
    """Field -> the comment on its line, from the class's source."""
    source = inspect.getsource(cls)
    behind = {
        t.start[0]: t.string.lstrip("# ") for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT
    }
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    lines = {n.target.id: n.end_lineno for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return {name: behind[line] for name, line in lines.items() if line in behind}


def _kind(schema: dict[str, Any]) -> str:
    """The allowed values of a field, from its JSON schema: 'int >= 1', 'gelu | relu'."""
    if "anyOf" in schema:
        return " | ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum") or [schema["const"]]))
    if schema["type"] == "array":
        return f"list of {_kind(schema['items'])}"
    words = {"integer": "int", "number": "float", "boolean": "true | false", "string": "text", "null": "none"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([words[schema["type"]], " and ".join(bounds)]).strip()


def changed(spec: S, changes: Mapping[str, str], prefix: str = "") -> S:
    """`spec` with fields set from text. Names are relative to it; error messages put `prefix` before them.

    Raises SpecError with one line that names the field.
    """
    content: dict[str, Any] = spec.model_dump()
    for name, text in changes.items():
        *path, last = name.split(".")
        place, cls = content, type(spec)
        for part in path:
            place, cls = place[part], type(getattr(spec, part))
        place[last] = _read(cls, last, text)
    return checked_spec(type(spec), content, changes, prefix)


def checked_spec(cls: type[S], content: Mapping[str, Any], given: Mapping[str, Any] | None = None, prefix: str = "") -> S:
    """A spec from its content. Raises SpecError with one line: the first wrong field, the reason, and the given value."""
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        text = (given if given is not None else content).get(name)
        what = first["msg"].removeprefix("Value error, ")
        raise SpecError(f"{f'{prefix}{name}: ' if name else ''}{what}{f', not {text!r}' if text is not None else ''}") from None


def _read(cls: type[BaseModel], name: str, text: str) -> Any:
    """Text as a value that pydantic can validate for a field; invalid text is passed on, so that pydantic rejects it."""
    kinds = _properties(cls)[name]
    options = [kinds, *kinds.get("anyOf", [])]
    if text.lower() in ("none", "null") and any(option.get("type") == "null" for option in options):
        return None
    if any(option.get("type") == "array" for option in options):
        inside = "" if text.lower() == "none" else text.strip("[]()")
        return [part.strip() for part in inside.split(",")] if inside else []
    if text.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return "not finite"  # pydantic would accept these as floats
    return text


def split_changes(changes: Mapping[str, str], parts: Mapping[str, BaseModel] = TRAIN) -> dict[str, dict[str, str]]:
    """Part of a job -> its changes; checks the names. Raises SpecError with close matches for an unknown name."""
    known = [setting.name for setting in settings(parts)] if changes else []
    found: dict[str, dict[str, str]] = {part: {} for part in parts}
    command = "train" if "" in parts else "submit"
    for name, text in changes.items():
        if name in OPTIONS:
            raise SpecError(f"field {name!r} has an option of its own: {OPTIONS[name]}")
        if name not in known:
            inside = [k for k in known if k.startswith(f"{name}.")]
            last = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
            close = inside[:3] or last or difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"did you mean {', '.join(close)}?" if close else f"`extract {command} --fields` lists them"
            raise SpecError(f"no field {name!r}; {hint}")
        first = name.partition(".")[0]
        group = first if first in parts else ""
        found[group][name.removeprefix(f"{group}.") if group else name] = text
    return found


def parse_changes(assignments: tuple[str, ...]) -> dict[str, str]:
    """('optim.lr=0.05', ...) as {'optim.lr': '0.05', ...}. Raises SpecError."""
    found: dict[str, str] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not name or not text:
            raise SpecError(f"{assignment!r} is not an assignment; write FIELD=VALUE, as in optim.lr=0.05")
        if found.get(name, text) != text:
            raise SpecError(f"field {name!r} is set twice, to {found[name]} and to {text}")
        found[name] = text
    return found
