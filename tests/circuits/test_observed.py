"""A circuit observed on prompts: runs with changes that begin where the first change is."""

import pytest
import torch
from circuit_worlds import World, every_kind

from extractor.circuits.observed import observe


@every_kind
@pytest.mark.parametrize("edges", [None, 0.6])
def test_a_run_that_begins_at_the_first_change_gives_what_a_complete_run_gives(kind: str, edges: float | None):
    world = World(kind)
    graph = world.graph(0.5, edges)
    plain = observe(graph, world.base, world.batch)
    assert torch.allclose(plain.diff, world.wanted(graph), atol=1e-5)
    for node in list(plain.values)[::7]:
        changes = {node: lambda x: -2 * x - 1}
        complete, rest = observe(graph, world.base, world.batch, changes), observe(graph, world.base, world.batch, changes, plain)
        assert rest.diff.equal(complete.diff)
        assert rest.seen.keys() == complete.seen.keys()
        assert all(rest.seen[site].equal(complete.seen[site]) for site in complete.seen)
    assert observe(graph, world.base, world.batch, {}, plain).diff.equal(plain.diff)
