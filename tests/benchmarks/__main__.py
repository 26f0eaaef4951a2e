"""`python -m tests.benchmarks NAME [--json] [--threads N]`: rows of name, value, goal, met."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys

import tests.benchmarks
from tests.benchmarks.measure import Row

HELPERS = ("__main__", "measure", "service_world", "first_progress")


def names() -> list[str]:
    """The benchmarks: modules of this folder that define rows()."""
    return sorted(m.name for m in pkgutil.iter_modules(tests.benchmarks.__path__) if m.name not in HELPERS)


def machine(threads: int) -> str:
    """The machine in words."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, {threads} threads, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("name", choices=names())
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    found: list[Row] = list(importlib.import_module(f"tests.benchmarks.{arguments.name}").rows(arguments.threads))
    if arguments.json:
        print(json.dumps([row.to_json(machine(arguments.threads)) for row in found], indent=1))
    else:
        print(machine(arguments.threads))
        for row in found:
            print(f"{row.name:60} {row.value:8.3f}   goal {row.goal:10} {'met' if row.met else 'MISSED'}")
    return 0 if all(row.met for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
