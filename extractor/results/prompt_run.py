"""The circuit of a result on one prompt: its answer, every node at every token, attention; with nodes switched off, patched or scaled.

It is the definition that runs (`circuits.reference`), not the fast network. Shapes: T tokens.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration, Node, node_id_of, similar
from extractor.circuits.guesses import no_attribute
from extractor.circuits.mean_activations import at_tokens
from extractor.circuits.observed import Change, observe
from extractor.data.prompts import TaskBatch
from extractor.errors import UsageError

if TYPE_CHECKING:
    from extractor.circuits.graph import CircuitMask

_SHOWN_NODES = 100  # rows of the table in a notebook
_INSTEAD = {  # what users guess: what does it
    **dict.fromkeys(
        ("top", "topk", "predictions", "probs", "probabilities"), "run.probability, of each of the two answers, and run.answer"
    ),
    **dict.fromkeys(("prediction", "output", "text", "result", "token"), "run.answer"),
    **dict.fromkeys(("logits", "logit_diff", "diff", "score"), "run.margin, the difference of the two answers' logits"),
    **dict.fromkeys(("values", "cache", "nodes"), "run.activations, or run[node]"),
    **dict.fromkeys(("patterns", "pattern", "attn", "heads"), "run.attention[layer, head]"),
    **dict.fromkeys(("loss", "accuracy"), "run.probability; those of all held-out prompts are result.loss and result.accuracy"),
}


class _ByNode(dict[str, Tensor]):
    """Values by node id; also found by a Node. Raises UsageError for a node that is not there, with similar ids."""

    def __missing__(self, node: object) -> Tensor:
        wanted = node_id_of(node)
        if wanted in self:
            return self[wanted]
        raise UsageError(f"node {wanted!r} is not in the circuit ({len(self)} nodes); close: {similar(wanted, self)}")


class _ByHead(dict[tuple[int, int], Tensor]):
    """Patterns by (layer, head). Raises UsageError for a head without a node of the circuit."""

    def __missing__(self, head: object) -> Tensor:
        known = ", ".join(f"attention[{layer}, {number}]" for layer, number in self) or "none"
        raise UsageError(f"attention is named by [layer, head], as heads with a node of the circuit: {known}; not by {head!r}")


@dataclass(frozen=True, eq=False)
class PromptRun:
    """What the circuit does on a prompt.

    tokens        the prompt's T tokens as text
    answers       first and second answer
    margin        logit of the first answer minus that of the second; calibrated as the circuit is, where they are its answers
    activations   {node id: (T,)} the value of every node of the circuit at every token
    means         {node id: value that it has where it is ablated, at every token; in some models the first has another}
    attention     {(layer, head): (T, T)} rows attend to columns; heads with a node of the circuit. What a row lacks to 1, a sink takes
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

    def __getitem__(self, node: str | Node) -> Tensor:
        """The value (T,) of a node at every token. Raises UsageError for a node that is not in the circuit."""
        return self.activations[node_id_of(node)]

    if not TYPE_CHECKING:  # for which every name would exist

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, _INSTEAD)

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each node and a column for each token. Raises ModuleNotFoundError without pandas."""
        import pandas

        return pandas.DataFrame([values.tolist() for values in self.activations.values()], index=[*self.activations], columns=self.tokens)

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
    run = observe(graph, means, batch, _changes(at_tokens(means, batch.ids.shape[1]), nodes, edits))
    return PromptRun(
        tokens=tokens,
        answers=answers,
        margin=calibration.apply(run.diff).item(),
        activations=_ByNode({node.id: run.values[node.id][0] for node in nodes}),
        means={node.id: means[node.site][node.channel].item() for node in nodes},
        attention=_ByHead({head: pattern[0] for head, pattern in run.patterns.items()}),
    )


def _changes(means: Mapping[str, Tensor], nodes: Collection[Node], edits: NodeEdits) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for node in nodes:
        if node.id in edits.off:
            found[node.id] = partial(_constant, means[node.site][..., node.channel])
        elif node.id in edits.patch:
            found[node.id] = partial(_constant, edits.patch[node.id])
        elif node.id in edits.scale:
            found[node.id] = partial(torch.mul, edits.scale[node.id])
    return found


def _constant(given: Tensor, own: Tensor) -> Tensor:
    return given.to(own).expand_as(own)
