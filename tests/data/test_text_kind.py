"""Which kind of text a model knows, and the corpus a circuit job takes when none is named."""

from __future__ import annotations

import argparse
import inspect
import math

import pytest
import torch
from worlds import VOCABULARY, random_gpt2

from extractor.data.build_corpus import build_corpus
from extractor.data.sources import AUTO, default_sources, documents, prose
from extractor.data.text_kind import bits_per_character, measure_text_kind
from extractor.jobs.request import circuit_job
from extractor.spec.schema import CorpusSpec


def trained_on(texts: list[str], tokenizer):
    model = random_gpt2(scale=0.05).train()
    ids = torch.tensor(tokenizer.encode("\n".join(texts), add_special_tokens=False).ids)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(40):
        start = torch.randint(len(ids) - 33, (16,), generator=torch.Generator().manual_seed(step))
        rows = torch.stack([ids[s : s + 32] for s in start.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("kind", ["code", "text"])
def test_the_kind_of_text_a_model_was_trained_on_is_measured(kind: str, tokenizer):
    texts = [inspect.getsource(argparse)] if kind == "code" else [text for _, text in zip(range(20), prose(), strict=False)]
    assert measure_text_kind(trained_on(texts, tokenizer), tokenizer) == kind


def test_bits_by_hand(tokenizer):
    """A model without preferences needs log2 of the vocabulary for every token."""
    model = random_gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    text = "for word in words:\n    print(word)\n" * 40
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    rows = [ids[i : i + 64] for i in range(0, len(ids) // 64 * 64, 64)]
    characters = sum(len(tokenizer.decode(row[1:])) for row in rows)
    assert bits_per_character(model, tokenizer, text) == pytest.approx(63 * len(rows) * math.log2(VOCABULARY) / characters, rel=1e-5)
    assert bits_per_character(model, tokenizer, "short") == math.inf


def test_prose_is_a_corpus_by_name(tokenizer, tmp_path):
    spec = CorpusSpec(sources=("prose",))
    assert sum(map(len, documents(spec, "prose"))) > 100_000
    assert build_corpus(spec, tokenizer, tmp_path).tokens > 20_000


def test_a_job_that_names_no_text_takes_what_the_model_knows():
    spec = circuit_job("python-tiny", ("quote_close",))
    assert spec.corpus.sources == AUTO
    assert default_sources("code") == ("stdlib", "self")
    assert set(default_sources("code")) < set(default_sources("text")), "tasks are asked in code"
    assert circuit_job("python-tiny", ("quote_close",), corpus=("prose",)).corpus.sources == ("prose",)
