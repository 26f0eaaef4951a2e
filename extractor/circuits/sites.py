"""Sites and nodes: their names and numbers.

Shapes everywhere: B sequences, T tokens, D dense width, S sparse width, H heads, C channels per head, M neurons, V vocabulary, N nodes.

A site is a place in a block, a node one channel of it, the same at every token: `1.mlp.post_act.12`. Sites in forward order, per layer:
attn.act_in, attn.q, attn.k, attn.v, attn.resid_delta, mlp.act_in, mlp.post_act, mlp.resid_delta. Paper: App. A.5. A model with gated MLPs
has two more, before mlp.post_act: mlp.gate and mlp.up, whose channels of one number meet in the neuron of that number (ours).
In a model with position channels the reads (act_in) have those too, behind the S residual channels.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import Site, SparseGPTForCausalLM

# The travelling configuration lists them too: it cannot import this module, and this one must not import torch.
GATED_PLACES = ("mlp.gate", "mlp.up")
PLACES = (
    *("attn.act_in", "attn.q", "attn.k", "attn.v", "attn.resid_delta"),
    *("mlp.act_in", *GATED_PLACES, "mlp.post_act", "mlp.resid_delta"),
)


def sites(model: SparseGPTForCausalLM) -> dict[str, Site]:
    """All sites by name, in forward order."""
    places = model.config.places
    return {f"{layer}.{place}": operator.attrgetter(place)(block) for layer, block in enumerate(model.blocks) for place in places}


def widths(model: SparseGPTForCausalLM) -> dict[str, int]:
    """Number of nodes of every site, in forward order."""
    return {name: site.width for name, site in sites(model).items()}


def stream_rank(site: str, parallel: bool) -> tuple[int, int]:
    """The order in which sites meet the residual stream: (layer, place). In a parallel block every read comes before every write."""
    layer, _, place = site.partition(".")
    number = int(layer) if layer.isdecimal() else 10**9
    place_rank = PLACES.index(place) if place in PLACES else len(PLACES)
    return number, place_rank + (len(PLACES) if parallel and place.endswith("resid_delta") else 0)


def node_id(site: str, channel: int) -> str:
    return f"{site}.{channel}"
