"""How many weights stay, which, and the learning rate that goes with it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import CORPUS, VOCABULARY

from extractor.spec.schema import MAX_BIGRAM_VOCABULARY, OptimSpec, SparseModelSpec, SparsitySpec, TrainSpec
from extractor.training.optimizer import SparseOptimizer, scale_gradients
from extractor.training.projection import Constraint, Projector, constraints, keep_mask, nonzeros, project, project_together
from extractor.training.schedule import annealed_fraction, sharkfin
from extractor.training.train_sparse import fill_bigram, new_sparse_gpt, train_sparse

SHAPE = SparseModelSpec(n_layer=2, d_model=32, d_head=8, mlp_ratio=2, n_ctx=16)
SPARSITY = SparsitySpec(weight_frac=0.2, embedding_frac=0.1, bias_frac=0.25)


def expected(item, sparsity: SparsitySpec) -> int:
    """round(fraction * entries), or min_per_neuron for each neuron of a matrix if that is more; by the tensor's name."""
    rows, columns = item.tensor.shape if item.tensor.dim() == 2 else (0, 0)
    if item.name.endswith(("c_attn.weight", "c_fc.weight")):
        return max(round(sparsity.weight_frac * rows * columns), rows * sparsity.min_per_neuron)
    if item.name.endswith("c_proj.weight"):
        return max(round(sparsity.weight_frac * rows * columns), columns * sparsity.min_per_neuron)
    if item.name.endswith("bias"):
        return max(1, round(sparsity.bias_frac * item.tensor.numel()))
    return max(1, round(sparsity.embedding_frac * rows * columns))


def random_model(seed: int = 0):
    model = new_sparse_gpt(SHAPE, 2, 60, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def test_what_is_constrained_and_what_is_free():
    model = random_model()
    names = {c.name for c in constraints(model, SPARSITY)}
    free = {name for name, _ in model.named_parameters()} - names
    assert free == {
        "bigram_table",
        "transformer.ln_f.weight",
        *(f"transformer.h.{i}.{n}" for i in (0, 1) for n in ("ln_1.weight", "ln_2.weight", "attn.sink_logit")),
    }


@pytest.mark.parametrize("weight_frac", [0.2, 0.05], ids=["the fraction decides", "the protected minimum decides"])
def test_after_annealing_every_tensor_has_exactly_its_number_of_nonzeros(weight_frac: float):
    sparsity = SPARSITY.model_copy(update={"weight_frac": weight_frac})
    model = random_model()
    constrained = constraints(model, sparsity)
    project(constrained, 99, 100, sparsity)
    assert nonzeros(model, sparsity) == {item.name: expected(item, sparsity) for item in constrained}


@pytest.mark.parametrize("weight_frac", [0.2, 0.01])
def test_every_neuron_keeps_its_four_on_its_own_side(weight_frac: float):
    sparsity = SPARSITY.model_copy(update={"weight_frac": weight_frac})
    model = random_model()
    with torch.no_grad():
        for block in model.blocks:  # neurons that would lose everything
            block.mlp.c_fc.weight[:5] *= 1e-3
            block.attn.c_attn.weight[40:45] *= 1e-3
            block.mlp.c_proj.weight[:, :5] *= 1e-3
            block.attn.c_proj.weight[:, :5] *= 1e-3
    project(constraints(model, sparsity), 99, 100, sparsity)
    for block in model.blocks:
        for weight, axis in ((block.mlp.c_fc, 1), (block.attn.c_attn, 1), (block.mlp.c_proj, 0), (block.attn.c_proj, 0)):
            assert int(weight.weight.count_nonzero(axis).min()) >= 4


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    share=st.floats(0.01, 1),
    axis=st.sampled_from([None, 0, 1]),
    least=st.integers(0, 5),
    double=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_mask_is_the_strongest_per_neuron_and_then_the_strongest_of_the_rest(rows, columns, share, axis, least, double, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(torch.float64 if double else torch.float32)
    protected: set[tuple[int, int]] = set()
    if axis is not None:
        for neuron in range(weight.shape[1 - axis]):
            line = weight.abs().select(1 - axis, neuron)
            best = line.argsort(descending=True)[:least].tolist()
            protected |= {(neuron, i) if axis == 1 else (i, neuron) for i in best}
    kept = max(1, len(protected), round(share * weight.numel()))
    rest = sorted((-abs(weight[r, c].item()), r, c) for r in range(rows) for c in range(columns) if (r, c) not in protected)
    reference = protected | {(r, c) for _, r, c in rest[: kept - len(protected)]}
    mask = keep_mask(weight, kept, axis, least)
    assert {tuple(place) for place in mask.nonzero().tolist()} == reference


def test_equal_magnitudes_are_kept_in_order_and_the_number_is_exact():
    weight = torch.tensor([[1.0, -1.0, 1.0, 0.5], [-1.0, 1.0, 1.0, 2.0]])
    assert keep_mask(weight, 3, None, 0).tolist() == [[True, True, False, False], [False, False, False, True]]
    assert keep_mask(weight, 3, 1, 1).tolist() == [[True, True, False, False], [False, False, False, True]]
    assert keep_mask(weight, 5, 0, 1).tolist() == [[True, True, True, False], [True, False, False, True]]


def weights_like_a_trainings(kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random weights: plain, of few distinct magnitudes, mostly zero, or with weak and dead neurons on both sides."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    if kind == "ties":
        return weight.mul(3).round()
    if kind == "zeros":
        return weight * (torch.rand(shape, generator=generator) < 0.03)
    if kind == "weak neurons" and len(shape) == 2:
        weight[:: shape[0] // 5 + 1] *= 1e-3
        weight[:, :: shape[1] // 4 + 1] *= 1e-4
        weight[0] = 0
    return weight


def plainly(item: Constraint, fraction: float, least: int) -> torch.Tensor:
    return item.tensor * keep_mask(item.tensor, item.kept(fraction, least), item.neuron_axis, least)


KINDS = ["normal", "ties", "zeros", "weak neurons"]


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    axis=st.sampled_from([None, 0, 1]),
    fractions=st.lists(st.floats(0.0005, 0.9999), min_size=1, max_size=4),
    least=st.integers(0, 6),
    move=st.sampled_from([0.0, 1e-3, 0.3]),
    seed=st.integers(0, 999),
)
def test_the_projector_equals_the_plain_mask_from_cold_and_from_warm(kind, rows, columns, axis, fractions, least, move, seed):
    shape = (rows,) if axis is None and columns == 1 else (rows, columns)
    tensor = weights_like_a_trainings(kind, shape, seed)
    warm = None
    for turn, fraction in enumerate(fractions):
        tensor = tensor + move * weights_like_a_trainings(kind, shape, seed + turn + 1)
        item = Constraint("w", tensor, fraction, axis)
        reference = plainly(item, fraction, least)
        cold = Projector([Constraint("w", tensor.clone(), fraction, axis)], SparsitySpec(min_per_neuron=least))
        warm = warm or Projector([item], SparsitySpec(min_per_neuron=least))
        warm.constrained = [item]
        together = tensor.clone()
        for projector in (cold, warm):
            projector.project(99, 100)
            assert torch.equal(projector.constrained[0].tensor, reference)
        if item.kept(fraction, least) < tensor.numel():
            project_together([together], [item.kept(fraction, least)], axis, least)
            assert torch.equal(together, reference)


@pytest.mark.parametrize("weight_frac", [0.05, 0.01])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_projected_step_by_step_equals_the_reference(weight_frac: float, threads: int):
    sparsity = SPARSITY.model_copy(update={"weight_frac": weight_frac})
    shape = SHAPE.model_copy(update={"d_model": 128, "d_head": 16, "mlp_ratio": 4})
    fast, plain = (new_sparse_gpt(shape, 1, 200, 0) for _ in range(2))
    projector, reference = Projector(constraints(fast, sparsity), sparsity), constraints(plain, sparsity)
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in (0, 5, 6, 7, 20, 48, 49, 50, 51, 90):
            generator = torch.Generator().manual_seed(step)
            for one, two in zip(projector.constrained, reference, strict=True):
                noise = torch.randn(one.tensor.shape, generator=generator)
                with torch.no_grad():
                    one.tensor.add_(noise, alpha=1e-2), two.tensor.add_(noise, alpha=1e-2)
            projector.project(step, 100)
            project(reference, step, 100, sparsity)
            for one, two in zip(projector.constrained, reference, strict=True):
                assert torch.equal(one.tensor, two.tensor), (one.name, step)
    finally:
        torch.set_num_threads(torch_threads)
    assert nonzeros(fast, sparsity) == {item.name: item.kept(item.target, 4) for item in reference}


def test_a_wrong_warm_start_costs_time_only():
    weight = weights_like_a_trainings("weak neurons", (200, 150), 0)
    item = Constraint("w", weight.clone(), 0.1, 1)
    projector = Projector([item], SPARSITY)
    for bracket in ((0, 0), (0x7FFFFFFF, 0x7FFFFFFF), (1 << 29, -(1 << 31)), (0x3F800000, 5)):
        item.tensor.copy_(weight)
        projector._brackets["w"] = bracket
        projector.project(99, 100)
        assert torch.equal(item.tensor, weight * keep_mask(weight, item.kept(0.1, 4), 1, 4))


def test_a_group_of_tensors_is_projected_at_once():
    weights = [weights_like_a_trainings(kind, (40, 30), seed) for seed, kind in enumerate(KINDS)]
    kept = [160, 200, 333, 1000]
    for axis in (None, 0, 1):
        group = [w.clone() for w in weights]
        project_together(group, kept, axis, 4)
        for done, weight, count in zip(group, weights, kept, strict=True):
            assert torch.equal(done, weight * keep_mask(weight, count, axis, 4))


def test_other_layouts_and_types_take_the_plain_path():
    for weight in (torch.randn(30, 40).T, torch.randn(40, 30, dtype=torch.float64)):
        item = Constraint("w", weight.clone(), 0.2, 0)
        Projector([item], SPARSITY).project(99, 100)
        assert torch.equal(item.tensor, weight * keep_mask(weight, item.kept(0.2, 4), 0, 4))


@pytest.mark.gpu
def test_the_projector_on_a_gpu_equals_the_plain_mask():
    weights = [weights_like_a_trainings(kind, (700, 500), seed) for seed, kind in enumerate(KINDS)]
    for axis in (None, 0, 1):
        items = [Constraint(str(i), w.to("cuda"), 0.02, axis) for i, w in enumerate(weights)]
        Projector(items, SPARSITY).project(99, 100)
        for item, weight in zip(items, weights, strict=True):
            assert torch.equal(item.tensor.cpu(), weight * keep_mask(weight, item.kept(0.02, 4), axis, 4))


def test_the_annealed_fraction_by_hand():
    sparsity = SparsitySpec(anneal_start=0.1, anneal_end=0.5)
    fractions = [annealed_fraction(step, 100, 0.2, sparsity) for step in (0, 9, 10, 20, 30, 49, 50, 99)]
    assert fractions == pytest.approx([1, 1, 1, 0.8, 0.6, 0.22, 0.2, 0.2])


def test_the_learning_rate_by_hand():
    optim = OptimSpec(steps=100, warmup=0.04, context=16)
    sparsity = SparsitySpec(weight_frac=0.25, anneal_start=0.0, anneal_end=0.5)
    assert sharkfin(0, optim, sparsity) == pytest.approx(0.25 * math.sqrt(0.25))  # first of four warm-up steps, nothing annealed
    assert sharkfin(25, optim, sparsity) == pytest.approx(0.75 * math.sqrt(0.25 / 0.625))
    assert sharkfin(50, optim, sparsity) == pytest.approx(0.5)
    assert sharkfin(75, optim, sparsity) == pytest.approx(0.25)


@pytest.mark.parametrize("weight_frac", [0.05, 0.25])
def test_the_learning_rate_peaks_where_annealing_ends(weight_frac: float):
    optim, sparsity = OptimSpec(steps=1000, context=16), SparsitySpec(weight_frac=weight_frac)
    rates = [sharkfin(step, optim, sparsity) for step in range(1000)]
    assert rates.index(max(rates)) == 500


def test_gradients_are_divided_by_their_common_rms():
    one, two, free = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    one.grad, two.grad, free.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0]), torch.tensor([10.0, 0.0])
    assert scale_gradients([one, two], [one, two, free]).item() == 2.5
    assert one.grad.tolist() == pytest.approx([3 / 2.50001, 4 / 2.50001])  # RMS sqrt(25 / 4) = 2.5, plus 1e-5
    assert free.grad.tolist() == pytest.approx([10 / 2.50001, 0.0])


def test_a_real_run_keeps_the_exact_l0_at_every_step_after_annealing(corpus, env, monkeypatch: pytest.MonkeyPatch):
    optim = OptimSpec(steps=40, batch=4, context=16, lr=0.05)
    spec = TrainSpec(model=SHAPE, sparsity=SPARSITY, optim=optim)
    counts: dict[int, dict[str, int]] = {}
    optimizers: list[SparseOptimizer] = []
    plain_step = SparseOptimizer.step

    def watched(self: SparseOptimizer, index: int) -> dict[str, float]:
        metrics = plain_step(self, index)
        counts[index] = nonzeros(self.model, self.sparsity)
        optimizers.append(self)
        return metrics

    monkeypatch.setattr(SparseOptimizer, "step", watched)
    model = train_sparse(spec, corpus, VOCABULARY, 0, env)
    target = {c.name: expected(c, SPARSITY) for c in constraints(model, SPARSITY) if "bias" not in c.name}
    for index in range(20, 40):
        assert {name: counts[index][name] for name in target} == target, index
    embedding = [counts[i]["lm_head.weight"] for i in range(20)]
    assert embedding == sorted(embedding, reverse=True)
    assert embedding[0] > target["lm_head.weight"]
    adam = optimizers[-1].adam
    c_fc = model.blocks[0].mlp.c_fc.weight
    assert int(adam.state[c_fc]["exp_avg"].count_nonzero()) > 2 * int(c_fc.count_nonzero())


def test_a_cut_weight_can_come_back(corpus, env, monkeypatch: pytest.MonkeyPatch):
    # Most weights stay: the smallest of them are so small that one step brings a cut one back.
    sparsity = SPARSITY.model_copy(update={"weight_frac": 0.8, "embedding_frac": 0.8})
    spec = TrainSpec(model=SHAPE, sparsity=sparsity, optim=OptimSpec(steps=40, batch=4, context=16, lr=0.2))
    masks: list[list[torch.Tensor]] = []
    plain_step = SparseOptimizer.step

    def watched(self: SparseOptimizer, index: int) -> dict[str, float]:
        metrics = plain_step(self, index)
        if index >= 20:
            masks.append([c.tensor.detach() != 0 for c in self.constrained if c.tensor.dim() == 2])
        return metrics

    monkeypatch.setattr(SparseOptimizer, "step", watched)
    train_sparse(spec, corpus, VOCABULARY, 0, env)
    returned = [
        int((after & ~before).sum()) for earlier, later in itertools.pairwise(masks) for before, after in zip(earlier, later, strict=True)
    ]
    assert sum(returned) > 0


def test_only_matrices_decay():
    optimizer = SparseOptimizer(random_model(), OptimSpec(context=16), SPARSITY)
    decayed, free = (group["params"] for group in optimizer.adam.param_groups)
    assert {p.dim() for p in decayed} == {2}
    table = optimizer.model.bigram_table
    assert any(p is table for p in free)
    assert all(p.dim() == 1 or p is table for p in free)


def test_training_lowers_the_loss(corpus, env):
    spec = TrainSpec(model=SHAPE, sparsity=SPARSITY, optim=OptimSpec(steps=60, batch=8, context=16, lr=0.1))
    ids = corpus.held_out_batch(0, 64, 16)
    before = new_sparse_gpt(SHAPE, 2, VOCABULARY, 0)
    fill_bigram(before, corpus)
    after = train_sparse(spec, corpus, VOCABULARY, 0, env)
    with torch.no_grad():
        assert after(input_ids=ids, labels=ids).loss < before(input_ids=ids, labels=ids).loss - 0.1


def test_the_bigram_table_starts_at_the_corpus_frequencies(corpus):
    model = new_sparse_gpt(SHAPE, 2, VOCABULARY, 0)
    fill_bigram(model, corpus)
    counts = torch.from_numpy(corpus.bigram_counts(VOCABULARY))
    common = int(counts.sum(1).argmax())
    assert CORPUS.generated_programs
    assert int(model.bigram_table[common].argmax()) == int(counts[common].argmax())
    assert model.bigram_table.mean(1).abs().max().item() < 1e-5
    frequency = counts / counts.sum(1, keepdim=True).clamp_min(1)
    predicted = model.bigram_table.detach().softmax(-1)
    assert predicted[common, int(counts[common].argmax())].item() == pytest.approx(frequency[common].max().item(), abs=0.02)


def test_a_large_vocabulary_has_no_bigram_table():
    big = MAX_BIGRAM_VOCABULARY + 1
    assert new_sparse_gpt(SHAPE.model_copy(update={"d_model": 8}), 1, big, 0).bigram_table is None
    assert new_sparse_gpt(SHAPE, 1, 20, 0).bigram_table is not None
