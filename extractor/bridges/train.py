"""Joint training of a sparse model and its bridges against a frozen dense model (Sec. 2.3, App. A.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor import artifacts
from extractor.bridges.losses import Coupled, Crossing, Target, bridge_loss, path_kls
from extractor.bridges.tuner import SparseBridgeConfig, bridge_sites, site_parameters
from extractor.data.corpus import Corpus
from extractor.dense.base import residuals, wrap_dense
from extractor.errors import SpecError
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.sparse.train import SparseOptimizer, fill_bigram, new_sparse_gpt
from extractor.specs import BridgeSpec
from extractor.training import Loop, LoopEnvironment, TrainState, pick_device, place, run_loop

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Bridged:
    """What bridging leaves: the sparse model, and the dense model wrapped with its bridges."""

    sparse: SparseGPTForCausalLM
    adapter: PeftModel
    pair: Coupled

    def save(self, folder: Path) -> None:
        """The sparse model at the root of `folder`, the PEFT adapter in `bridges/`."""
        self.sparse.save_pretrained(folder)
        # 'auto' would ask the hub about the base model's embeddings.
        self.adapter.save_pretrained(str(folder / "bridges"), save_embedding_layers=False)
        # PEFT keeps the target modules as a set, whose order is not the same in every process.
        config = artifacts.read_json(folder / "bridges" / "adapter_config.json")
        config["target_modules"] = sorted(config["target_modules"])
        artifacts.write_json(folder / "bridges" / "adapter_config.json", config)


def couple(dense_model: PreTrainedModel, spec: BridgeSpec, seed: int, name: str) -> Bridged:
    """A new sparse model with the dense model's layers and vocabulary, and untrained bridges between the two."""
    from peft import PeftModelForCausalLM

    place(dense_model)
    dense_model.eval().requires_grad_(False)
    dense = wrap_dense(dense_model)
    sparse = new_sparse_gpt(spec.model, dense.n_sublayers // 2, dense_model.config.vocab_size, seed)
    place(sparse)
    config = SparseBridgeConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        d_sparse=spec.model.d_model,
        encoder_frac=spec.encoder_frac,
        sparse_model_name_or_path="..",
    )
    torch.manual_seed(seed + 1)
    adapter = PeftModelForCausalLM(dense_model, config)
    return Bridged(sparse, adapter, Coupled(dense, sparse, bridge_sites(adapter)))


def train_bridges(dense_model: PreTrainedModel, spec: BridgeSpec, corpus: Corpus, seed: int, name: str, env: LoopEnvironment) -> Bridged:
    """Train sparse model, encoders and decoders together; the dense model stays as it is. Raises what `run_loop` raises."""
    bridged = couple(dense_model, spec, seed, name)
    pair, optim = bridged.pair, spec.optim
    if optim.batch < len(pair.sites):
        raise SpecError(f"bridge.optim.batch ({optim.batch}) must be at least the number of bridge sites ({len(pair.sites)})")
    device = pick_device()
    fill_bigram(bridged.sparse, corpus, spec.model.bigram_init)
    optimizer = SparseOptimizer(bridged.sparse, optim, spec.sparsity)
    bridges = torch.optim.AdamW(
        site_parameters(pair.sites), lr=spec.bridge_lr, betas=(optim.beta1, optim.beta2), weight_decay=0.0, fused=True
    )
    generator = torch.Generator()

    def step(index: int) -> dict[str, float]:
        ids = corpus.batch(seed, index, optim.batch, optim.context).to(device)
        generator.manual_seed(seed * 1_000_003 + index)
        crossing = Crossing.draw(spec, len(pair.sites), generator, device)
        loss, terms = bridge_loss(pair, ids, crossing, spec)
        bridged.sparse.zero_grad(set_to_none=True)
        bridges.zero_grad(set_to_none=True)
        loss.backward()
        for group in bridges.param_groups:
            group["lr"] = spec.bridge_lr * min(1.0, (index + 1) / max(1, optim.warmup * optim.steps)) * (1 - index / optim.steps)
        bridges.step()
        optimizer.step(index)
        return terms

    bridged.sparse.train()
    modules = {"sparse": bridged.sparse, "bridges": torch.nn.ModuleList(pair.sites)}
    run_loop(Loop("bridge", optim.steps, step, optim.batch * optim.context), TrainState(modules, [optimizer.adam, bridges]), env)
    bridged.sparse.eval()
    return bridged


@torch.no_grad()
def faithfulness(pair: Coupled, ids: Tensor) -> dict:
    """How interchangeable the two models are on ids (B, T): losses and KLs in nats per token, next-token agreement as a fraction."""
    dense_logits = pair.dense.unembed(residuals(pair.dense, ids)[-1])
    sparse_logits = pair.sparse(input_ids=ids).logits

    def loss(logits: Tensor) -> float:
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()

    return {
        "dense_loss": loss(dense_logits),
        "sparse_loss": loss(sparse_logits),
        "kl_dense_to_sparse": Target.of(dense_logits).kl(sparse_logits).mean().item(),
        "agreement": (dense_logits.argmax(-1) == sparse_logits.argmax(-1)).double().mean().item(),
        "path_kl": path_kls(pair, ids),
    }
