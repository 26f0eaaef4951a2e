"""In which layers an answer reaches the last token: against transformers' own forward pass with exchanged inputs of a layer."""

from __future__ import annotations

import pytest
import torch
from click import UsageError
from click.testing import CliRunner

from extractor.bridges.answer_layers import LayerShares, span
from extractor.data.prompts import get_task, logit_diff, task_batch, tokenize_task
from extractor.errors import UnsupportedModel
from extractor.jobs.answer_layers import measure_layers
from extractor.models.load import open_dense
from extractor.models.reference import open_model
from extractor.models.tokenizer import load_tokenizer
from worker.cli import group

PAIRS = 6


def test_shares_are_those_of_exchanged_inputs_of_a_layer():
    found = measure_layers("python-tiny", None, get_task("quote_close"), PAIRS)
    assert (found["model"], found["task"], found["pairs"]) == ("python-tiny", "quote_close", PAIRS)
    assert found["loss"] < 0.1
    model, tokenizer = open_dense("python-tiny", None).model, load_tokenizer(open_model("python-tiny").path)
    batch = task_batch(tokenize_task(get_task("quote_close"), tokenizer), tokenizer, "select", PAIRS, 0, 100)
    rows = torch.arange(len(batch.ids))

    def diffs(layer: int, where: torch.Tensor) -> torch.Tensor:
        def exchange(_module, inputs):
            return (torch.where(where[..., None], inputs[0][rows ^ 1], inputs[0]), *inputs[1:])

        handle = model.transformer.h[layer].register_forward_pre_hook(exchange)
        with torch.no_grad():
            logits = model(input_ids=batch.ids).logits
        handle.remove()
        return logit_diff(logits[rows, batch.last], batch)

    nowhere = torch.zeros(batch.ids.shape, dtype=torch.bool)
    at_last = nowhere.clone()
    at_last[rows, batch.last] = True
    plain = diffs(0, nowhere)
    for layer, row in enumerate(found["layers"]):
        for name, where in (("last", at_last), ("others", ~at_last)):
            share = ((plain - diffs(layer, where)) / (plain - plain[rows ^ 1])).median().item()
            assert row == row | {"layer": layer}
            assert row[name] == pytest.approx(share, abs=1e-4)
    assert found["layers"][0]["others"] > 0.95, "both prompts end in the same token"


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ([(0, 1), (0, 1), (0.3, 0.7), (0.9, 0.1), (1, 0), (1, 0)], (1, 3)),
        ([(0, 1), (0.6, 0.4), (0.99, 0.01)], (0, 1)),
        ([(0, 1), (0, 1), (0.9, 0.2)], (1, 2)),
        ([(0, 1)], (0, 0)),
        ([(1, 0), (1, 0), (1, 0)], None),
        ([(0.5, 0.5), (0.7, 0.2)], None),
    ],
)
def test_the_span_begins_where_nothing_has_moved_and_ends_before_all_has(shares: list, wanted: tuple[int, int] | None):
    assert span([LayerShares(layer, *pair) for layer, pair in enumerate(shares)]) == wanted


def test_a_sparse_model_and_a_task_it_cannot_be_asked_are_refused(cache, tmp_path):
    from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM

    SparseGPTForCausalLM(SparseGPTConfig(vocab_size=1024)).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((open_model("python-tiny").path / file).read_bytes())
    with pytest.raises(UnsupportedModel):
        measure_layers(str(tmp_path), None, get_task("quote_close"), PAIRS)


def test_the_command_prints_a_row_for_each_layer_and_the_option_to_give():
    done = CliRunner().invoke(group, ["tasks", "layers", "quote_close", "--model", "python-tiny", "--pairs", "4"])
    assert done.exit_code == 0, done.output
    assert "extract submit --layers" in done.output
    assert done.output.count("%") >= 4


def test_a_model_of_which_no_layers_can_be_made_sparse_alone_gets_no_advice(monkeypatch):
    monkeypatch.setattr("extractor.jobs.answer_layers.obstacle", lambda config, context: f"{config['model_type']} is odd")
    done = CliRunner().invoke(group, ["tasks", "layers", "quote_close", "--model", "python-tiny", "--pairs", "4"])
    assert "--layers does not go with it: gpt2 is odd" in " ".join(done.output.split())
    assert "extract submit" not in done.output


def test_prompts_that_end_in_different_tokens_have_no_span():
    found = measure_layers("python-tiny", None, get_task("else_elif"), PAIRS)
    assert found["span"] is None
    assert all(row["last"] == pytest.approx(1) for row in found["layers"])
    done = CliRunner().invoke(group, ["tasks", "layers", "else_elif", "--model", "python-tiny", "--pairs", "4"])
    assert "nothing moves to the last token" in done.output
    assert "--layers" not in done.output


def test_one_task_is_measured_at_a_time():
    done = CliRunner().invoke(group, ["tasks", "layers", "all", "--model", "python-tiny"])
    assert done.exit_code != 0
    assert isinstance(done.exception, SystemExit | UsageError)
