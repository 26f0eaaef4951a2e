"""What --dry-run knows of bridged models that are kept on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extractor.files import MANIFEST
from extractor.jobs import bridged_cache
from extractor.jobs.request import circuit_job
from worker.cli.views.cost import show_preflight
from worker.settings import from_env
from worker.supervision.shared_bridging import FOLDER


def test_a_kept_bridging_is_named_and_another_seed_s_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("EXTRACT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("EXTRACT_ROOT", raising=False)
    monkeypatch.delenv("EXTRACT_REDIS_URL", raising=False)
    spec, settings = circuit_job("python-tiny", ("quote_close",)), from_env()

    def kept(spec) -> bool:
        show_preflight(spec, as_json=True)
        return json.loads(capsys.readouterr().out)["bridge"]["kept"]

    assert not kept(spec)
    folder = settings.root / FOLDER / bridged_cache.address(spec, settings.threads)
    folder.mkdir(parents=True)
    assert not kept(spec)  # not finished
    (folder / MANIFEST).write_text("{}")
    assert kept(spec)
    assert not kept(spec.model_copy(update={"seed": 1}))
    show_preflight(spec, as_json=False)
    assert "an earlier job has made this bridged model" in " ".join(capsys.readouterr().out.split())
