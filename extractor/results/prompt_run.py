"""The circuit of a result on one prompt: its answer, every node at every token, attention; with nodes switched off, patched or scaled.

It is the definition that runs (`circuits.reference`), not the fast network. Shapes: T tokens.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration, Node, sites_of
from extractor.circuits.prompt_values import head_patterns
from extractor.circuits.reference import masked_logit_diff
from extractor.data.prompts import TaskBatch

if TYPE_CHECKING:
    from extractor.circuits.graph import CircuitMask

_SHOWN_NODES = 100  # rows of the table in a notebook


@dataclass(frozen=True, eq=False)
class PromptRun:
    """What the circuit does on a prompt.

    tokens        the prompt's T tokens as text
    answers       first and second answer
    margin        logit of the first answer minus that of the second; calibrated as the circuit is, where they are its answers
    activations   {node id: (T,)} the value of every node of the circuit at every token
    means         {node id: value that it has where it is ablated}
    attention     {(layer, head): (T, T)} rows attend to columns; heads with a node of the circuit
    """

    tokens: tuple[str, ...]
    answers: tuple[str, str]
    margin: float
    activations: Mapping[str, Tensor]
    means: Mapping[str, float]
    attention: Mapping[tuple[int, int], Tensor]

    @property
    def answer(self) -> str:
        """The answer that the circuit prefers."""
        return self.answers[0] if self.margin > 0 else self.answers[1]

    @property
    def probability(self) -> dict[str, float]:
        """Of each answer, between the two."""
        first = torch.tensor(self.margin, dtype=torch.float64).sigmoid().item()
        return dict(zip(self.answers, (first, 1 - first), strict=True))

    def __repr__(self) -> str:
        shares = ", ".join(f"{answer!r} {share:.3f}" for answer, share in self.probability.items())
        return f"PromptRun({''.join(self.tokens)!r} -> {self.answer!r}: {shares}; {len(self.activations)} nodes)"

    def _repr_html_(self) -> str:
        """Nodes by tokens: red above the node's mean, blue below."""
        shown = (html.escape(token).replace("\n", "&#92;n") for token in self.tokens)
        head = "".join(f"<th style='font-family:monospace;white-space:pre'>{token}</th>" for token in shown)
        rows = [_row(node, values - self.means[node]) for node, values in [*self.activations.items()][:_SHOWN_NODES]]
        more = f"<p>{len(self.activations) - _SHOWN_NODES} further nodes</p>" if len(self.activations) > _SHOWN_NODES else ""
        shares = ", ".join(f"<code>{html.escape(answer)}</code> {share:.3f}" for answer, share in self.probability.items())
        return f"<p>{shares}</p><table><tr><th>node, less its mean</th>{head}</tr>{''.join(rows)}</table>{more}"


def _row(node: str, deviations: Tensor) -> str:
    most = max(1e-9, float(deviations.abs().max()))
    cells = []
    for value in deviations.tolist():
        colour = f"rgba({'178,24,43' if value > 0 else '33,102,172'},{abs(value) / most:.2f})"
        cells.append(f"<td style='background:{colour}' title='{value:.3f}'>{value:.2f}</td>")
    return f"<tr><th style='text-align:left'>{html.escape(node)}</th>{''.join(cells)}</tr>"


@dataclass(frozen=True)
class NodeEdits:
    """What is done to nodes. off: they have their means; patch: {node: (T,) values that it has}; scale: {node: factor of its value}."""

    off: Collection[str] = ()
    patch: Mapping[str, Tensor] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)


def run_prompt(
    graph: CircuitMask,
    means: Mapping[str, Tensor],
    nodes: Collection[Node],
    calibration: Calibration,
    batch: TaskBatch,
    tokens: tuple[str, ...],
    answers: tuple[str, str],
    edits: NodeEdits,
) -> PromptRun:
    """Run the circuit on a batch of one prompt, (1, T).

    means    {site: (width,)} what an ablated node is
    batch    `correct` is the first answer's token, `wrong` the second's
    """
    seen: dict[str, Tensor] = {}
    by_site = sites_of(nodes)
    masks = {site: on.float() for site, on in graph.index.split(graph.nodes).items()}
    edges = None if graph.edges is None else {link: on.float() for link, on in graph.edges.items()}
    with torch.no_grad():
        diff = masked_logit_diff(graph.model, batch, masks, means, edges, partial(_rewritten, means, by_site, edits, seen))[0]
    return PromptRun(
        tokens=tokens,
        answers=answers,
        margin=calibration.apply(diff).item(),
        activations={node.id: seen[node.site][:, node.channel] for node in nodes},
        means={node.id: means[node.site][node.channel].item() for node in nodes},
        attention=_attention(graph, seen),
    )


def _rewritten(
    means: Mapping[str, Tensor], by_site: Mapping[str, list[Node]], edits: NodeEdits, seen: dict[str, Tensor], site: str, x: Tensor
) -> Tensor:
    """The values (1, T, width) of a site that the model goes on with; `seen` keeps them."""
    x = x.clone()
    for node in by_site.get(site, ()):
        if node.id in edits.off:
            x[..., node.channel] = means[site][node.channel]
        if node.id in edits.patch:
            x[0, :, node.channel] = edits.patch[node.id].to(x)
        if node.id in edits.scale:
            x[..., node.channel] *= edits.scale[node.id]
    seen[site] = x[0]
    return x


def _attention(graph: CircuitMask, seen: Mapping[str, Tensor]) -> dict[tuple[int, int], Tensor]:
    """The patterns of the heads with a q, k or v in the circuit."""
    width, found = graph.model.config.d_head, {}
    kept = graph.channels()
    for layer in range(graph.model.config.n_layer):
        q, k = (seen[f"{layer}.attn.{name}"][None] for name in "qk")
        pattern = head_patterns(graph.model, layer, q, k)[0]
        channels = torch.cat([kept.get(f"{layer}.attn.{name}", torch.zeros(0, dtype=torch.int64)) for name in "qkv"])
        for head in channels.div(width, rounding_mode="floor").unique().tolist():
            found[layer, head] = pattern[head]
    return found
