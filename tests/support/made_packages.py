"""Packages with entry points, as pip would leave them: a module and a dist-info, no network."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


def made_site(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> Path:
    """An empty folder on sys.path, and the module of that name forgotten."""
    site = folder / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, module, raising=False)
    return site


def put_package(site: Path, module: str, code: str, group: str, entries: dict[str, str], name: str, version: str) -> None:
    """A package of one module, with these entry points (name: place) of a group."""
    (site / f"{module}.py").write_text(code)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    listed = "".join(f"{entry} = {place}\n" for entry, place in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{listed}")
    importlib.invalidate_caches()
