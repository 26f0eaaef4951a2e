"""Training, bridging, pruning, validation and steering on a second device: everything that meets there was made there.

`test_foreign_device` runs this file in a process of its own. The second device is `foreign_device`: what a GPU would refuse, it refuses.
Paths that only a CPU takes (sparse kernels, projection by NumPy) are not taken there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_device import ForeignTensor, foreign_device
from problems import FURTHER, KINDS, random_base, random_batch, random_model
from worlds import VOCABULARY, environment, random_gpt2, tiny_bridge

from extractor.bridges.steering.edit import CounterfactualRun, find_node
from extractor.bridges.train import train_bridges
from extractor.models.load import DenseModel
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import find_circuits
from extractor.spec.schema import OptimSpec, PruneSpec, SparseModelSpec, SparsitySpec, TrainSpec
from extractor.training import compute
from extractor.training.train_sparse import train_sparse
from extractor.validation.validate import validate

SHAPE = SparseModelSpec(n_layer=1, d_model=16, d_head=8, mlp_ratio=2, n_ctx=16)
SPARSITY = SparsitySpec(weight_frac=0.5, embedding_frac=0.3)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with foreign_device() as found:
        for module in ("extractor.training.compute", "extractor.bridges.pair", "extractor.jobs.find_circuit"):
            monkeypatch.setattr(f"{module}.pick_device", lambda: found)
        monkeypatch.setattr(compute.Compute, "device", property(lambda self: found))
        yield found


def is_there(model: torch.nn.Module) -> bool:
    return all(isinstance(p.data, ForeignTensor) for p in model.parameters())


def test_what_a_gpu_refuses_is_refused(device: torch.device):
    there, here = torch.ones(3, device=device), torch.ones(3)
    for meet in (lambda: there + here, lambda: torch.cat([there, here]), lambda: torch.where(here > 0, there, there)):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            meet()
    assert (there + torch.tensor(1.0)).sum().item() == 6
    assert there[here > 0].sum().item() == 3
    assert not isinstance(there.cpu() + here, ForeignTensor)


def test_training(device: torch.device, corpus, tmp_path: Path):
    optim = OptimSpec(steps=2, batch=4, context=16, lr=0.05, micro_batch=2)
    spec = TrainSpec(model=SHAPE, sparsity=SPARSITY, optim=optim)
    assert is_there(train_sparse(spec, corpus, VOCABULARY, 0, environment(tmp_path)))


def test_bridging_and_steering(device: torch.device, corpus, tmp_path: Path):
    spec = tiny_bridge(init="dense", model=SparseModelSpec(d_model=32, d_head=8, mlp_ratio=4, n_ctx=16))
    spec = spec.model_copy(update={"optim": spec.optim.model_copy(update={"steps": 2, "batch": 8, "micro_batch": 4})})
    dense = DenseModel(random_gpt2().requires_grad_(False), "tiny", {"model": "tiny"})
    pair = train_bridges(dense, spec, corpus, 0, environment(tmp_path))
    assert is_there(pair.sparse)
    prompts = torch.randint(VOCABULARY, (2, 2, 6)).to(device)
    run = CounterfactualRun(pair, prompts[0], prompts[1], torch.tensor([5, 5], device=device))
    for name in ("0.attn.act_in.1", "0.attn.v.2", "1.mlp.post_act.3", "1.mlp.resid_delta.0"):
        assert run.logits(run.edit([find_node(pair, name)])).shape == (2, VOCABULARY)


@pytest.mark.parametrize(
    ("kind", "algorithm", "standard"),
    [("sinks", "masks", "paper"), ("all", "attribution", "robust")],
)
def test_pruning_and_validation(device: torch.device, kind: str, algorithm: str, standard: str, tmp_path: Path):
    model, batch = random_model(3, **(KINDS | FURTHER)[kind], n_layer=1), random_batch(16, 1)
    means = {site: value.to(device) for site, value in random_base(model).items()}
    small = {"steps": 3, "trials": 2, "population": 2, "pairs": 8, "trial_pairs": 8, "targets": (), "controls": 0}
    spec = PruneSpec(algorithm=algorithm, standard=standard, necessity=0.0, **small)
    there = batch.to(device)
    problem = PruningProblem(model.to(device), means, there, there, spec, 0.6, 0, lambda stage: environment(tmp_path / stage))
    found = find_circuits(problem)
    assert isinstance(found.best.graph.nodes, ForeignTensor)
    paper = problem.under("paper")
    assert validate(found.best, paper, random_batch(16, 2).to(device)).loss["full"] > 0
