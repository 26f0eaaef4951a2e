"""Read and replace any value inside a running sparse GPT, by name. Travels with saved models: torch and transformers only.

Sites carry their own names, `0.attn.act_in` ... `1.mlp.resid_delta`, values (B, T, width) after AbsTopK. Every other point carries
TransformerLens's name; with L layers, H heads of C channels, S keys:

    hook_embed, hook_pos_embed                     token embeddings; rows of the position table, where there is one
    blocks.0.hook_resid_pre | _mid | _post         residual before attention, before the MLP, after it
    blocks.0.ln1.hook_normalized, ln2, ln_final    after a norm and its gain
    blocks.0.attn.hook_q | hook_k | hook_v         (B, T, H, C): sites 0.attn.q, k, v by head
    blocks.0.attn.hook_pattern                     attention (B, H, T, S); with a sink, rows sum to less than one
    blocks.0.attn.hook_z                           mixed values (B, T, H, C)
    blocks.0.mlp.hook_pre | hook_post              neurons before and after the activation; the latter is site 0.mlp.post_act. With gates
                                                   hook_pre is what the gate multiplies, before its site 0.mlp.up
    blocks.0.hook_attn_out | hook_mlp_out          sites 0.attn.resid_delta and 0.mlp.resid_delta
"""

import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .configuration_sparse_gpt import PLACES

_BLOCK_POINTS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "ln1.hook_normalized": "ln_1",
    "ln2.hook_normalized": "ln_2",
    "attn.hook_pattern": "attn.pattern",
    "mlp.hook_pre": "mlp.c_fc",
    "mlp.hook_post": "mlp.post_act",
    "hook_attn_out": "attn.resid_delta",
    "hook_mlp_out": "mlp.resid_delta",
}
_SITES = {place: operator.attrgetter(place) for place in PLACES}
_BY_HEAD = {"attn.hook_q": "attn.q", "attn.hook_k": "attn.k", "attn.hook_v": "attn.v", "attn.hook_z": "attn.z"}


@dataclass(frozen=True)
class Point:
    """A module whose output can be read and replaced; with `heads`, its last axis is shown as (heads, channels)."""

    module: nn.Module
    heads: int | None = None

    def show(self, x: Tensor) -> Tensor:
        return x if self.heads is None else x.unflatten(-1, (self.heads, -1))

    def replaced(self, name: str, x: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
        shown = self.show(x)
        new = replace(shown)
        if not isinstance(new, Tensor) or new.shape != shown.shape:
            found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"the edit of {name} must give a tensor of shape {tuple(shown.shape)}, it gave {found}")
        return new if self.heads is None else new.flatten(-2)


class Observable:
    """The part of the model class that lets notebooks look in."""

    def points(self) -> dict[str, Point]:
        """Every name that `record` and `edit` take."""
        model: Any = self
        heads, found = model.config.n_head, {"hook_embed": Point(model.transformer.wte)}
        if model.transformer.wpe is not None:
            found["hook_pos_embed"] = Point(model.transformer.wpe)
        places, points = model.config.places, dict(_BLOCK_POINTS)
        if model.config.parallel:
            del points["hook_resid_mid"]  # a parallel block has no residual between attention and MLP
        for layer, block in enumerate(model.transformer.h):
            get = {path: operator.attrgetter(path)(block) for path in {*places, *points.values(), *_BY_HEAD.values()}}
            found |= {f"{layer}.{place}": Point(get[place]) for place in places}
            found |= {f"blocks.{layer}.{name}": Point(get[path]) for name, path in points.items()}
            found |= {f"blocks.{layer}.{name}": Point(get[path], heads) for name, path in _BY_HEAD.items()}
        return found | {"ln_final.hook_normalized": Point(model.transformer.ln_f)}

    @contextmanager
    def record(self, sites: Iterable[str] | None = None, *, detach: bool = True) -> Iterator[dict[str, Tensor]]:
        """Inside the block every forward pass fills the dict with the values at the named points (default: all sites).

        Within an `edit`, what is recorded is what the edit left. Without `detach`, gradients flow into what is recorded.
        Raises ValueError for names that do not exist.
        """
        found: dict[str, Tensor] = {}

        def hook(name: str, point: Point) -> Callable:
            def keep(_module, _inputs, x: Tensor) -> None:
                found[name] = point.show(x.detach() if detach else x)

            return keep

        model: Any = self
        every = [f"{layer}.{place}" for layer in range(model.config.n_layer) for place in model.config.places]
        names = every if sites is None else list(sites)
        with _hooked(self._find(names), hook):
            yield found

    @contextmanager
    def edit(self, replace: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Inside the block the value x at each named point becomes replace[name](x), of the same shape. Gradients flow through.

        Edits nest: an inner one gets what the outer one left. Raises ValueError for names that do not exist and for other shapes.
        """

        def hook(name: str, point: Point) -> Callable:
            return lambda _module, _inputs, x: point.replaced(name, x, replace[name])

        with _hooked(self._find(replace), hook):
            yield

    def _find(self, names: Iterable[str]) -> dict[str, Point]:
        """The named points. Sites are found by themselves: pruning asks for them thousands of times, listing every point costs as much."""
        model: Any = self
        blocks, places, rest, found = model.transformer.h, model.config.places, None, {}
        for name in names:
            layer, _, place = name.partition(".")
            if place in places and layer.isdecimal() and int(layer) < len(blocks):
                found[name] = Point(_SITES[place](blocks[int(layer)]))
                continue
            rest = rest or self.points()
            if name not in rest:
                close = difflib.get_close_matches(name, rest, 3, 0.5) or ["0.attn.act_in", "blocks.0.hook_resid_pre"]
                raise ValueError(f"no point is called {name!r}; close: {', '.join(close)}")
            found[name] = rest[name]
        return found


@contextmanager
def _hooked(points: Mapping[str, Point], make: Callable[[str, Point], Callable]) -> Iterator[None]:
    handles = [point.module.register_forward_hook(make(name, point)) for name, point in points.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
