"""What ablated nodes may be: each condition beside the definition of a masked model."""

from __future__ import annotations

import torch
from problems import random_base, random_batch, random_model

from extractor.circuits.conditions import CONDITIONS, SUBSET_PROMPTS, Conditions, partners
from extractor.circuits.graph import NodeIndex
from extractor.circuits.prompt_network import PromptMaskedModel
from tests.circuits.test_network import close, kept_nodes, reference

PAIRS = 24


def test_every_condition_is_the_definition_with_its_replacement_values():
    for kind in ({}, {"sinks": False, "activation_frac": 1.0}):
        model, batch = random_model(1, torch.float64, **kind), random_batch(PAIRS, 2, torch.float64)
        means, kept = random_base(model, 3), kept_nodes(model, "half", 4)
        conditions = Conditions(model, means, 0)
        network = PromptMaskedModel(model, conditions, kept)
        found = network.logit_diffs(network.prepare(batch))[0].unflatten(0, (len(CONDITIONS), -1))
        with model.record() as own:
            model(input_ids=batch.ids)
        values = conditions(batch)[1]
        chosen = {site: (values.subset.values[site] == own[site]).all(0).all(0) for site in own}
        expected = {
            "mean": means,
            "zero": {site: 0 * x for site, x in means.items()},
            "same": {site: x[values.partner["same"]] for site, x in own.items()},
            "other": {site: x[values.partner["other"]] for site, x in own.items()},
            "subset": {site: torch.where(chosen[site], x, means[site]) for site, x in own.items()},
        }
        for name, row in zip(CONDITIONS, found, strict=True):
            assert close(row, reference(model, batch, expected[name], kept.double())[0]), name
        assert len({tuple(row.tolist()) for row in found}) == len(CONDITIONS)


def test_partners_have_the_same_length_and_the_same_or_the_other_answer():
    batch = random_batch(PAIRS)
    for same in (True, False):
        found = partners(batch, same, torch.Generator().manual_seed(0))
        assert torch.equal(batch.last[found], batch.last)
        moved = found != torch.arange(len(found))
        assert moved.double().mean() > 0.8
        assert ((batch.sign[found] == batch.sign) == same)[moved].all()
        assert not torch.equal(found, partners(batch, same, torch.Generator().manual_seed(1)))


def test_the_only_prompt_of_its_kind_is_its_own_partner():
    pair = random_batch(1)
    assert partners(pair, True, torch.Generator()).tolist() == [0, 1]
    assert partners(pair, False, torch.Generator()).tolist() == [1, 0]


def test_a_part_of_a_batch_has_the_values_that_it_has_in_the_batch():
    model, batch = random_model(1, torch.float64), random_batch(80, 2, torch.float64)
    means, kept, rows = random_base(model, 3), kept_nodes(model, "half", 4), torch.tensor([3, 70, 130])  # each of another subset
    conditions = Conditions(model, means, 0)
    draws = conditions.draws(batch)

    def diffs(ablate, prompts) -> torch.Tensor:
        network = PromptMaskedModel(model, ablate, kept)
        return network.logit_diffs(network.prepare(prompts))[0].unflatten(0, (len(CONDITIONS), -1))

    whole, part = diffs(conditions, batch), diffs(lambda _: conditions.of_rows(batch, rows, draws), batch.rows(rows))
    assert close(part, whole[:, rows])


def test_a_large_batch_has_several_subsets_of_different_shares():
    pairs = 2 * SUBSET_PROMPTS
    model, batch = random_model(1), random_batch(pairs)
    means, index = random_base(model), NodeIndex.of(model)
    values = Conditions(model, means, 0)(batch)[1].subset.values
    kept = index.join({site: (values[site] != means[site]).any(1) for site in index.widths})  # (prompts, nodes)
    groups = [some.any(0) for some in kept.split(SUBSET_PROMPTS)]
    assert len(groups) == 4
    assert all(torch.equal(a, b) == (a is b) for a in groups for b in groups)
    assert len({int(some.sum()) for some in groups}) > 1


def test_the_subset_is_one_for_a_batch_drawn_by_its_prompts_and_the_seed():
    model, batch = random_model(1), random_batch(PAIRS)
    means = random_base(model)
    index = NodeIndex.of(model)

    def drawn(seed: int, prompts) -> torch.Tensor:
        values = Conditions(model, means, seed)(prompts)[1]
        return index.join({site: (values.subset.values[site] != means[site]).any(0).any(0) for site in index.widths})

    assert torch.equal(drawn(0, batch), drawn(0, batch))
    assert not torch.equal(drawn(0, batch), drawn(1, batch))
    assert not torch.equal(drawn(0, batch), drawn(0, random_batch(PAIRS, 1)))
