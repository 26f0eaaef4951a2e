"""The lines that `extract result` and `extract submit --wait` print below the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli.views.job import show_paths


@pytest.mark.parametrize(
    ("bridge", "said"),
    [
        ({"recovered": {"mean": 0.84}}, "sparse model: recovers 84% of the dense model's gain over bigrams"),
        ({"recovered": None}, "sparse model: how much it recovers is unknown: a bigram model predicts this text as well"),
        (None, ""),
    ],
)
def test_the_share_that_the_sparse_model_recovers_is_told_or_said_to_be_unknown(
    bridge: dict | None, said: str, capsys: pytest.CaptureFixture[str]
):
    show_paths({"bridge": bridge}, Path("r"))
    assert capsys.readouterr().out.startswith(said)
