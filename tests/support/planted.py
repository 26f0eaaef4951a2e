"""Models whose circuit is known, because it was written by hand, among many times as many nodes of noise.

Two layers, a few hundred nodes for every planted one, all of them alive. Nodes are of three kinds:

    planted     the circuit; its channels in the residual stream belong to it alone
    ignorant    noise that reads ignorant noise only, so that it cannot know the answer: the tokens that tell a pair's two prompts apart
                look alike to it. It disturbs: it reaches the answers' logits, the planted nodes, and the planted heads' patterns
    informed    noise that reads everything, the planted nodes too, so that it knows the answer. It cannot tell: it is read by informed
                noise only, and both answers weigh it alike

With `shortcut`, quote_close's prompts begin with a line that hints at the answer, and a second mechanism of two edges reads it; in shifted
prompts the hint is wrong. It is weaker than the circuit, so that the model is right on both.

All embeddings have one length, so that the norm of the first reads tells nothing either. Every edge of the plant is needed: where one path
would do, noise that is planted with it makes sure that it does not.

quote_close: 19 nodes, 12 edges. `opens` marks tokens that open a string, `double` those that open it with a double quote.

    0.attn   opens -> reach            at every token the share of openers so far: whether to look for one, and how hard
    0.mlp    double -> which           on openers +2 for double quotes, -2 for single ones; on other tokens the embedding puts noise there
    0.mlp    opens -> where            marks openers
    1.attn   reach -> q, where -> k, which -> v -> quote
    1.mlp    quote -> answer

bracket_counting: 10 nodes, 8 edges. `depth` is the number of brackets a token opens, plus noise on other tokens; `noise` that noise;
`opens` is 1 where any bracket opens.

    0.attn   depth - noise - 1.5 opens -> nested      the mean over tokens: positive when two are open
    1.mlp    nested -> answer
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from tokenizers import Tokenizer
from torch import Tensor

from extractor.circuits.graph import CircuitMask, Link, NodeIndex, links
from extractor.circuits.sites import widths
from extractor.data.prompts import TaskBatch, TokenizedTask, get_task, task_batch, tokenize_task
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM
from tasks import Pair, Task

CONTEXT = 64
FAN_IN = 10  # noise weights into every noise node
DISTURBING = 3  # noise weights into every planted node
PLANTED, IGNORANT, INFORMED = 0, 1, 2
# What a noise node of each kind may read.
_READS = {PLANTED: (IGNORANT,), IGNORANT: (IGNORANT,), INFORMED: (PLANTED, IGNORANT, INFORMED)}
# Standard deviation of a noise node for inputs of 1, by the end of its site's name.
_LOUDNESS = {"attn.q": 1.2, "attn.k": 1.2, "attn.v": 1.0, "attn.resid_delta": 0.4, "mlp.post_act": 1.5, "mlp.resid_delta": 0.4}


@dataclass(frozen=True)
class Planted:
    """nodes: ids such as '0.mlp.post_act.12'; edges, shortcut: (source id, target id); means: {site: (width,)} over a stream of text."""

    model: SparseGPTForCausalLM
    nodes: set[str]
    edges: set[tuple[str, str]]
    shortcut: set[tuple[str, str]]
    means: dict[str, Tensor]
    expression: TokenizedTask
    tokenizer: Tokenizer

    def batch(self, split: str, pairs: int, seed: int = 0, shifted: bool = False) -> TaskBatch:
        """Pairs of the planted task."""
        return task_batch(self.expression, self.tokenizer, split, pairs, seed, CONTEXT, shifted=shifted)


def planted(task: str, tokenizer: Tokenizer, seed: int = 0, shortcut: bool = False, **variant) -> Planted:
    """A model that does `task` by a planted circuit. seed: of the noise, and of where the circuit lies; variant: of SparseGPTConfig."""
    shape = {"n_layer": 2, "d_model": 64, "d_head": 16, "d_mlp": 256, "n_ctx": CONTEXT, "activation_frac": 1.0}
    torch.manual_seed(0)  # of weights that are all overwritten
    config = SparseGPTConfig(vocab_size=tokenizer.get_vocab_size(), **{**shape, **variant})
    expression = tokenize_task(_hinting(get_task(task)) if shortcut else get_task(task), tokenizer)
    plant = _Planter(SparseGPTForCausalLM(config), torch.Generator().manual_seed(seed))
    texts = [tokenizer.decode([token], skip_special_tokens=False) for token in range(config.vocab_size)]
    with torch.no_grad():
        CIRCUITS[task](plant, texts)
        nodes, edges = set(plant.nodes), set(plant.edges)
        if shortcut:
            _shortcut(plant, texts)
        plant.add_noise(expression)
    model = plant.model.eval().requires_grad_(False)
    means = _means(model, _stream(tokenizer, plant.generator))
    return Planted(model, nodes, edges, plant.edges - edges, means, expression, tokenizer)


def graph_of(plant: Planted) -> CircuitMask:
    """The planted nodes and edges as masks."""
    return graph(plant.model, plant.nodes, plant.edges)


def graph(model: SparseGPTForCausalLM, nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> CircuitMask:
    """These nodes and edges as masks."""
    index = NodeIndex.of(model)
    flags = {site: torch.zeros(width, dtype=torch.bool) for site, width in index.widths.items()}
    for node in nodes:
        site, channel = _split(node)
        flags[site][channel] = True
    masks = {(source, target): torch.zeros_like(weight, dtype=torch.bool) for source, target, weight in links(model)}
    for source, target in edges:
        (one, column), (other, row) = _split(source), _split(target)
        masks[one, other][row, column] = True
    return CircuitMask(model, index.join(flags), masks)


def names(model: SparseGPTForCausalLM, found: CircuitMask) -> tuple[set[str], set[tuple[str, str]]]:
    """The nodes and edges of a graph as they are named here."""
    nodes = {f"{site}.{channel}" for site, channels in found.channels().items() for channel in channels.tolist()}
    edges = {
        (f"{source}.{column}", f"{target}.{row}")
        for (source, target), there in found.present_edges().items()
        for row, column in there.nonzero().tolist()
    }
    return nodes, edges


# The circuits.


def _quote_close(plant: _Planter, texts: list[str]) -> None:
    double, single = (torch.tensor([text.endswith(q) and text.count('"') + text.count("'") == 1 for text in texts]) for q in "\"'")
    opens = double | single
    plant.telling = opens
    plant.embed("opens", 2.0 * opens)
    plant.embed("double", 2.0 * double)
    plant.embed("which", torch.where(opens, -2.0, plant.loud(len(texts), 2.5)))
    for source, target, weight in (
        ("0.attn.act_in.opens", "0.attn.v.opens", 2.0),
        ("0.attn.v.opens", "0.attn.resid_delta.reach", 3.0),
        ("0.mlp.act_in.double", "0.mlp.post_act.double", 2.1),
        ("0.mlp.post_act.double", "0.mlp.resid_delta.which", 1.0),
        ("0.mlp.act_in.opens", "0.mlp.post_act.opens", 2.5),
        ("0.mlp.post_act.opens", "0.mlp.resid_delta.where", 1.0),
        ("1.attn.act_in.reach", "1.attn.q.look", 15.0),
        ("1.attn.act_in.where", "1.attn.k.look", 2.0),
        ("1.attn.act_in.which", "1.attn.v.which", 2.0),
        ("1.attn.v.which", "1.attn.resid_delta.quote", 1.0),
        ("1.mlp.act_in.quote", "1.mlp.post_act.quote", 2.0),
        ("1.mlp.post_act.quote", "1.mlp.resid_delta.answer", 1.0),
    ):
        plant.edge(source, target, weight)
    plant.stray("0.mlp.act_in.opens", "0.mlp.post_act.double", 0.05)
    plant.stray("0.mlp.post_act.opens", "0.mlp.resid_delta.which", 0.02)
    plant.stray("1.attn.act_in.where", "1.attn.v.which", 0.05)
    plant.stray("1.attn.act_in.where", "1.attn.q.look", 0.5)
    plant.stray("1.attn.act_in.reach", "1.attn.k.look", 0.1)
    plant.bias("1.attn.q.look", -3.0)  # where no string was opened it looks away
    plant.bias("1.mlp.resid_delta.answer", -3.0)
    plant.answer("answer", 2.0)


def _bracket_counting(plant: _Planter, texts: list[str]) -> None:
    depth = torch.tensor([max(0, text.count("[") - text.count("]")) for text in texts])
    opens = depth > 0
    plant.telling = opens
    noise = torch.where(opens, 0.0, plant.loud(len(texts), 2.5))
    plant.embed("depth", 1.5 * depth + noise)
    plant.embed("noise", noise)
    plant.embed("opens", 1.5 * opens)
    for source, target, weight in (
        ("0.attn.act_in.depth", "0.attn.v.depth", 2.0),
        ("0.attn.act_in.noise", "0.attn.v.noise", 2.0),
        ("0.attn.act_in.opens", "0.attn.v.opens", 2.0),
        ("0.attn.v.depth", "0.attn.resid_delta.nested", 12.0),
        ("0.attn.v.noise", "0.attn.resid_delta.nested", -12.0),
        ("0.attn.v.opens", "0.attn.resid_delta.nested", -18.0),
        ("1.mlp.act_in.nested", "1.mlp.post_act.nested", 4.0),
        ("1.mlp.post_act.nested", "1.mlp.resid_delta.answer", 1.0),
    ):
        plant.edge(source, target, weight)
    plant.stray("0.attn.act_in.opens", "0.attn.v.noise", 0.05)
    plant.stray("0.attn.act_in.noise", "0.attn.v.opens", 0.005)
    plant.stray("0.attn.act_in.depth", "0.attn.v.noise", 0.005)
    plant.bias("1.mlp.resid_delta.answer", -1.8)
    plant.answer("answer", -3.0)  # positive prompts are the flat ones


def _shortcut(plant: _Planter, texts: list[str]) -> None:
    hint = torch.tensor([(text == " 1") - (text == " 2") for text in texts]).float()
    plant.telling = plant.telling | (hint != 0)
    plant.embed("hint", 4.0 * hint)
    plant.edge("0.attn.act_in.hint", "0.attn.v.hint", 2.0)
    plant.edge("0.attn.v.hint", "0.attn.resid_delta.hinted", 3.5)
    plant.answer("hinted", 0.5)


def _hinting(task: Task) -> Task:
    """The task with a first line in each prompt that tells the answer; in shifted prompts it tells the other one."""

    def write(rng: random.Random, told: str = "12") -> Pair:
        pair = next(pair for pair in iter(lambda: task.write(rng), None) if not any(map(str.isdigit, pair.positive)))
        return Pair(f"x = {told[0]}\n{pair.positive}", f"x = {told[1]}\n{pair.negative}")

    return replace(task, write=write, shifted=(partial(write, told="21"),) * 5)


CIRCUITS: dict[str, Callable[[_Planter, list[str]], None]] = {"quote_close": _quote_close, "bracket_counting": _bracket_counting}


# How they are planted.


@dataclass
class _Planter:
    """A model whose weights are written. Channels are named; where a name lies is drawn.

    telling   (V,) bool: the tokens that tell a pair's two prompts apart, which look alike to ignorant noise
    """

    model: SparseGPTForCausalLM
    generator: torch.Generator
    nodes: set[str] = field(default_factory=set)
    edges: set[tuple[str, str]] = field(default_factory=set)
    telling: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        for name, parameter in self.model.named_parameters():
            if "ln_" not in name and "wpe" not in name:
                parameter.data.zero_()
        self.width, self.weights = self.model.config.d_model, {(s, t): w for s, t, w in links(self.model)}
        self._places: dict[str, dict[str, int]] = {}
        self._orders: dict[str, list[int]] = {}
        self._head = {layer: int(self._rand(1) * self.model.config.n_head) for layer in range(self.model.config.n_layer)}
        self._readout: dict[str, float] = {}
        # One residual channel in seven is held back for the plant.
        order = self._order(self.width)
        self._orders["residual"], free = order[: self.width // 7], order[self.width // 7 :]
        self.kinds = torch.full((self.width,), PLANTED)
        self.kinds[free[::2]], self.kinds[free[1::2]] = IGNORANT, INFORMED

    # the circuit

    def embed(self, name: str, values: Tensor) -> None:
        """Token embeddings (V,) of a residual channel."""
        self.model.transformer.wte.weight[:, self._place("residual", name)] = values

    def edge(self, source: str, target: str, weight: float) -> None:
        """A planted weight between two nodes such as '0.attn.v.which', the last word being the channel's name."""
        (one, column), (other, row) = self._find(source), self._find(target)
        self.weights[one, other][row, column] = weight
        self.nodes |= {f"{one}.{column}", f"{other}.{row}"}
        self.edges.add((f"{one}.{column}", f"{other}.{row}"))

    def stray(self, source: str, target: str, weight: float) -> None:
        """A weak weight between two planted nodes, which the circuit does without."""
        (one, column), (other, row) = self._find(source), self._find(target)
        self.weights[one, other][row, column] = weight

    def bias(self, node: str, value: float) -> None:
        site, channel = self._find(node)
        self._bias(site)[channel] = value

    def answer(self, name: str, weight: float) -> None:
        """The first answer reads a residual channel with this weight, the second with its opposite."""
        self._readout[name] = weight

    def loud(self, count: int, size: float) -> Tensor:
        """Noise (count,) of either sign and of between half and one and a half times this size: AbsTopK keeps it."""
        return size * (0.5 + self._rand(count)) * (self._rand(count) < 0.5).float().mul(2).sub(1)

    # the noise

    def add_noise(self, expression: TokenizedTask) -> None:
        """Noise in every weight matrix, in biases, norms, bigrams and sinks."""
        for (source, target), weight in self.weights.items():
            self._noise_weights((source, target), weight)
        for site in dict.fromkeys(target for _, target in self.weights):
            noisy = (self._kinds(site) != PLANTED) & (self._bias(site) == 0)
            self._bias(site).add_(torch.where(noisy, self._randn(len(noisy), 0.2), 0.0))
        for layer, block in enumerate(self.model.blocks):
            for norm in (block.ln_1, block.ln_2):
                norm.weight.mul_(torch.where(self.kinds == PLANTED, 1.0, 0.8 + 0.4 * self._rand(self.width)))
            if block.attn.sink_logit is not None:
                block.attn.sink_logit.copy_(self._randn(len(block.attn.sink_logit), 1.0))
                block.attn.sink_logit[self._head[layer]] = 0
        self._embed_noise()
        self._unembed(expression)
        table = self.model.bigram_table
        table.copy_(self._randn(table.numel(), 0.2).view_as(table))

    def _noise_weights(self, link: Link, weight: Tensor) -> None:
        source, target = link
        kinds, reads = self._kinds(source), self._kinds(target)
        loudness = _LOUDNESS[target.split(".", 1)[1]]
        for kind in (PLANTED, IGNORANT, INFORMED):
            rows = (reads == kind).nonzero().flatten()
            allowed = torch.stack([kinds == one for one in _READS[kind]]).any(0)
            fan = min(DISTURBING if kind == PLANTED else FAN_IN, int(allowed.sum()))
            chosen = torch.where(allowed, self._rand(len(rows), len(kinds)), -1.0).topk(fan).indices
            size = 0.02 if kind == PLANTED else loudness / fan**0.5
            noise = torch.zeros(len(rows), len(kinds)).scatter_(1, chosen, self._randn(chosen.numel(), size).view_as(chosen))
            if target.endswith(("attn.q", "attn.k")):  # disturbed, but not so far that planted heads look elsewhere
                noise[rows // self.model.config.d_head == self._head[int(target[0])]] *= 0.3
            weight[rows] += noise

    def _embed_noise(self) -> None:
        table = self.model.transformer.wte.weight
        ignorant, informed = self.kinds == IGNORANT, self.kinds == INFORMED
        rows = self._sparse(len(table), int(ignorant.sum()))
        rows[self.telling] = rows[:1].clone()
        table[:, ignorant] = _of_length(rows, self.width / 4)
        left = self.width - table.square().sum(1, keepdim=True)
        table[:, informed] = _of_length(self._sparse(len(table), int(informed.sum())), left)

    def _unembed(self, expression: TokenizedTask) -> None:
        first, second = expression.answer_ids
        weight = self.model.lm_head.weight
        weight.copy_(0.2 * self._sparse(*weight.shape))
        alike = self.kinds != IGNORANT
        weight[second, alike] = weight[first, alike]
        for name, value in self._readout.items():
            channel = self._place("residual", name)
            weight[first, channel], weight[second, channel] = value, -value

    # where things are

    def _find(self, node: str) -> tuple[str, int]:
        """(site, channel) of a named node."""
        site, name = node.rsplit(".", 1)
        layer, place = site.split(".", 1)
        if place.endswith(("act_in", "resid_delta")):
            return site, self._place("residual", name)
        if place == "mlp.post_act":
            self._orders.setdefault(site, self._order(self.model.config.d_mlp))
            return site, self._place(site, name)
        group = f"{layer}.values" if place == "attn.v" else f"{layer}.scores"  # one channel of q and k meets itself
        size = self.model.config.d_head
        self._orders.setdefault(group, [self._head[int(layer)] * size + channel for channel in self._order(size)])
        return site, self._place(group, name)

    def _place(self, group: str, name: str) -> int:
        places = self._places.setdefault(group, {})
        if name not in places:
            places[name] = self._orders[group][len(places)]
        return places[name]

    def _kinds(self, site: str) -> Tensor:
        """The kind (width,) of every node of a site."""
        layer, place = site.split(".", 1)
        config = self.model.config
        if place.endswith("resid_delta"):
            return self.kinds
        if place.endswith("act_in"):  # position channels know nothing
            return torch.cat([self.kinds, torch.full((config.d_pos_emb,), IGNORANT)])
        if place == "mlp.post_act":
            kinds = torch.arange(config.d_mlp) % 2 + IGNORANT
        else:
            # Patterns of heads that carry what is ignorant must be so too; their values need not.
            head = torch.arange(self.width) // config.d_head
            knows = (head - self._head[int(layer)]) % config.n_head >= (config.n_head + 1) // 2
            if place == "attn.v":
                knows = knows | (torch.arange(self.width) % 2 == 1)
            kinds = torch.where(knows, INFORMED, IGNORANT)
        for node in self.nodes:
            where, channel = _split(node)
            if where == site:
                kinds[channel] = PLANTED
        return kinds

    def _bias(self, site: str) -> Tensor:
        layer, place = site.split(".", 1)
        block = self.model.blocks[int(layer)]
        if place in ("attn.q", "attn.k", "attn.v"):
            return block.attn.c_attn.bias.chunk(3)["qkv".index(place[-1])]
        part = block.attn if place.startswith("attn") else block.mlp
        return block.mlp.c_fc.bias if place == "mlp.post_act" else part.c_proj.bias

    # chance

    def _order(self, count: int) -> list[int]:
        return torch.randperm(count, generator=self.generator).tolist()

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def _randn(self, count: int, size: float) -> Tensor:
        return size * torch.randn(count, generator=self.generator)

    def _sparse(self, rows: int, columns: int) -> Tensor:
        """Normal numbers (rows, columns), half of them zero."""
        return torch.randn(rows, columns, generator=self.generator) * (self._rand(rows, columns) < 0.5)


def _of_length(rows: Tensor, square: Tensor | float) -> Tensor:
    """Rows (n, columns), each with this sum of squares, a number or (n, 1)."""
    return rows * (square / rows.square().sum(1, keepdim=True)).sqrt()


def _split(node: str) -> tuple[str, int]:
    site, _, channel = node.rpartition(".")
    return site, int(channel)


def _stream(tokenizer: Tokenizer, generator: torch.Generator, rows: int = 128) -> Tensor:
    """Token ids (rows, CONTEXT): mostly random tokens, and prompts of both tasks."""
    ids = torch.randint(tokenizer.get_vocab_size(), (rows, CONTEXT), generator=generator)
    for number, task in enumerate(CIRCUITS):
        text = "\n".join(pair.positive + "\n" + pair.negative for _, pair in zip(range(100), get_task(task).pairs("train"), strict=False))
        prompts = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
        share = rows // 16
        ids[number * share : (number + 1) * share] = prompts[: share * CONTEXT].view(share, CONTEXT)
    return ids


@torch.no_grad()
def _means(model: SparseGPTForCausalLM, ids: Tensor) -> dict[str, Tensor]:
    with model.record() as values:
        model(input_ids=ids, logits_to_keep=1)
    assert set(values) == set(widths(model))
    return {site: x.mean((0, 1)) for site, x in values.items()}
