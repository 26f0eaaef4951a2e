"""Families of installed packages: an entry point of the group `extractor.architectures` names a class like those in models/dense."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_packages import made_site, put_package
from transformers import GPT2Config, GPT2LMHeadModel
from worlds import python

from extractor.errors import UnsupportedModel
from extractor.models.dense.base import dense_types, norms_of, residuals, wrap_dense

MODULE = """
from extractor.models.dense.gpt2 import GPT2Sublayers

class DENSE(GPT2Sublayers):
    norms = ("ln_1", "ln_2", "ln_f")

class WRONG:
    norms = "ln_1"

def __getattr__(name):
    if name == "LEAVES":
        raise RuntimeError("goodbye")
    raise AttributeError(name)
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package into a folder on sys.path."""
    site = made_site(tmp_path, monkeypatch, "offered_family")
    return lambda entries, name="family": put_package(site, "offered_family", MODULE, "extractor.architectures", entries, name, "1.2")


def of_type(model_type: str) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)).eval()
    model.config.model_type = model_type
    return model


@pytest.mark.parametrize("place", ["offered_family", "offered_family:DENSE"])
def test_an_installed_family_is_supported(install: Install, place: str):
    install({"gpt_mine": place})
    assert "gpt_mine" in dense_types()
    assert norms_of("gpt_mine") == ("ln_1", "ln_2", "ln_f")
    model, ids = of_type("gpt_mine"), torch.arange(6)[None]
    dense = wrap_dense(model)
    with torch.no_grad():
        assert torch.equal(dense.unembed(residuals(dense, ids)[-1]), model(ids).logits)


@pytest.mark.parametrize(
    ("place", "said"),
    [("offered_nowhere", "No module named"), ("offered_family:LEAVES", "goodbye"), ("offered_family:WRONG", "no tuple `norms`")],
)
def test_one_that_cannot_be_used_is_refused_with_its_package(install: Install, place: str, said: str):
    install({"gpt_mine": place})
    with pytest.raises(UnsupportedModel, match=rf"the architecture 'gpt_mine' of family cannot be used: .*{said}"):
        wrap_dense(of_type("gpt_mine"))


def test_neither_a_family_of_ours_nor_one_of_two_packages_is_taken(install: Install):
    own = dense_types()
    install({"gpt2": "offered_nowhere", "gpt_mine": "offered_family", "Not Safe": "offered_family"})
    install({"gpt_mine": "offered_family"}, name="other")
    assert dense_types() == own
    assert wrap_dense(of_type("gpt2")).width == 8


def test_the_list_imports_no_package(install: Install, monkeypatch: pytest.MonkeyPatch):
    install({"gpt_mine": "offered_family"})
    assert "gpt_mine" in dense_types()
    assert "offered_family" not in sys.modules
    code = "import sys; from extractor.models.dense.base import dense_types; dense_types(); print('torch' in sys.modules)"
    assert python(code).split() == ["False"]
