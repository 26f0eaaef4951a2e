"""Linear layers through sparse kernels: the values and input gradients of dense ones, the same weights on disk."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from extractor.sparse import kernels
from extractor.sparse.configuration_sparse_gpt import SparseGPTConfig
from extractor.sparse.kernels import SparseLinear, densify, sparsify
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM


def sparse_linear(inputs: int, outputs: int, share: float, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    linear.weight.mul_(torch.rand(outputs, inputs) < share)
    linear.weight[outputs // 2] = 0
    return linear


@pytest.fixture
def model() -> SparseGPTForCausalLM:
    torch.manual_seed(0)
    config = SparseGPTConfig(vocab_size=50, n_layer=2, d_model=32, d_head=8, d_mlp=64, n_ctx=16, bigram="none")
    model = SparseGPTForCausalLM(config).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(torch.rand(module.weight.shape) < 0.1)
    return model


def all_sparse(monkeypatch: pytest.MonkeyPatch, kernel: str = "csr") -> None:
    monkeypatch.setattr(kernels, "_fastest", lambda linear, tokens: kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", ["csr", "csc"])
@pytest.mark.parametrize(("shape", "share"), [((1,), 0.1), ((3, 100), 0.02), ((2, 300), 0.0), ((0,), 0.1), ((700,), 1.0)], ids=str)
def test_values_and_input_gradients_equal_dense_ones(shape, share, kernel, dtype):
    dense = sparse_linear(60, 90, share).to(dtype)
    sparse = copy.deepcopy(dense)
    SparseLinear.switch(sparse, kernel)
    x = torch.randn(*shape, 60, dtype=dtype)
    grad = torch.randn(*shape, 90, dtype=dtype)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, reference = sparse(one), dense(two)
    assert y.shape == reference.shape
    assert torch.allclose(y, reference, atol=1e-5)
    y.backward(grad), reference.backward(grad)
    assert torch.allclose(one.grad, two.grad, atol=1e-5)
    if one.numel() and 0 < share < 1:
        assert one.grad.abs().max() > 0.01


@pytest.mark.parametrize("kernel", ["csr", "csc"])
def test_a_model_gives_the_same_logits_and_embedding_gradients(model, kernel, monkeypatch: pytest.MonkeyPatch):
    ids = torch.randint(50, (2, 9))
    model.transformer.wte.weight.requires_grad_()

    def run():
        out = model(input_ids=ids, labels=ids)
        return out.logits.detach(), torch.autograd.grad(out.loss, model.transformer.wte.weight)[0]

    logits, grad = run()
    all_sparse(monkeypatch, kernel)
    assert sparsify(model) == {
        "lm_head": kernel,
        **{f"transformer.h.{i}.{n}": kernel for i in (0, 1) for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
    }
    assert sum(type(m) is SparseLinear for m in model.modules()) == 9
    fast_logits, fast_grad = run()
    densify(model)
    assert sum(type(m) is SparseLinear for m in model.modules()) == 0
    assert torch.allclose(fast_logits, logits, atol=1e-5)
    assert torch.allclose(fast_grad, grad, atol=1e-5)
    assert torch.equal(run()[0], logits)


def test_the_kernel_that_is_measured_to_be_fastest_is_taken(monkeypatch: pytest.MonkeyPatch):
    seconds = {"dense": 2.0, "csr": 3.0, "csc": 1.0}
    turn = iter(list(seconds) * 100)
    monkeypatch.setattr(kernels, "_time", lambda call, device: seconds[next(turn)])
    model = nn.ModuleDict({"sparse": sparse_linear(40, 40, 0.05), "dense": nn.Linear(40, 40)})
    assert sparsify(model, 8) == {"sparse": "csc", "dense": "dense"}
    assert (type(model["sparse"]), type(model["dense"])) == (SparseLinear, nn.Linear)
    seconds["dense"] = 0.5
    assert sparsify(model, 8) == {"sparse": "dense", "dense": "dense"}
    assert type(model["sparse"]) is nn.Linear


def test_a_matrix_with_hardly_any_weights_is_measured_to_be_faster_sparse():
    big = nn.ModuleDict({"big": sparse_linear(1024, 2048, 0.0005)})
    assert sparsify(big, 512)["big"] in ("csr", "csc")


def test_saved_weights_are_as_before(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model.save_pretrained(tmp_path / "dense")
    all_sparse(monkeypatch)
    sparsify(model)
    model(input_ids=torch.zeros(1, 3, dtype=torch.long))
    model.save_pretrained(tmp_path / "sparse")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("dense", "sparse"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_hooks_stay_and_a_changed_weight_is_seen():
    linear = sparse_linear(20, 30, 0.1, bias=False)
    seen: list[torch.Tensor] = []
    linear.register_forward_hook(lambda module, args, out: seen.append(out))
    SparseLinear.switch(linear, "csr")
    x = torch.randn(4, 20)
    first = linear(x)
    linear.weight.mul_(2)
    assert torch.allclose(linear(x), 2 * first, atol=1e-6)
    linear.weight = nn.Parameter(torch.ones(30, 20), requires_grad=False)
    assert torch.allclose(linear(x), x.sum(1, keepdim=True).expand(4, 30), atol=1e-5)
    assert len(seen) == 3
    assert first.abs().max() > 0.01


def test_a_weight_that_is_being_trained_gets_its_dense_gradient():
    linear = sparse_linear(20, 30, 0.1).requires_grad_(True)
    x = torch.randn(4, 20)
    (expected,) = torch.autograd.grad(linear(x).square().sum(), linear.weight)
    SparseLinear.switch(linear, "csr")
    (found,) = torch.autograd.grad(linear(x).square().sum(), linear.weight)
    assert torch.equal(found, expected)
    assert int(found.count_nonzero()) > 300
    densify(linear)
    assert type(linear) is nn.Linear
