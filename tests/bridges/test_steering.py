"""Steering on a pair whose sparse half is exactly its dense half: there what an edit must do is known."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from worlds import VOCABULARY, random_gpt2

from extractor import files
from extractor.bridges.initialisation import start_from_dense
from extractor.bridges.pair import new_pair
from extractor.bridges.steering.edit import CARRIED, CounterfactualRun, find_node, random_directions
from extractor.bridges.steering.evaluate import RANDOM_DRAWS, STRENGTHS, steering_report
from extractor.circuits.circuit import Calibration, Circuit, Node
from extractor.data.prompts import get_task, task_batch, tokenize_task
from extractor.errors import NotFound, UsageError
from extractor.models.dense.base import residuals
from extractor.report.steering import steering_section
from extractor.spec.schema import BridgeSpec, SparseModelSpec
from worker.cli import main

SPEC = BridgeSpec(init="dense", encoder_frac=1.0, model=SparseModelSpec(d_model=48, d_head=16, mlp_ratio=4, n_ctx=24, activation_frac=1.0))
WIDTHS = {"mlp.post_act": 192}
ROWS, TOKENS = 4, 9


def dense_model():
    """A GPT-2 with gains and biases of all sizes, whose matrices do not see a residual's mean: one channel's edit is then exact too."""
    model = random_gpt2()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.add_(torch.rand(parameter.shape, generator=generator))
        for block in model.transformer.h:
            for norm, layer in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                seen = norm.weight[:, None] * layer.weight  # (in, out)
                layer.weight.copy_((seen - seen.mean(0)) / norm.weight[:, None])
    return model.requires_grad_(False)


def exact_pair(model=None, name: str = "tiny"):
    pair = new_pair(SimpleNamespace(model=model or dense_model(), name=name, facts={"sha256": "0"}), SPEC, 0)
    ids = torch.randint(VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(9))
    start_from_dense(pair, [h.flatten(0, 1) for h in residuals(pair.dense, ids)])
    pair.sparse.eval().requires_grad_(False)
    return pair


@pytest.fixture(scope="module")
def pair():
    return exact_pair()


def prompts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Presented, toward, last; the prompts of the last row are shorter than the others, and padded."""
    ids = torch.randint(VOCABULARY, (2, ROWS, TOKENS), generator=torch.Generator().manual_seed(3))
    last = torch.full((ROWS,), TOKENS - 1)
    last[-1] = 5
    return ids[0], ids[1], last


def steer(pair, node: str, presented, toward, strengths, last, way: str = "read") -> list[torch.Tensor]:
    """The dense model's logits (B, V) after each prompt, for each strength of the node's edit."""
    run = CounterfactualRun(pair, presented, toward, last)
    edit = run.edit([find_node(pair, node)], way)
    return [run.logits(edit, strength) for strength in strengths]


def all_of(pair, site: str) -> list:
    width = WIDTHS.get(site.split(".", 1)[1], 48)
    return [find_node(pair, f"{site}.{channel}") for channel in range(width)]


def edited_sparse(pair, run: CounterfactualRun, site: str, strength: float, channels: slice = slice(None)) -> torch.Tensor:
    """The sparse model's own logits when these channels go so far toward their other values."""
    there = run.counterfactual_values[site]

    def replace(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[..., channels] = torch.lerp(x, there, strength)[..., channels]
        return x

    with torch.no_grad(), pair.sparse.edit({site: replace}):
        return pair.sparse(input_ids=run.presented).logits[torch.arange(ROWS), run.last]


@pytest.mark.parametrize("site", [f"{layer}.{place}" for layer in (0, 1) for place in CARRIED])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_all_nodes_of_a_site_do_to_the_dense_model_what_they_do_to_its_exact_copy(pair, site: str, strength: float):
    run = CounterfactualRun(pair, *prompts())
    found = run.logits(run.edit(all_of(pair, site)), strength)
    assert torch.allclose(found, edited_sparse(pair, run, site, strength), atol=1e-2)
    assert not torch.allclose(found, run.plain_logits(), atol=1.0)


@pytest.mark.parametrize("node", ["0.attn.act_in.3", "0.mlp.act_in.31", "1.attn.act_in.0", "1.mlp.act_in.17"])
def test_one_node_that_reads_is_that_channel_replaced_in_the_one_read(pair, node: str):
    presented, toward, last = prompts()
    run = CounterfactualRun(pair, presented, toward, last)
    site, channel = node.rsplit(".", 1)
    found = steer(pair, node, presented, toward, [0.3, 1.0], last)
    for logits, strength in zip(found, (0.3, 1.0), strict=True):
        assert torch.allclose(logits, edited_sparse(pair, run, site, strength, slice(int(channel), int(channel) + 1)), atol=2e-3)
    assert not torch.allclose(found[1], run.plain_logits(), atol=1e-2)


def test_all_of_a_read_is_the_counterfactuals_read(pair):
    presented, toward, last = prompts()
    run = CounterfactualRun(pair, presented, toward, last)
    norm = pair.sites[2].base_layer
    here, there = (norm(residuals(pair.dense, ids)[2]) for ids in (presented, toward))
    assert torch.allclose(run.edit(all_of(pair, "1.attn.act_in")).of(1.0), there - here, atol=1e-3)


def test_gains_and_means_of_both_norms_are_reckoned_with():
    pair = exact_pair()
    block, site, generator = pair.sparse.blocks[0], pair.sites[1], torch.Generator().manual_seed(5)
    with torch.no_grad():
        block.ln_2.weight.copy_(torch.rand(48, generator=generator) + 0.5)
        site.bridge_decoder["default"].weight.copy_(torch.rand(32, 48, generator=generator))
    run = CounterfactualRun(pair, *prompts())
    x, normed = run.presented_values["blocks.0.hook_resid_mid"], run.presented_values["0.mlp.act_in"]
    moved, delta = x.clone(), run.counterfactual_values["0.mlp.act_in"] - normed
    moved[..., 3] += delta[..., 3] * x[..., 3] / normed[..., 3]  # so that channel 3 reads as it does there, the norm being held
    with torch.no_grad():
        step = site.decode(moved) - site.decode(x)
    h, norm = run.residuals[1], site.base_layer
    expected = (step - step.mean(-1, keepdim=True)) / h.std(-1, correction=0, keepdim=True) * norm.weight
    assert torch.allclose(run.edit([find_node(pair, "0.mlp.act_in.3")]).of(1.0), expected, atol=1e-3)


def test_a_strength_of_zero_is_the_dense_model_to_the_bit(pair):
    presented, toward, last = prompts()
    own = dense_model()(input_ids=presented).logits[torch.arange(ROWS), last]
    for node, way in (("0.mlp.act_in.3", "read"), ("0.mlp.act_in.3", "stream"), ("1.attn.v.2", "stream")):
        assert torch.equal(steer(pair, node, presented, toward, [0.0], last, way)[0], own)


def test_a_prompt_steered_toward_itself_stays_as_it_is(pair):
    presented, _, last = prompts()
    run = CounterfactualRun(pair, presented, presented, last)
    assert torch.equal(run.logits(run.edit(all_of(pair, "0.attn.act_in"))), run.plain_logits())


def test_the_stream_reaches_later_sublayers_and_a_read_does_not(pair):
    run = CounterfactualRun(pair, *prompts())
    node = find_node(pair, "0.attn.act_in.3")
    read, stream = (run.edit([node], way) for way in ("read", "stream"))
    assert torch.allclose(run.residuals[0] + stream.of(1.0), run.residuals[0] + stream.amount * stream.directions[0])
    assert not torch.allclose(run.logits(read), run.logits(stream), atol=1e-2)
    assert run.edit([find_node(pair, "0.mlp.post_act.3")], "read").way == "stream"


@pytest.mark.parametrize("way", ["read", "stream"])
def test_disabled_adapters_do_not_steer(pair, way: str):
    run = CounterfactualRun(pair, *prompts())
    edit = run.edit([find_node(pair, "0.mlp.act_in.3")], way)
    assert not torch.equal(run.logits(edit), run.plain_logits())
    with pair.adapter.disable_adapter():
        assert torch.equal(run.logits(edit), run.plain_logits())


@pytest.mark.parametrize("nodes", [1, 5, 48])
def test_random_directions_are_as_long_at_every_token_and_point_elsewhere(pair, nodes: int):
    run = CounterfactualRun(pair, *prompts())
    edit = run.edit(all_of(pair, "0.mlp.act_in")[:nodes])
    drawn = random_directions(edit, 3, seed=1)
    for turned in drawn:
        assert torch.allclose(turned.of(0.7).norm(dim=-1), edit.of(0.7).norm(dim=-1), rtol=1e-3, atol=1e-5)
        assert torch.cosine_similarity(turned.of(1.0).flatten(), edit.of(1.0).flatten(), dim=0).abs() < 0.7
    assert not torch.allclose(drawn[0].directions, drawn[1].directions)
    assert all(torch.equal(a.directions, b.directions) for a, b in zip(drawn, random_directions(edit, 3, seed=1), strict=True))


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("0.attn.q.3", "cannot be steered: queries and keys.*0.attn.act_in.N"),
        ("0.mlp.post_ac.4", r"no node '0.mlp.post_ac.4'.*close: 0.mlp.post_act.4"),
        ("2.mlp.act_in.0", "model of 2 layers"),
        ("0.mlp.act_in.48", "has 48 channels"),
        ("0.mlp.post_act.192", "has 192 channels"),
        ("nonsense", "node names look like"),
    ],
)
def test_nodes_that_are_none_or_cannot_be_steered_are_refused(pair, node: str, why: str):
    with pytest.raises(UsageError, match=why):
        find_node(pair, node, ["0.mlp.post_act.4"])


def test_position_channels_are_refused():
    config = SimpleNamespace(n_layer=1, d_model=8, d_mlp=32, d_pos_emb=4)
    with pytest.raises(UsageError, match="position channel"):
        find_node(SimpleNamespace(sparse=SimpleNamespace(config=config)), "0.attn.act_in.9")


def test_prompts_of_different_length_and_nodes_of_different_sites_are_refused(pair):
    presented, toward, last = prompts()
    with pytest.raises(ValueError, match="the same shape"):
        CounterfactualRun(pair, presented, toward[:, :-1], last)
    with pytest.raises(UsageError, match=r"one site, not at 0\.attn\.act_in, 0\.mlp\.act_in"):
        CounterfactualRun(pair, presented, toward, last).edit([find_node(pair, f"0.{place}.act_in.1") for place in ("attn", "mlp")])


@pytest.fixture(scope="module")
def batches(tokenizer):
    expression = tokenize_task(get_task("quote_close"), tokenizer)
    return [task_batch(expression, tokenizer, split, 12, 0, SPEC.model.n_ctx) for split in ("select", "held_out")]


CIRCUIT = ("0.attn.act_in.1", "0.attn.act_in.2", "0.attn.q.4", "0.mlp.post_act.5", "1.attn.act_in.40", "1.attn.v.3")


@pytest.fixture(scope="module")
def report(pair, batches, tokenizer) -> dict:
    return steering_report(pair, CIRCUIT, *batches, 0, tokenizer.decode)


def test_the_report_tries_every_node_that_can_be_steered_and_measures_the_best(pair, batches, report: dict):
    assert {row[0] for row in report["tried"]} == set(CIRCUIT) - {"0.attn.q.4"}
    assert [row[1] for row in report["tried"]] == sorted((row[1] for row in report["tried"]), reverse=True)
    assert report["node"] == report["tried"][0][0] == f"{report['site']}.{report['channel']}"
    assert report["together"]["nodes"] == ["0.attn.act_in.1", "0.attn.act_in.2"]
    assert report["together"]["width"] == 48
    batch = batches[1].pick(torch.arange(report["pairs"]))
    rows = torch.arange(len(batch.ids))
    seen = steer(pair, report["node"], batch.ids, batch.ids[rows ^ 1], [0.0, 0.5, 1.0], batch.last, report["way"])
    pairs_of = [torch.stack([logits[rows, batch.correct], logits[rows, batch.wrong]], -1).double().softmax(-1)[:, 1] for logits in seen]
    counted = pairs_of[0] < 0.5
    assert 0 < report["prompts"] == int(counted.sum()) < len(rows)
    for index, strength in ((0, 0), (1, 5), (2, 10)):
        assert report["probability"][strength] == pytest.approx(pairs_of[index][counted].mean().item(), abs=1e-5)
        assert report["flipped"][strength] == pytest.approx((pairs_of[index][counted] > 0.5).double().mean().item())
    among_all = seen[2].softmax(-1)[rows, batch.wrong][counted].double().mean().item()
    assert report["vocabulary"][10] == pytest.approx(among_all, abs=1e-6)


def test_the_reports_controls_start_where_the_node_does_and_its_numbers_survive_json(report: dict):
    assert json.loads(json.dumps(report)) == report
    for curves in (report, report["together"]):
        assert curves["random"][0] == pytest.approx(curves["random_worst"][0]) == pytest.approx(curves["probability"][0])
        assert all(worst >= mean for mean, worst in zip(curves["random"], curves["random_worst"], strict=True))
        assert curves["random_worst"][-1] > curves["random"][-1]
        assert {len(curves[key]) for key in ("probability", "vocabulary", "flipped", "random", "random_worst")} == {len(STRENGTHS)}
        assert curves["example"]["before"] < 0.5
    assert RANDOM_DRAWS >= 20


def test_there_is_no_report_where_nothing_can_be_steered(pair, batches):
    assert steering_report(pair, ["0.attn.q.1", "0.attn.k.1"], *batches, 0) == {}


def test_the_section_says_what_was_reached_and_what_was_not(report: dict):
    def told(single: float, many: float) -> str:
        found = json.loads(json.dumps(report))
        found["probability"][-1], found["together"]["probability"][-1] = single, many
        return re.sub(r"<[^>]*>", "", steering_section({"model": "tiny", "steering": found})).replace("&nbsp;", " ")

    assert "this single edit changes the answer" in told(0.7, 0.9)
    assert "no single node changes the answer. All 2 circuit nodes at" in told(0.1, 0.9)
    assert "together reach 90 %, which changes the answer" in told(0.1, 0.9)
    assert "which does not change it either" in told(0.1, 0.2)
    assert "Not measured: there is no dense model" in steering_section({"model": "tiny"})
    assert "Not measured: no node." in steering_section({"model": "tiny", "bridge": {}, "not_measured": {"steering": "no node"}})


def test_nothing_a_prompt_says_can_break_the_page(report: dict):
    found = json.loads(json.dumps(report))
    hostile = '</pre><script>alert(1)</script>"&\x00'
    found["example"] |= {"prompt": hostile, "answer": hostile, "other": hostile}
    page = steering_section({"model": hostile, "steering": found})
    assert "<script" not in page
    assert "\x00" not in page
    assert page.count('role="img" aria-label="Probability') == 2
    assert page.count("<section") == page.count("</section>") == 1


@pytest.fixture(scope="module")
def result(tokenizer, batches, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished result of a circuit job: the dense model beside it, and what `steer` reads."""
    from extractor.models.tokenizer import save_tokenizer

    home = tmp_path_factory.mktemp("job")
    dense, folder = home / "dense", home / "result"
    model = dense_model()
    model.save_pretrained(dense)
    save_tokenizer(tokenizer, dense, 64)
    exact_pair(model, str(dense)).save(folder / "model")
    save_tokenizer(tokenizer, folder / "model", 24)
    held_out = batches[1]
    place = folder / "circuits" / "quote_close"
    place.mkdir(parents=True)
    nodes = tuple(Node(node, node.rsplit(".", 1)[0], int(node.rsplit(".", 1)[1]), 0.0) for node in CIRCUIT)
    answer_ids = int(held_out.first[0]), int(held_out.second[0])
    circuit = Circuit("tiny", "quote_close", ('")', "')"), answer_ids, nodes, (), Calibration(1.0, 0.0))
    files.write_json(place / "circuit.json", circuit.to_json())
    files.write_json(place / "result.json", {})
    files.write_tensors(place / "held_out.safetensors", {n: getattr(held_out, n) for n in ("ids", "last", "correct", "wrong", "sign")})
    files.write_json(folder / "spec.json", {"model": str(dense), "adapter": None})
    files.write_json(folder / "model" / "dense.json", {"model": str(dense), "adapter": None})
    files.write_manifest(folder)
    return folder


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["steer", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command_steers_a_saved_result_as_the_functions_do(pair, result: Path, batches, tokenizer, capsys):
    ids, last = batches[1].ids, int(batches[1].last[0])
    here, there = (tokenizer.decode(ids[row, : last + 1].tolist()) for row in (0, 1))
    node = "0.mlp.act_in.3"
    code, out, _ = run(capsys, result, "--node", node, "--prompt", here, "--toward", there, "--strength", "0.5", "--json")
    found = json.loads(out)
    assert code == 0
    assert [step["strength"] for step in found["steps"]] == [0.0, 0.5]
    logits = steer(pair, node, ids[:1, : last + 1], ids[1:2, : last + 1], [0.0, 0.5], torch.tensor([last]))
    for step, expected in zip(found["steps"], logits, strict=True):
        everything = expected[0].softmax(0)
        answers = everything[[int(batches[1].first[0]), int(batches[1].second[0])]]
        assert list(step["probability"].values()) == pytest.approx(answers.tolist(), abs=1e-5)
        assert step["top"][0][1] == pytest.approx(everything.max().item(), abs=1e-5)
        other = found["answers"].index(found["other"])
        assert step["between"] == pytest.approx((answers[other] / answers.sum()).item(), abs=1e-4)
    assert found["steps"][0]["between"] < 0.5


def test_the_command_finds_prompt_and_node_by_itself(result: Path, batches, tokenizer, capsys):
    ids, last = batches[1].ids, int(batches[1].last[0])
    code, out, err = run(capsys, result, "--toward", tokenizer.decode(ids[1, : last + 1].tolist()))
    assert code == 0, err
    assert re.search(r"nodes  \d\.(attn|mlp)\.\w+\.\d+  \(", out)
    assert len(re.findall(r"^ *(?:0|1|0\.\d) ", out, re.M)) == len(STRENGTHS)
    prompt = re.search(r"prompt  (.*)\n", out)
    assert prompt is not None
    assert prompt[1] in {repr(tokenizer.decode(row[: last + 1].tolist())) for row in ids}


def test_where_answers_vary_they_are_what_the_dense_model_says_after_each_prompt(result: Path, pair, batches, tokenizer, tmp_path, capsys):
    folder = tmp_path / "varying"
    shutil.copytree(result, folder)
    place = folder / "circuits" / "quote_close"
    files.write_json(place / "circuit.json", files.read_json(place / "circuit.json") | {"answers": [], "answer_ids": []})
    ids, last = batches[1].ids, batches[1].last
    said = CounterfactualRun(pair, ids, ids, last).plain_logits().argmax(-1)
    row = 2 * int((said[0::2] != said[1::2]).nonzero()[0, 0])
    here, there = (tokenizer.decode(ids[r, : int(last[row]) + 1].tolist()) for r in (row, row + 1))
    code, out, _ = run(capsys, folder, "--prompt", here, "--toward", there, "--node", "0.mlp.act_in.3", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["answers"] == [tokenizer.decode([token]) for token in said[row : row + 2].tolist()]
    assert found["other"] == found["answers"][1]
    assert found["steps"][0]["between"] < 0.5
    code, _, err = run(capsys, folder, "--prompt", here, "--toward", here, "--node", "0.mlp.act_in.3")
    assert code == 2
    assert "after both prompts; the answers of quote_close vary: give prompts with different ones" in err


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--node", "0.attn.k.1"], 2, "node 0.attn.k.1 cannot be steered"),
        (["--node", "0.mlp.post_act.555"], 2, "has 192 channels"),
        (["--strength", "1.5"], 2, "between 0"),
        (["--strength", "nan"], 2, "between 0"),
        (["--prompt", "print"], 2, r"same number of tokens: --prompt has \d tokens \[.*'(pr)?int'\], --toward \d tokens"),
        (["--prompt", "print(" * 60], 2, r"has \d+ tokens, the models take at most \d+"),
        (["--prompt", ""], 2, "empty"),
        (["--task", "for_while"], 2, "no circuit of 'for_while'; it has quote_close"),
    ],
)
def test_the_command_refuses_in_one_line(result: Path, capsys, arguments: list[str], code: int, why: str):
    found, out, err = run(capsys, result, "--toward", "print('hello", *arguments, "--json")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert found == code == json.loads(out)["error"]["exit_code"]
    assert len(errors) == 1
    assert re.search(why, errors[0])


def test_results_that_are_unfinished_or_have_no_dense_model_are_refused(result: Path, tmp_path: Path, capsys):
    from extractor.bridges.steering.prompt import open_result

    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    (copy / "manifest.json").unlink()
    assert run(capsys, copy, "--toward", "x")[0] == NotFound.exit_code
    files.write_manifest(copy)
    shutil.rmtree(copy / "model" / "bridges")
    code, _, err = run(capsys, copy, "--toward", "x")
    assert code == 2
    assert "made from a sparse model, there is no bridge to steer a dense model through" in err
    files.write_json(copy / "spec.json", json.loads((copy / "spec.json").read_text()) | {"subject": "dense"})
    files.write_manifest(copy)
    assert "is a circuit of the dense model itself (--dense)" in run(capsys, copy, "--toward", "x")[2]
    with pytest.raises(NotFound, match="it holds no spec"):
        open_result(tmp_path)
