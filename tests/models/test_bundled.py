"""The model that comes with the package does what its card says."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from extractor.data.prompts import get_task, logit_diff, task_batch, task_loss, tokenize_task
from extractor.models.reference import bundled_models, open_model
from extractor.models.tokenizer import load_tokenizer
from extractor.training.model_card import shifted_accuracies, task_losses

FOLDER = open_model("python-tiny").path
KNOWN = 18  # tasks of the twenty; all of them when it was made
SHIFTED = 13  # tasks of the twenty with 95 % of the shifted held-out prompts right
CARD = (FOLDER / "README.md").read_text()


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def test_it_is_small():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= 5 * 2**20


def test_it_is_an_ordinary_gpt2(model):
    assert type(model) is GPT2LMHeadModel
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in CARD


def test_its_card_names_the_command_that_makes_it_again():
    from extractor.jobs.request import train_job
    from extractor.spec.schema import read_job

    command = next(line for line in CARD.splitlines() if line.startswith("extract train"))
    assert command == (
        "extract train --architecture gpt2 --preset tiny --seed 0 --tokenizer python-tiny --corpus stdlib --corpus generated "
        "--set optim.steps=8000 --set corpus.generated_programs=40000 --wait"
    )
    changes = {"optim.steps": "8000", "corpus.generated_programs": "40000"}
    again = train_job(architecture="gpt2", seed=0, tokenizer="python-tiny", corpus=("stdlib", "generated"), changes=changes)
    assert again == read_job(FOLDER / "spec.json")


def test_it_is_listed_with_a_description():
    listed = {model["name"]: model for model in bundled_models()}
    assert listed["python-tiny"]["path"] == str(FOLDER)
    assert "GPT-2" in listed["python-tiny"]["description"]


def test_its_two_tokenizers_agree():
    text = "def get_name(self, item):\n    print('hello')\n    return [[1, 2]]\n"
    assert AutoTokenizer.from_pretrained(FOLDER)(text)["input_ids"] == load_tokenizer(FOLDER).encode(text).ids


@torch.no_grad()
@pytest.mark.parametrize("task", ["quote_close", "bracket_counting", "for_while"])
def test_it_does_the_task(model, task: str):
    tokenizer = load_tokenizer(FOLDER)
    batch = task_batch(tokenize_task(get_task(task), tokenizer), tokenizer, "held_out", 512, 0, 128)
    hidden = [model.transformer(input_ids=ids).last_hidden_state for ids in batch.ids.split(256)]
    last = torch.cat(hidden)[torch.arange(len(batch.ids)), batch.last]
    assert task_loss(logit_diff(model.lm_head(last), batch), batch.sign).item() <= 0.1


@pytest.mark.slow
def test_it_does_nearly_all_of_the_papers_tasks_and_its_card_says_how_well(model):
    losses = task_losses(model, load_tokenizer(FOLDER), 128)
    told = dict(re.findall(r"^\| (\w+) \| (\d\.\d{4}) \|", CARD, re.M))
    assert {name: float(loss) for name, loss in told.items()} == pytest.approx(losses, abs=2e-3)
    assert len(losses) == 20
    assert sum(loss < 0.15 for loss in losses.values()) >= KNOWN


@pytest.mark.slow
def test_it_does_most_of_them_in_code_of_other_templates_too(model):
    found = shifted_accuracies(model, load_tokenizer(FOLDER), 128)
    told = {name: int(share) / 100 for name, share in re.findall(r"^\| (\w+) \| \S+ \| (\d+)% \|$", CARD, re.M)}
    assert told == pytest.approx(found, abs=0.02)
    assert sum(share >= 0.95 for share in found.values()) >= SHIFTED


@torch.no_grad()
def test_it_writes_python(model):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    prompt = tokenizer("for item", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(made[0]) == "for item in"
