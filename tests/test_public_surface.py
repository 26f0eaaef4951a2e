"""What the package promises by name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from worlds import python

import extractor
from extractor import errors

FAMILY = {cls.__name__: cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, Exception)}


def drawn() -> dict[str, tuple[int, int, int | None]]:
    """The tree in the docstring: name -> (line, depth, exit code or None where it is inherited)."""
    tree = {}
    for number, line in enumerate((errors.__doc__ or "").splitlines()):
        match = re.match(r"    ([ │├└─]*)([A-Z]\w+)\s*(?:exit (\d+))?", line)
        if match:
            tree[match[2]] = (number, len(match[1]) // 4, int(match[3]) if match[3] else None)
    return tree


def test_every_public_name_is_what_its_home_defines_however_often_and_whenever_it_is_asked_for():
    out = python("""
import importlib, inspect, pkgutil, extractor
for turn in ('first', 'second', 'after every module'):
    for name in extractor.__all__:
        found = getattr(extractor, name)
        if inspect.ismodule(found) != (name == 'jobs') or not callable(found):
            print(name, 'is', found, 'when asked for', turn)
    if turn == 'second':
        for module in pkgutil.iter_modules(extractor.__path__, 'extractor.'):
            if module.name != 'extractor.__main__':
                importlib.import_module(module.name)
for name, home in extractor._HOME.items():
    if name != 'jobs':
        assert getattr(importlib.import_module(home), name).__module__ == home, name
""")
    assert out == ""


@pytest.mark.parametrize(
    "order",
    [
        "from extractor.jobs.request import circuit_job\nimport extractor\nfound = extractor.jobs",
        "import extractor\nfound = extractor.jobs\nfrom extractor.jobs.request import circuit_job",
        "from extractor import jobs as found\nfrom extractor.jobs.request import circuit_job\nimport extractor",
        "import extractor.jobs.request\nfound = extractor.jobs\nfrom extractor.jobs.request import circuit_job",
    ],
)
def test_jobs_is_called_and_is_a_package_in_either_order(order: str, tmp_path: Path):
    code = f"{order}\nassert found is extractor.jobs and found.request.circuit_job is circuit_job\nprint(len(found()))"
    assert python(code, env={"EXTRACT_STATE_DIR": str(tmp_path), "EXTRACT_REDIS_URL": ""}).strip() == "0"


def test_jobs_are_listed_without_torch_and_named_without_the_service(tmp_path: Path):
    code = """
import sys, extractor
heavy = lambda *names: sorted({*names} & {*sys.modules})
extractor.jobs, dir(extractor)
assert not heavy('torch', 'transformers', 'celery', 'redis', 'worker'), heavy('torch', 'transformers', 'celery', 'redis', 'worker')
extractor.jobs()
assert not heavy('torch', 'transformers', 'celery'), heavy('torch', 'transformers', 'celery')
print('light')
"""
    assert python(code, env={"EXTRACT_STATE_DIR": str(tmp_path), "EXTRACT_REDIS_URL": ""}).strip() == "light"


def test_the_engine_alone_says_that_it_has_no_jobs():
    code = """
import sys, extractor
sys.modules['worker'] = None
for ask in (extractor.jobs, lambda: extractor.load('k3v9x2mq')):
    try:
        ask()
    except extractor.errors.ServiceUnavailable as error:
        print(error)
"""
    said = python("import extractor.errors\n" + code).splitlines()
    assert len(said) == 2
    assert all("the service is not installed here" in line and "extractor.load(FOLDER)" in line for line in said)


def test_the_public_list_is_exactly_the_names_that_have_a_home():
    assert sorted(extractor.__all__) == extractor.__all__
    assert set(extractor.__all__) == set(extractor._HOME)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'prune_everything'"):
        extractor.prune_everything  # noqa: B018 - the access is the test
    with pytest.raises(AttributeError, match="no attribute 'list_jobs'; close: jobs"):
        extractor.list_jobs  # noqa: B018 - the access is the test


def test_the_drawn_tree_holds_exactly_the_error_classes():
    assert set(drawn()) == set(FAMILY)


def test_every_error_has_its_documented_parent_and_exit_code():
    path: list[str] = []
    codes: dict[str, int] = {}
    for name, (_, depth, code) in sorted(drawn().items(), key=lambda item: item[1]):
        path = [*path[:depth], name]
        parent = path[depth - 1] if depth else "Exception"
        assert FAMILY[name].__bases__[0].__name__ == parent
        codes[name] = code if code is not None else codes[parent]
        assert FAMILY[name].exit_code == codes[name]


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_an_error_survives_a_process_boundary_by_its_name(name: str):
    rebuilt = errors.by_name(name, "what happened")
    assert type(rebuilt) is FAMILY[name]
    assert str(rebuilt) == "what happened"


def test_an_unknown_error_name_becomes_the_base():
    assert type(errors.by_name("KeyboardInterrupt", "x")) is errors.ExtractorError
