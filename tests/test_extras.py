"""What the default installation does without: packages of the extras, which only some commands need."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from worlds import python

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    re.match(r"[\w-]+", line)[0].replace("-", "_")  # type: ignore[index]
    for name, lines in PROJECT["optional-dependencies"].items()
    if name != "dev"
    for line in lines
}
BLOCKED = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {sorted(EXTRAS)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
whole = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition('.')[0] in {sorted(EXTRAS)} else whole(name, package)
"""


def test_every_module_but_the_exporter_is_imported_without_the_extras():
    code = """
import importlib, pkgutil
import extractor, tasks, worker
failed = []
for room in (extractor, tasks, worker):
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):
        if not module.name.endswith('__main__') and not module.name.startswith('extractor.bundled'):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                failed.append((module.name, error.name))
print(failed)
"""
    assert python(BLOCKED + code).strip() == "[('worker.monitoring.metrics', 'prometheus_client')]"


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["sweep", "--grid", "width=64", "--task", "quote_close", "--preset", "tiny"], "matplotlib", "sweep"),
        (["metrics", "--port", "0"], "prometheus_client", "monitor"),
    ],
)
def test_a_command_without_its_package_says_which_extra_has_it(arguments: list[str], package: str, extra: str, tmp_path: Path):
    code = f"""
import contextlib, io
from extract_command import main
said = io.StringIO()
with contextlib.redirect_stderr(said):
    try:
        sys.argv = ["extract", *{arguments!r}]
        main()
    except SystemExit as end:
        print(end.code)
print(said.getvalue())
"""
    env = {"EXTRACT_STATE_DIR": str(tmp_path / "state"), "EXTRACT_ROOT": str(tmp_path / "root"), "EXTRACT_REDIS_URL": ""}
    code, line = python(BLOCKED + code, env=env).strip().split("\n")
    assert code == "2"
    assert f"needs {package}, which is not installed" in line
    assert f"pip install -c deploy/constraints.txt -e '.[{extra}]'" in line
    assert not list(tmp_path.rglob("*.json"))


def test_a_dataset_and_event_files_say_which_extra_they_need():
    code = """
from pathlib import Path
from extractor.data.streams import _client
from extractor.errors import UsageError
from extractor.training.compute import Compute
class Main:
    is_main = True
for ask in (_client, lambda: Compute.track(Main(), Path('x'), 0)):
    try:
        ask()
    except UsageError as error:
        print(error)
"""
    first, second = python(BLOCKED + code).strip().split("\n")
    assert first.startswith("--dataset needs datasets")
    assert second.startswith("--tensorboard needs tensorboard")
