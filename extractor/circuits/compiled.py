"""A circuit that runs without its model: the weights of its nodes, and tables for the residual channels that no node reads or writes.

Such a channel c holds, before norm n,   h_c = embedding[token, c] + position[t, c] + constant_n[c].   Of these channels the circuit needs

    sum_c h_c^2        = squares[token, n] + position_squares[t, n] + crossed[token, t]      crossed = 2 sum_c embedding_c position_c
    sum_c readout_c h_c = rest_readout[token, answer] + position_readout[t, answer]

    logit difference = scale * (h_tracked . readout + rest_readout + position_readout) + direct,  each at first minus second answer

With the `network` of its nodes (steps 4 to 6 there) this is `reference.masked_logit_diff` up to rounding.

Shapes: B prompts, T tokens, V vocabulary, R tracked residual channels (a node reads or writes them), L layers, A answers, C longest prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from extractor.circuits.graph import CircuitMask, NodeIndex, links
from extractor.circuits.layers import AblationValues, Matrix, PrunedAttention, PrunedMLP, Read, SinkTerms, Slots, Write
from extractor.circuits.masks import Masks
from extractor.circuits.network import FastMaskedModel, PreparedPrompts, run
from extractor.circuits.sites import widths
from extractor.errors import BrokenArtifact, first_line
from extractor.files import read_tensors, write_tensors

if TYPE_CHECKING:
    from extractor.circuits.circuit import Circuit
    from extractor.circuits.graph import Link
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM


FILE = "compiled.safetensors"
_KIND = "compiled circuit, version 1"
# Names in the file are those of its first version: a part's class and its fields, under which their tensors are stored too.
_PARTS = {"AttentionCut": PrunedAttention, "NeuronsCut": PrunedMLP, "Read": Read, "Write": Write, "Matrix": Matrix, "Slots": Slots}
_STORED_PART = {part: name for name, part in _PARTS.items()}
_STORED_FIELD = {"ablation_values": "base"}
_SINK_FIELDS = {"sink": "logit", "leak": "write", "still_sink": "constant_logit", "still_leak": "constant_write"}  # of an AttentionCut
_ACTIVATIONS = {"GELU": nn.GELU(), "GELU tanh": nn.GELU(approximate="tanh"), "ReLU": nn.ReLU()}
_AT_ONCE = 1 << 21  # values of one bigram chunk, tokens times vocabulary: small enough that memory is used again


class CompiledCircuit(nn.Module):
    """Token ids in, logit differences out. Made by `compile_circuit` or `load`; holds no parameters, only buffers.

    answers           (A,) the tokens that it tells apart
    tracked           (V, R) embeddings;                               position_tracked  (C, R), added to them
    squares           (V, 2L + 1) of the other channels, by norm;      position_squares  (C, 2L + 1)
    crossed           (V, C) twice the product of embedding and position, of the other channels
    readout           (A, R) weights of the tracked channels in the answers' logits, normed
    rest_readout      (V, A) what the other channels give, times the norm;  position_readout  (C, A)
    direct            (V, A) bigrams, and the answers' biases
    C is 0 in all of them where the model adds no positions to its embeddings.
    """

    answers: Tensor
    tracked: Tensor
    squares: Tensor
    position_tracked: Tensor
    position_squares: Tensor
    crossed: Tensor
    readout: Tensor
    rest_readout: Tensor
    position_readout: Tensor
    direct: Tensor
    answer_rows: Tensor  # (V,): an answer's place among the answers, -1 for other tokens

    def __init__(self, tensors: Mapping[str, Tensor], layers: list, longest: int | None):
        """layers: what `_described` returns for each, their tensors among `tensors`; longest: the largest T, None: any."""
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        rows = torch.full((len(self.tracked),), -1, device=self.answers.device)
        rows[self.answers] = torch.arange(len(self.answers), device=rows.device)
        self.register_buffer("answer_rows", rows, persistent=False)
        self.longest = longest
        self._described = layers
        self._restore()

    def _restore(self) -> None:
        self._layers = _restored(self._described, self._buffers)

    def _apply(self, fn, recurse=True):
        """Moves and casts, as of any module, and the layers with it: they hold the buffers."""
        super()._apply(fn, recurse)
        self._restore()
        return self

    def extra_repr(self) -> str:
        return f"layers={len(self._layers)}, tracked={self.tracked.shape[1]}, answers={self.answers.tolist()[:8]}, nbytes={self.nbytes}"

    @property
    def layers(self) -> Sequence[tuple[PrunedAttention, PrunedMLP]]:
        """The sublayers, whose nodes are all on."""
        return self._layers

    @property
    def described(self) -> list:
        """The sublayers as JSON: their parts and fields, tensors by their names in `state_dict`."""
        return self._described

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: the size of the file without its header."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def forward(self, ids: Tensor, last: Tensor | None = None, first: Tensor | None = None, second: Tensor | None = None) -> Tensor:
        """The logit of the first answer minus that of the second, (B,).

        ids             (B, T) right padded
        last            (B,) the position whose next token is scored; None: T - 1
        first, second   (B,) answers' tokens; None: the circuit's two
        Raises ValueError for prompts that are too long and for tokens that are not answers of the circuit.
        """
        return run(self._layers, self._prompts(ids, last, self._rows(ids, first, 0), self._rows(ids, second, 1)), Masks())[0]

    def _rows(self, ids: Tensor, answer: Tensor | None, usual: int) -> Tensor:
        """(B,) places of these tokens among the answers."""
        if answer is None:
            if len(self.answers) != 2:
                raise ValueError(f"this circuit has {len(self.answers)} answers: name two of them, first and second")
            return ids.new_full((len(ids),), usual)
        rows = self.answer_rows[answer]
        if bool((rows < 0).any()):
            raise ValueError(f"token {int(answer[rows < 0][0])} is not one of this circuit's {len(self.answers)} answers")
        return rows

    def _prompts(self, ids: Tensor, last: Tensor | None, first: Tensor, second: Tensor) -> PreparedPrompts:
        count, length = ids.shape
        if self.longest is not None and length > self.longest:
            raise ValueError(f"{length} tokens are too many: the circuit has positions for {self.longest}")
        rows, places = torch.arange(count, device=ids.device), torch.arange(length, device=ids.device)
        last = rows.new_full((count,), length - 1) if last is None else last
        tracked, rest = functional.embedding(ids, self.tracked), functional.embedding(ids, self.squares)
        token = ids[rows, last]
        given = self.rest_readout[token, first] - self.rest_readout[token, second]
        if len(self.position_tracked):
            tracked = tracked + self.position_tracked[:length]
            rest = (rest + self.position_squares[:length] + self.crossed[ids, places][..., None]).clamp_min(0)
            given = given + self.position_readout[last, first] - self.position_readout[last, second]
        return PreparedPrompts(
            rows,
            tracked[None],
            rest.permute(2, 0, 1),
            last,
            self.readout[first] - self.readout[second],
            self.direct[token, first] - self.direct[token, second],
            given,
        )

    def save(self, path: Path) -> Path:
        """Write one safetensors file atomically: `path`, or compiled.safetensors in the folder `path`. Returns its path."""
        place = _file(path)
        # Under one key: safetensors writes several in an order of its own, and equal circuits must be equal files.
        write_tensors(place, self.state_dict(), {_KIND: json.dumps({"layers": self._described, "longest": self.longest})})
        return place

    @classmethod
    def load(cls, path: Path) -> CompiledCircuit:
        """Read what `save` wrote, on the CPU. Raises BrokenArtifact."""
        from safetensors import safe_open

        place = _file(path)
        tensors = read_tensors(place)
        with safe_open(place, "pt") as file:
            said = file.metadata() or {}
        if _KIND not in said:
            raise BrokenArtifact(f"{place} is not a {_KIND}")
        try:
            found = cls(tensors, **json.loads(said[_KIND]))
            ids = torch.full((1, found.longest or 1), len(found.tracked) - 1)
            found(ids, first=found.answers[-1:], second=found.answers[-1:])
        except Exception as error:  # one pass shows whatever is missing or misshapen, as an error of torch or Python
            raise BrokenArtifact(f"{place} is not a complete compiled circuit: {type(error).__name__}: {first_line(error)}") from None
        return found


def _file(path: Path) -> Path:
    path = Path(path)
    return path / FILE if path.is_dir() else path


@torch.no_grad()
def compile_circuit(model: SparseGPTForCausalLM, ablation_values: AblationValues, graph: CircuitMask, answers: Tensor) -> CompiledCircuit:
    """The circuit `graph` of `model` by itself, in fp32, on the model's device.

    ablation_values   {site: (width,)} replacement value of every node
    answers           (A,) tokens that may be answers; each prompt names its two
    Raises BrokenArtifact where ablation_values does not fit the model.
    """
    if {site: tuple(value.shape) for site, value in ablation_values.items()} != {site: (width,) for site, width in widths(model).items()}:
        raise BrokenArtifact("the means do not fit the model: other sites, or sites of another width")
    network = FastMaskedModel(model, ablation_values, graph.nodes)
    edges = {link: mask[None].to(model.dtype) for link, mask in network.cut(graph.edges or {}).items()}
    layers = [(_fold_attention(attention, edges), _fold_mlp(neurons, edges)) for attention, neurons in network.layers]
    tensors = _tables(network, torch.tensor(list(dict.fromkeys(answers.tolist())), device=model.device))
    described = [
        [_described(part, f"{i}_{name}", tensors) for name, part in zip(("attn", "mlp"), pair, strict=True)]
        for i, pair in enumerate(layers)
    ]
    return CompiledCircuit(tensors, described, None if model.transformer.wpe is None else model.config.n_ctx)


def _fold_attention(part: PrunedAttention, edges: Mapping[Link, Tensor]) -> PrunedAttention:
    part = replace(part, q=_fold(part.q, edges), k=_fold(part.k, edges), v=_fold(part.v, edges))
    if part.sinks is None:
        return replace(part, out=_fold(part.out, edges))
    weight = _listed(part.out, edges)
    lost = ((part.out.weight - weight) * part.out.ablation_values).unflatten(1, (part.heads, -1)).sum(-1) if part.heads else 0
    return replace(part, out=replace(part.out, weight=weight), sinks=replace(part.sinks, write=part.sinks.write + lost))


def _fold_mlp(part: PrunedMLP, edges: Mapping[Link, Tensor]) -> PrunedMLP:
    return replace(part, fc=_fold(part.fc, edges), proj=_fold(part.proj, edges))


def _fold(matrix: Matrix, edges: Mapping[Link, Tensor]) -> Matrix:
    """The matrix without its ablated edges; the bias takes what they carry."""
    weight = _listed(matrix, edges)
    return replace(matrix, weight=weight, bias=matrix.bias + (matrix.weight - weight) @ matrix.ablation_values)


def _listed(matrix: Matrix, edges: Mapping[Link, Tensor]) -> Tensor:
    mask = matrix.mask(Masks(edges=edges)) if matrix.link in edges else None
    return matrix.weight if mask is None else matrix.weight * mask[0]


def _tables(network: FastMaskedModel, answers: Tensor) -> dict[str, Tensor]:
    """The tables of a `CompiledCircuit`, made in fp64, a few tokens at a time."""
    model, tracked = network.model, network.tracked
    vocabulary, width = model.transformer.wte.weight.shape
    others = torch.ones(width, dtype=torch.bool, device=tracked.device)
    others[tracked] = False
    constants = network.constants[:, others].double()
    readout = model.lm_head.weight[answers].double() * model.transformer.ln_f.weight.double()
    bias = 0 if model.logits_bias is None else model.logits_bias[answers].double()
    table = model.transformer.wpe if model.config.added_positions else None
    positions = constants.new_zeros(0, width) if table is None else table.weight.double()
    there = positions[:, others]

    def by_token(tokens: Tensor) -> dict[str, Tensor]:
        h = model.transformer.wte.weight[tokens].double()
        rest = h[:, others]
        direct = constants.new_zeros(len(tokens), len(answers))
        if model.bigram.tensors:
            direct += model.bigram.add(model, direct.new_zeros(len(tokens), vocabulary, dtype=model.dtype), tokens)[:, answers]
        return {
            "tracked": h[:, tracked],
            "squares": _squares(rest, constants) + constants.square().sum(-1),
            "crossed": 2 * rest @ there.T,
            "rest_readout": (rest + constants[-1]) @ readout[:, others].T,
            "direct": direct + bias,
        }

    chunks = [by_token(tokens) for tokens in torch.arange(vocabulary, device=answers.device).split(max(1, _AT_ONCE // vocabulary))]
    tables = {name: torch.cat([chunk[name].float() for chunk in chunks]) for name in chunks[0]}
    tables |= {
        "position_tracked": positions[:, tracked].float(),
        "position_squares": _squares(there, constants).float(),
        "position_readout": (there @ readout[:, others].T).float(),
        "readout": readout[:, tracked].float(),
    }
    return tables | {"answers": answers}


def _squares(h: Tensor, constants: Tensor) -> Tensor:
    """(n, 2L + 1): sum of h^2 + 2 h c over channels, for h (n, channels) and every row c of constants (2L + 1, channels)."""
    return h.square().sum(-1, keepdim=True) + 2 * h @ constants.T


def _described(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON for `_restored`; its tensors go into `tensors`, each under its own name."""
    if isinstance(value, Tensor):
        tensors[name] = (value.float() if value.is_floating_point() else value).clone()
        return {"tensor": name}
    if isinstance(value, nn.Module):
        return {"activation": type(value).__name__ + (" tanh" if getattr(value, "approximate", "none") == "tanh" else "")}
    if is_dataclass(value):
        parts = {field: _described(part, f"{name}_{field}", tensors) for field, part in _stored_fields(value).items()}
        return {"part": _STORED_PART[type(value)], "of": parts}
    if isinstance(value, tuple):
        return [_described(item, f"{name}_{number}", tensors) for number, item in enumerate(value)]
    return value


def _restored(described: Any, tensors: Mapping[str, Tensor | None]) -> Any:
    if isinstance(described, list):
        return tuple(_restored(item, tensors) for item in described)
    if not isinstance(described, dict):
        return described
    if "tensor" in described:
        return tensors[described["tensor"]]
    if "activation" in described:
        return _ACTIVATIONS[described["activation"]]
    return _part_of(described["part"], {name: _restored(item, tensors) for name, item in described["of"].items()})


def _stored_fields(part: Any) -> dict[str, Any]:
    """The fields of a part under their stored names, in the stored order."""
    found = {_STORED_FIELD.get(field.name, field.name): getattr(part, field.name) for field in fields(part)}
    if isinstance(part, PrunedAttention):
        terms = found.pop("sinks")
        found |= {stored: getattr(terms, name, None) for stored, name in _SINK_FIELDS.items()}
    return found


def _part_of(stored_part: str, stored: dict[str, Any]) -> Any:
    """The part with these stored fields."""
    part = _PARTS[stored_part]
    if part is PrunedAttention:
        terms = {name: stored.pop(field) for field, name in _SINK_FIELDS.items()}
        stored["sinks"] = None if terms["logit"] is None else SinkTerms(**terms)
    present = {field: name for name, field in _STORED_FIELD.items()}
    return part(**{present.get(field, field): value for field, value in stored.items()})


@torch.no_grad()
def mask_of(circuit: Circuit, model: SparseGPTForCausalLM) -> CircuitMask:
    """The nodes and edges that a circuit lists as masks of `model`; edges None where it lists every nonzero weight between its nodes.

    Raises BrokenArtifact for a node or an edge that the model does not have.
    """
    index, matrices = NodeIndex.of(model), {(source, target): weight for source, target, weight in links(model)}
    place = {node.id: (node.site, node.channel) for node in circuit.nodes}
    starts, chosen = index.starts(), []
    for site, channel in place.values():
        if site not in starts or not isinstance(channel, int) or not 0 <= channel < index.widths[site]:
            raise BrokenArtifact(f"the circuit of {circuit.task!r} does not fit the model: it has no node {site}.{channel}")
        chosen.append(starts[site] + channel)
    edges = {link: torch.zeros_like(weight, dtype=torch.bool) for link, weight in matrices.items()}
    for edge in circuit.edges:
        (source, column), (target, row) = place.get(edge.source, ("", 0)), place.get(edge.target, ("", 0))
        if (source, target) not in matrices or not matrices[source, target][row, column]:
            raise BrokenArtifact(f"the circuit of {circuit.task!r} does not fit the model: no weight joins {edge.source} to {edge.target}")
        edges[source, target][row, column] = True
    graph = CircuitMask(model, index.flags(torch.tensor(chosen, dtype=torch.long, device=model.device)))
    return graph if graph.edge_count() == sum(int(mask.sum()) for mask in edges.values()) else replace(graph, edges=edges)
