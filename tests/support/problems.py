"""What the tests of pruning share: random models of every kind, the micro model's problem, and one whose circuits have many sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import micro
import torch
from hypothesis import strategies as st
from worlds import environment

from extractor.circuits.graph import CircuitMask, Link, NodeIndex, links
from extractor.circuits.reference import masked_logit_diff
from extractor.circuits.sites import widths
from extractor.data.prompts import TaskBatch
from extractor.progress import Progress, Stopped
from extractor.pruning.problem import PruningProblem
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM
from extractor.spec.schema import PruneSpec
from extractor.training.loop import LoopEnvironment

VOCABULARY = 20
LONGEST = 8
SMALL = {"steps": 30, "lr": 0.03, "k_coef": 2e-3, "trials": 4, "population": 2, "edge_steps": 15, "edge_k_coefs": (2e-3, 1e-2)}
# Kinds of models: what a model can have that pruning must know of.
KINDS: dict[str, dict] = {
    "plain": {"sinks": False, "bigram": "none", "activation_frac": 1.0},
    "sinks": {"activation_frac": 1.0},
    "abs_topk": {"activation_frac": 0.25},
    "position_channels": {"d_pos_emb": 3, "activation": "relu", "activation_frac": 0.5},
    "added_positions": {"added_positions": True, "logits_bias": True, "sinks": False, "site_k": {"attn.v": 3, "mlp.post_act": 5}},
    "counts": {"bigram": "counts", "bigram_top": 4},
    "low_rank": {"bigram": "low_rank", "bigram_rank": 3, "d_pos_emb": 2},
    "one_sparse_layer": {"activation_frac": 0.25, "sparse_layers": [1, 1]},
    "one_layer": {"n_layer": 1, "activation_frac": 0.5},
}
# Blocks that the network of constants does not compute.
FURTHER: dict[str, dict] = {
    "gated": {"gated": True, "activation": "silu", "activation_frac": 1.0},
    "gated_topk": {"gated": True, "activation_frac": 0.5, "sinks": False},
    "rotary": {"rotary": [1.0, 0.3], "sinks": False},
    "partly_rotary": {"rotary": [0.7], "rotary_scale": 1.2, "heads": 2},
    "query_key_norm": {"query_key_norm": True, "rotary": [1.0, 0.1], "heads": 4, "activation_frac": 1.0},
    "parallel": {"parallel": True, "d_pos_emb": 2},
    "all": {"parallel": True, "gated": True, "rotary": [0.9], "query_key_norm": True, "heads": 5, "logits_bias": True},
}
EVERY_KIND = KINDS | FURTHER


@torch.no_grad()
def random_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> SparseGPTForCausalLM:
    """A model of width 12 with heads of 4; every number of it random, two weights in three zero."""
    shape = {"vocab_size": VOCABULARY, "n_layer": 2, "d_model": 12, "d_head": 4, "d_mlp": 16, "n_ctx": LONGEST, "activation_frac": 0.5}
    model = SparseGPTForCausalLM(SparseGPTConfig(**(shape | changes)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if not parameter.is_floating_point():  # of the bigram counts: which tokens
            parameter.copy_(torch.stack([torch.randperm(VOCABULARY, generator=generator)[: parameter.shape[1]] for _ in parameter]))
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if "ln_" in name or "_norm" in name else noise)
    for _, _, weight in links(model):
        weight.mul_(torch.rand(weight.shape, generator=generator) < 0.4)
    return model.to(dtype).eval().requires_grad_(False)


def random_batch(pairs: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> TaskBatch:
    """Pairs of prompts of two to LONGEST tokens; every prompt has answers and a sign of its own."""
    generator = torch.Generator().manual_seed(seed)
    last = torch.randint(1, LONGEST, (pairs,), generator=generator).repeat_interleave(2)
    ids = torch.randint(VOCABULARY, (2 * pairs, int(last.max()) + 1), generator=generator)
    correct = torch.randint(VOCABULARY, (2 * pairs,), generator=generator)
    wrong = (correct + 1 + torch.randint(VOCABULARY - 1, (2 * pairs,), generator=generator)) % VOCABULARY
    return TaskBatch(ids, last, correct, wrong, torch.tensor([1.0, -1.0], dtype=dtype).repeat(pairs))


def random_base(model: SparseGPTForCausalLM, seed: int = 0) -> dict[str, torch.Tensor]:
    """{site: (width,)} values of what is off."""
    generator = torch.Generator().manual_seed(seed)
    return {site: 0.5 * torch.randn(width, generator=generator).to(model.dtype) for site, width in widths(model).items()}


def random_edges(model: SparseGPTForCausalLM, sets: int, seed: int = 0, share: float = 0.7) -> dict[Link, torch.Tensor]:
    """Edge masks (P, target width, source width) of every link."""
    generator = torch.Generator().manual_seed(seed)
    return {(s, t): (torch.rand(sets, *w.shape, generator=generator) < share).to(model.dtype) for s, t, w in links(model)}


def everything(model: SparseGPTForCausalLM) -> CircuitMask:
    """All nodes and all edges."""
    return CircuitMask.full(model)


def nodes_of(model: SparseGPTForCausalLM, *names: str) -> CircuitMask:
    """The graph of these nodes, such as '0.mlp.post_act.0'."""
    return CircuitMask(model, NodeIndex.of(model).flags(micro.flat_indices(model, names).long()))


def names_of(model: SparseGPTForCausalLM, nodes: torch.Tensor) -> set[str]:
    """The names of nodes (N,) bool."""
    return set(CircuitMask(model, nodes).node_ids())


models = st.builds(
    lambda kind, seed: random_model(seed, torch.float64, **KINDS[kind]), st.sampled_from(sorted(KINDS)), st.integers(0, 1000)
)

every_model = st.builds(
    lambda kind, seed: random_model(seed, torch.float64, **EVERY_KIND[kind]), st.sampled_from(sorted(EVERY_KIND)), st.integers(0, 1000)
)


def micro_problem(folder: Path | None = None, *, redundant: bool = False, target: float = 0.15, **spec) -> PruningProblem:
    """The micro model's problem, its two pairs in every split; spec: changes of a small PruneSpec."""
    model = micro.micro_model(redundant)
    batch, made = micro.micro_batch(), PruneSpec(**(SMALL | {"targets": (), "pairs": 2, "trial_pairs": 2} | spec))
    return in_folder(PruningProblem(model, micro.micro_means(model), batch, batch, made, target, 0, _nowhere), folder)


def graded_problem(folder: Path | None = None, *, seed: int = 6, target: float = 0.15, **spec) -> PruningProblem:
    """A random model asked which of two tokens it prefers. Some weights are far larger than others: every target has another circuit."""
    model = random_model(seed, n_layer=1, d_model=8, d_mlp=8, activation_frac=1.0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, _, weight in links(model):
            weight.mul_(torch.randn(weight.shape, generator=generator).mul(2).exp() / 8)
        model.bigram_table.zero_()
    train, select = (_preferred(model, random_batch(32, seed + offset)) for offset in (100, 200))
    with model.record() as values:
        model(input_ids=train.ids)
    made = PruneSpec(**(SMALL | {"targets": (0.05, 0.3), "pairs": 16, "trial_pairs": 32, "necessity": 0.2} | spec))
    means = {site: x.mean((0, 1)) for site, x in values.items()}
    return in_folder(PruningProblem(model, means, train, select, made, target, seed, _nowhere), folder)


def _preferred(model: SparseGPTForCausalLM, batch: TaskBatch) -> TaskBatch:
    """The prompts with tokens 1 and 2 for answers, half of them each."""
    one = torch.ones_like(batch.last)
    asked = TaskBatch(batch.ids, batch.last, one, 2 * one, torch.ones(len(one)))
    diff = masked_logit_diff(model, asked, {}, {})
    return asked.as_answered(diff)


def in_folder(
    problem: PruningProblem, folder: Path | None, progress: Progress | None = None, tick: Callable[[int, int], None] | None = None
) -> PruningProblem:
    """The problem with its work kept in a folder; progress hears its loops, tick its elimination."""
    if folder is None:
        return problem
    made = replace(problem, env=lambda stage: environment(folder, progress, stage), work=folder / "work")
    return made if tick is None else replace(made, tick=tick)


def interrupted(problem: PruningProblem, folder: Path, asks: int) -> PruningProblem:
    """The problem, in a folder, by someone who stops it once it has been asked that often whether to go on."""
    left = iter(range(asks))
    stopping: list[bool] = []

    def should_stop() -> bool:
        if next(left, None) is None:
            stopping.append(True)
        return bool(stopping)

    def tick(done: int, of: int) -> None:
        if should_stop():
            raise Stopped

    return in_folder(problem, folder, Progress(should_stop=should_stop), tick)


def _nowhere(stage: str) -> LoopEnvironment:
    raise AssertionError(f"{stage} has no folder")
