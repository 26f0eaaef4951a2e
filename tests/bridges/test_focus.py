"""Prompts of tasks in a bridging: which they are, their loss against its plain definition, and that micro-batches change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from worlds import VOCABULARY, environment, paths, random_gpt2, stop_after, tiny_bridge, tiny_pair

from extractor.bridges.crossing import Crossing
from extractor.bridges.losses import focus_loss
from extractor.bridges.pair import BridgedPair
from extractor.bridges.train import BridgeTrainer, train_bridges
from extractor.bridges.tuner import site_parameters
from extractor.data.encoding import text_ids
from extractor.data.focus import FOCUS_PAIRS, FocusPrompts, Prompts, focus_prompts
from extractor.data.prompts import fitting_pairs, task_batch
from extractor.data.task_choice import check_expressible
from extractor.models.load import DenseModel
from extractor.models.reference import BUNDLED
from extractor.models.tokenizer import load_tokenizer
from extractor.progress import Stopped
from extractor.spec.schema import BridgeSpec
from extractor.training.compute import Compute
from tasks import find_task

SITES = 5
FOCUSED = tiny_bridge(focus=0.5)


@pytest.fixture
def pair() -> BridgedPair:
    return tiny_pair()


def random_prompts(count: int, seed: int = 0, following: int = 0) -> Prompts:
    """Prompts, each with up to `following` tokens after it; the first with none."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (count, 12 + following), generator=generator)
    last = torch.randint(3, 12, (count,), generator=generator)
    return Prompts(ids, last, last + torch.arange(count) % (following + 1))


FOCUS = FocusPrompts({"one": random_prompts(8), "other": random_prompts(20, 1, 4)})


def dense_model() -> DenseModel:
    return DenseModel(random_gpt2().requires_grad_(False), "tiny", {"model": "tiny"})


def crossing_of(spec: BridgeSpec, prompts: Prompts, seed: int = 0) -> Crossing:
    return Crossing.of_prompts(spec, len(prompts.ids), SITES, torch.Generator().manual_seed(seed))


def plain_terms(pair: BridgedPair, prompts: Prompts, answer_only: bool = False) -> tuple[list[float], list[list[float]], list[list[float]]]:
    """Of each prompt by itself: KL of the sparse model, of dense then sparse at every site, of sparse then dense at every site.

    At the last token of the prompt, plus the mean over the tokens after it.
    """
    own, to_sparse, to_dense = [], [], []
    for row, last, end in zip(prompts.ids, prompts.last.tolist(), prompts.end.tolist(), strict=True):
        ids = row[None, : end + 1]
        with torch.no_grad():
            log_p = pair.adapter(input_ids=ids).logits[0].log_softmax(-1)

            def kl(logits: torch.Tensor, log_p: torch.Tensor = log_p, last: int = last) -> float:
                each = functional.kl_div(logits[0].log_softmax(-1), log_p, reduction="none", log_target=True).sum(-1)
                after = each[last + 1 :].mean().item() if len(each) > last + 1 and not answer_only else 0.0
                return each[last].item() + after

            own.append(kl(pair.sparse(input_ids=ids).logits))
            crossed = paths(pair, ids)
        to_sparse.append([kl(both[0]) for both in crossed])
        to_dense.append([kl(both[1]) for both in crossed])
    return own, to_sparse, to_dense


@pytest.mark.parametrize("following", [0, 3])
@pytest.mark.parametrize("over_sites", ["mean", "sum"])
def test_the_exact_loss_of_prompts_is_its_definition(pair: BridgedPair, over_sites: str, following: int):
    spec = tiny_bridge(estimator="exact", over_sites=over_sites, kl_plain_coef=2.0, kl_to_dense_coef=0.5)
    prompts = random_prompts(4, following=following)
    own, to_sparse, to_dense = (torch.tensor(values).mean(0) for values in plain_terms(pair, prompts))
    c = 1 / SITES if over_sites == "mean" else 1.0
    loss, kl = focus_loss(pair, prompts, crossing_of(spec, prompts), spec)
    assert kl.item() == pytest.approx(torch.tensor(plain_terms(pair, prompts, answer_only=True)[0]).mean().item(), rel=1e-4)
    assert loss.item() == pytest.approx((2 * own + c * (to_sparse.sum() + 0.5 * to_dense.sum())).item(), rel=1e-4)


def test_the_split_estimate_weighs_every_crossing_as_drawn(pair: BridgedPair):
    spec, prompts = tiny_bridge(kl_plain_coef=0.0), random_prompts(6, following=2)
    _, to_sparse, to_dense = plain_terms(pair, prompts)
    crossing = crossing_of(spec, prompts)
    assert sorted(crossing.order.tolist()) == list(range(6)), "every prompt crosses once"
    sites = [site for site, rows in enumerate(crossing.rows) for _ in rows]
    wanted = sum(
        weight * (to_sparse[row][site] + to_dense[row][site])
        for weight, row, site in zip(crossing.weights.tolist(), crossing.order.tolist(), sites, strict=True)
    )
    loss, _ = focus_loss(pair, prompts, crossing, spec)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_padding_does_not_affect_the_loss(pair: BridgedPair):
    prompts = random_prompts(5, following=2)
    beyond = torch.arange(prompts.ids.shape[1]) > prompts.end[:, None]
    changed = prompts._replace(ids=torch.where(beyond, (prompts.ids + 7) % VOCABULARY, prompts.ids))
    crossing = crossing_of(FOCUSED, prompts)
    losses = [focus_loss(pair, some, crossing, FOCUSED)[0].item() for some in (prompts, changed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_is_a_function_of_seed_and_step_and_holds_whole_pairs():
    one, again, other = FOCUS.batch(3, 5, 4), FOCUS.batch(3, 5, 4), FOCUS.batch(3, 6, 4)
    assert torch.equal(one.ids, again.ids)
    assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)
    rows = {(last.item(), *row[: end + 1].tolist()) for task in FOCUS.by_task.values() for row, last, end in zip(*task, strict=True)}
    assert all((last.item(), *row[: end + 1].tolist()) in rows for row, last, end in zip(*one, strict=True))
    assert one.ids.shape[1] == int(one.end.max()) + 1


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_give_the_loss_and_the_gradients_of_the_batch(corpus, micro: int):
    found = []
    for rows in (None, micro):
        spec = FOCUSED.model_copy(update={"optim": FOCUSED.optim.model_copy(update={"micro_batch": rows})})
        trainer = BridgeTrainer(dense_model(), spec, corpus, 0, Compute(spec.optim, print), FOCUS)
        metrics = trainer.step(0)
        gradients = torch.cat([p.grad.flatten() for p in site_parameters(trainer.pair.sites)])
        found.append((metrics["loss"], metrics["kl_focus"], gradients))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-4)
    assert torch.allclose(found[0][2], found[1][2], rtol=1e-3, atol=1e-5)


def test_a_focus_however_small_has_a_pair_in_every_step(corpus):
    spec = FOCUSED.model_copy(update={"focus": 0.01})
    assert "kl_focus" in BridgeTrainer(dense_model(), spec, corpus, 0, Compute(spec.optim, print), FOCUS).step(0)


def test_without_prompts_nothing_of_a_step_changes(corpus):
    losses = []
    for spec, focus in ((tiny_bridge(), None), (tiny_bridge(), FOCUS), (FOCUSED, None)):
        trainer = BridgeTrainer(dense_model(), spec, corpus, 0, Compute(spec.optim, print), focus)
        metrics = trainer.step(0)
        assert "kl_focus" not in metrics
        losses.append(metrics["loss"])
    assert len({*losses}) == 1


def test_training_brings_the_prompts_ends_together_and_resumes_bit_for_bit(corpus, tmp_path: Path):
    spec = FOCUSED.model_copy(update={"optim": FOCUSED.optim.model_copy(update={"steps": 30})})
    whole = train_bridges(dense_model(), spec, corpus, 0, environment(tmp_path / "whole"), FOCUS)
    with pytest.raises(Stopped):
        train_bridges(dense_model(), spec, corpus, 0, environment(tmp_path / "cut", stop_after(11)), FOCUS)
    cut = train_bridges(dense_model(), spec, corpus, 0, environment(tmp_path / "cut"), FOCUS)
    assert all(torch.equal(a, b) for a, b in zip(whole.sparse.parameters(), cut.sparse.parameters(), strict=True))
    prompts = FOCUS.batch(0, 1000, 10)
    untrained = BridgeTrainer(dense_model(), spec, corpus, 0, Compute(spec.optim, print), FOCUS).pair
    before, after = (torch.tensor(plain_terms(some, prompts)[0]).mean().item() for some in (untrained, whole))
    assert after < 0.8 * before


def test_the_prompts_are_plain_and_shifted_ones_of_the_train_split_and_others_are_named():
    tokenizer, notes = load_tokenizer(BUNDLED / "python-tiny"), []
    tasks = [
        find_task("quote_close"),
        find_task("for_while"),
        replace(find_task("for_while"), name="odd", answers=(("two words", "also two"),)),
    ]
    found = focus_prompts(tasks, tokenizer, 100, 0, None, notes.append)
    assert found is not None
    assert list(found.by_task) == ["quote_close", "for_while"]
    assert notes == ["no prompts of odd are part of the bridging: this model cannot be asked them in 100 tokens"]
    ids = found.by_task["quote_close"].ids
    known = {tuple(row.tolist()) for row in ids}
    expression = check_expressible(tasks[0], tokenizer)
    for shifted in (False, True):
        train, held_out = (task_batch(expression, tokenizer, split, 20, 0, 100, shifted=shifted).ids for split in ("train", "held_out"))
        assert padded(train, ids.shape[1]) <= known
        assert not padded(held_out, ids.shape[1]) & known


def test_shifted_prompts_go_on_with_their_programs_as_far_as_asked():
    tokenizer = load_tokenizer(BUNDLED / "python-tiny")
    found, short = (focus_prompts([find_task("for_while")], tokenizer, 100, 0, None, print, following) for following in (12, 0))
    assert found is not None
    assert short is not None
    assert torch.equal(short.by_task["for_while"].end, short.by_task["for_while"].last)
    prompts = found.by_task["for_while"]
    assert torch.equal(prompts.last, short.by_task["for_while"].last)
    follow = prompts.end - prompts.last
    assert follow.max() == 12
    assert 0.3 < (follow > 0).float().mean() < 0.6, "shifted ones"
    expression = check_expressible(find_task("for_while"), tokenizer)
    texts = [
        (prompt, rest)
        for shifted in (False, True)
        for pair, _ in fitting_pairs(expression, tokenizer, "train", FOCUS_PAIRS, 0, 100, shifted)[0]
        for prompt, rest in zip((pair.positive, pair.negative), pair.rests, strict=True)
    ]
    for (prompt, rest), ids, last, end in zip(texts, *prompts, strict=True):
        whole = text_ids(tokenizer, prompt + rest)
        assert ids[: last + 1].tolist() == text_ids(tokenizer, prompt)
        assert ids[: end + 1].tolist() == whole[: end + 1]
        assert end + 1 == min(len(whole), last + 1 + 12, 100)


def padded(ids: torch.Tensor, width: int) -> set[tuple[int, ...]]:
    return {tuple(row.tolist()) for row in functional.pad(ids, (0, max(0, width - ids.shape[1])))}


def test_no_task_that_can_be_asked_means_no_prompts():
    assert focus_prompts([find_task("class_init")], load_tokenizer(BUNDLED / "python-tiny"), 3, 0, None, lambda text: None) is None
