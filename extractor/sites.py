"""Sites and nodes: their names, and how to read and replace their values.

Shapes everywhere: B sequences, T tokens, D dense width, S sparse width, H heads, C channels per head, M neurons, V vocabulary, N nodes.

A site is a place in a block, a node one channel of it, the same at every token: `1.mlp.post_act.12`. Sites in forward order, per layer:
attn.act_in, attn.q, attn.k, attn.v, attn.resid_delta, mlp.act_in, mlp.post_act, mlp.resid_delta. Paper: App. A.5.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from extractor.sparse.modeling_sparse_gpt import Site, SparseGPTForCausalLM

PLACES = ("attn.act_in", "attn.q", "attn.k", "attn.v", "attn.resid_delta", "mlp.act_in", "mlp.post_act", "mlp.resid_delta")


def sites(model: SparseGPTForCausalLM) -> dict[str, Site]:
    """All sites by name, in forward order."""
    return {f"{layer}.{place}": operator.attrgetter(place)(block) for layer, block in enumerate(model.blocks) for place in PLACES}


def widths(model: SparseGPTForCausalLM) -> dict[str, int]:
    """Number of nodes of every site, in forward order."""
    return {name: site.width for name, site in sites(model).items()}


def node_id(site: str, channel: int) -> str:
    return f"{site}.{channel}"


@contextmanager
def gate(model: SparseGPTForCausalLM, replace: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside the block the values x (B, T, width) of each named site become replace[site](x)."""
    modules = sites(model)
    handles = [modules[name].register_forward_hook(lambda _m, _i, x, fn=fn: fn(x)) for name, fn in replace.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record(model: SparseGPTForCausalLM, names: list[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Inside the block every forward pass fills the dict with the values (B, T, width) of the named sites (default: all)."""
    found: dict[str, Tensor] = {}
    modules = sites(model)
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, x, name=name: found.__setitem__(name, x.detach()))
        for name in names or list(modules)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
