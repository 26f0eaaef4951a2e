"""Text that a dense model writes itself: seeded, the same however it was interrupted, and what the model knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from extractor.data import self_text
from extractor.data.self_text import ROWS, sample, sampled_corpus
from extractor.data.sources import default_sources, sources_of_training
from extractor.errors import SpecError
from extractor.jobs.request import CircuitRequest, TrainRequest
from extractor.models.load import load_dense
from extractor.models.reference import BUNDLED, open_model
from extractor.models.tokenizer import load_tokenizer
from extractor.progress import Progress, Stopped
from extractor.spec.schema import SparseModelSpec
from extractor.training.train_sparse import new_sparse_gpt

LENGTH = 24  # of the sequences here; python-tiny reads 128 tokens


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(self_text, "LONGEST", LENGTH)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return load_dense(open_model("python-tiny")).model


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BUNDLED / "python-tiny")


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path) for path in folder.glob("*.npy")}


def test_a_sample_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(model, tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = sample(model, tokenizer, 24, 1)
    assert torch.equal(torch.rand(3), expected)
    assert one.shape == (ROWS, 24)
    assert torch.equal(one, sample(model, tokenizer, 24, 1))
    assert not torch.equal(one, sample(model, tokenizer, 24, 2))


def test_tokens_are_drawn_from_the_models_own_predictions(model, tokenizer):
    """Their mean loss is the mean entropy of the predictions: the definition of a sample at temperature 1."""
    ids = torch.cat([sample(model, tokenizer, 32, seed) for seed in range(6)])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    loss = -log_p.gather(-1, ids[:, 1:, None]).mean().item()
    assert loss == pytest.approx(-(log_p.exp() * log_p).sum(-1).mean().item(), rel=0.03)


def test_interrupted_and_continued_it_is_the_same_text_and_then_the_cache_has_it(model, tokenizer, tmp_path: Path, monkeypatch):
    def made(cache: Path, progress: Progress) -> Path:
        (folder,) = sampled_corpus(model, {"model": "m"}, tokenizer, 3 * ROWS * LENGTH, 7, progress, cache).folders
        return folder

    whole = made(tmp_path / "whole", Progress())
    asked: list[int] = []
    stopping = Progress(should_stop=lambda: asked.append(1) or len(asked) > 2)
    with pytest.raises(Stopped):
        made(tmp_path / "cut", stopping)
    assert not list((tmp_path / "cut").rglob("corpus.json"))
    cut = made(tmp_path / "cut", Progress())
    assert cut.name == whole.name
    assert arrays(cut).keys() == {"train.npy", "held_out.npy"}
    for name, ids in arrays(whole).items():
        assert np.array_equal(ids, arrays(cut)[name])
    assert sum(len(ids) for ids in arrays(whole).values()) == 3 * ROWS * LENGTH
    monkeypatch.setattr(self_text, "sample", None)
    made(tmp_path / "whole", Progress())


def test_the_models_own_settings_of_generation_change_nothing(model, tokenizer):
    wanted = sample(model, tokenizer, 24, 1)
    before = model.generation_config
    try:
        model.generation_config = GenerationConfig(temperature=0.01, do_sample=True, max_new_tokens=5, num_return_sequences=2, top_k=1)
        assert torch.equal(sample(model, tokenizer, 24, 1), wanted)
    finally:
        model.generation_config = before


def test_ids_without_a_token_are_never_drawn(model):
    small = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    assert set(sample(model, small, 24, 0).unique().tolist()) <= {0, 1, 2}


def test_a_part_that_was_cut_off_is_not_taken_for_one(model, tokenizer, tmp_path: Path):
    """The process is killed while it writes: the unfinished file has another name."""
    asked: list[int] = []
    stopping = Progress(should_stop=lambda: asked.append(1) or len(asked) > 2)
    with pytest.raises(Stopped):
        sampled_corpus(model, {"model": "m"}, tokenizer, 3 * ROWS * LENGTH, 7, stopping, tmp_path)
    (parts,) = (tmp_path / "self").glob("*.parts")
    (parts / ".unfinished.npy").write_bytes(b"cut off")
    (folder,) = sampled_corpus(model, {"model": "m"}, tokenizer, 3 * ROWS * LENGTH, 7, Progress(), tmp_path).folders
    assert sum(len(ids) for ids in arrays(folder).values()) == 3 * ROWS * LENGTH


def test_a_model_of_one_position_is_refused_in_a_line(tokenizer, tmp_path: Path):
    one = GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_positions=1, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(SpecError, match="reads one token only"):
        sampled_corpus(one, {}, tokenizer, 100, 0, Progress(), tmp_path)


def test_another_model_seed_or_length_is_another_text(model, tokenizer, tmp_path: Path):
    cases = [({"model": "m"}, 100, 0), ({"model": "n"}, 100, 0), ({"model": "m"}, 100, 1), ({"model": "m"}, 2 * ROWS * LENGTH, 0)]
    made = {sampled_corpus(model, identity, tokenizer, tokens, seed, Progress(), tmp_path).folders for identity, tokens, seed in cases}
    assert len(made) == 4


def test_generated_programs_are_for_models_that_were_trained_on_them():
    assert sources_of_training(BUNDLED / "python-tiny") == ("stdlib", "generated")
    assert default_sources("code", ("stdlib", "generated")) == ("stdlib", "generated")
    for known in ((), ("stdlib",), ("/some/folder",)):
        assert "generated" not in default_sources("code", known)
        assert "self" in default_sources("text", known)


@pytest.mark.parametrize(
    "spec", [None, "{", "[]", '{"kind": "circuit"}', '{"kind": "train"}', '{"kind": "train", "corpus": {"sources": 3}}']
)
def test_a_folder_that_does_not_say_its_training_has_none(tmp_path: Path, spec: str | None):
    if spec is not None:
        (tmp_path / "spec.json").write_text(spec)
    assert sources_of_training(tmp_path) == ()


def test_the_model_in_a_results_folder_has_the_spec_beside_it(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "spec.json").write_text(json.dumps({"kind": "train", "corpus": {"sources": ["prose", "generated"]}}))
    assert sources_of_training(tmp_path / "model") == ("prose", "generated")


def test_a_model_that_is_no_dense_one_writes_no_text(tokenizer, tmp_path: Path):
    new_sparse_gpt(SparseModelSpec(d_model=16, d_head=8), 1, 1024, 0).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SpecError, match="corpus 'self' is text that a dense model writes"):
        TrainRequest(corpus=("self",)).to_spec()
    with pytest.raises(SpecError, match="corpus 'self' is text that a dense model writes"):
        CircuitRequest(str(tmp_path), ("quote_close",), corpus=("self",)).to_spec()
    assert CircuitRequest("python-tiny", ("quote_close",), corpus=("self", "stdlib")).to_spec().corpus.sources == ("self", "stdlib")
