"""The network whose replacement values differ from prompt to prompt, and its reference implementation: values and gradients, in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import EVERY_KIND, KINDS, every_model, everything, random_base, random_batch, random_model

from extractor.circuits.graph import NodeIndex
from extractor.circuits.masks import Masks
from extractor.circuits.network import FastMaskedModel
from extractor.circuits.prompt_network import PromptMaskedModel
from extractor.circuits.prompt_values import PromptValues
from extractor.circuits.reference import resampled
from extractor.data.prompts import TaskBatch
from tests.circuits.test_network import KEPT, assert_definition, close, kept_nodes, mask_sets, reference


def random_values(model, batch: TaskBatch, seed: int) -> dict[str, torch.Tensor]:
    """{site: (B, T, width)} random replacement values of every prompt and token."""
    generator = torch.Generator().manual_seed(seed)
    widths = NodeIndex.of(model).widths
    return {site: 0.5 * torch.randn(*batch.ids.shape, width, generator=generator).to(model.dtype) for site, width in widths.items()}


@settings(max_examples=90, deadline=None)
@given(every_model, st.sampled_from(KEPT), st.booleans(), st.booleans(), st.integers(0, 10_000))
def test_the_network_is_the_definition_in_values_and_gradients(model, how: str, with_edges: bool, fractional: bool, seed: int):
    batch, kept = random_batch(4, seed, torch.float64), kept_nodes(model, how, seed)
    values = random_values(model, batch, seed)
    network = PromptMaskedModel(model, lambda part: (part, PromptValues(model, values)), kept)
    assert_definition(network, batch, values, with_edges, fractional, seed)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_without_masks_all_kept_nodes_and_all_edges_are_on(kind: str):
    model = random_model(1, torch.float64, **EVERY_KIND[kind])
    batch = random_batch(5, 2, torch.float64)
    values = random_values(model, batch, 3)
    for how in ("none", "half", "all"):
        kept = kept_nodes(model, how, 4)
        network = PromptMaskedModel(model, lambda part: (part, PromptValues(model, values)), kept)
        found = network.logit_diffs(network.prepare(batch))
        assert len(network) == int(kept.sum())
        assert found.shape == (1, 10)
        assert close(found[0], reference(model, batch, values, kept.double())[0])


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_same_values_everywhere_it_is_the_network_of_constants(kind: str):
    model, batch = random_model(2, torch.float64, **KINDS[kind]), random_batch(4, 1, torch.float64)
    base, kept = random_base(model, 1), kept_nodes(model, "half", 1)
    masks = Masks(mask_sets(kept, 0, True))
    everywhere = PromptValues(model, {site: x.expand(*batch.ids.shape, -1) for site, x in base.items()})
    one, other = FastMaskedModel(model, base, kept), PromptMaskedModel(model, lambda part: (part, everywhere), kept)
    assert close(other.logit_diffs(other.prepare(batch), masks), one.logit_diffs(one.prepare(batch), masks))


def test_prompts_may_run_several_times_each_with_other_values():
    model, batch = random_model(3, torch.float64), random_batch(6, 2, torch.float64)
    base, kept = random_base(model, 1), kept_nodes(model, "most", 3)
    other = resampled(model, batch)

    def twice(part: TaskBatch):
        values = {site: torch.cat([base[site].expand_as(x), x]) for site, x in other.items()}
        return part.repeat(2), PromptValues(model, values)

    network = PromptMaskedModel(model, twice, kept)
    for groups in (1, 3, 24):
        found = network.logit_diffs(network.prepare(batch, groups))[0]
        assert found.shape == (24,)
        assert close(found[:12], reference(model, batch, base, kept.double())[0])
        assert close(found[12:], reference(model, batch, other, kept.double())[0])


def test_a_network_of_everything_is_the_model_whatever_the_replacement_values():
    for kind, changes in EVERY_KIND.items():
        model = random_model(6, torch.float64, **changes)
        batch = random_batch(4, 6, torch.float64)
        values = PromptValues(model, random_values(model, batch, 1))
        network = PromptMaskedModel(model, lambda part, values=values: (part, values), everything(model).nodes)
        with torch.no_grad():
            logits = model(input_ids=batch.ids).logits[torch.arange(8), batch.last]
        plain = logits.gather(1, batch.first[:, None]) - logits.gather(1, batch.second[:, None])
        assert close(network.logit_diffs(network.prepare(batch)), plain.T), kind
