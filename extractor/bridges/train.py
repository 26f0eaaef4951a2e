"""Joint training of a sparse model and its bridges against a frozen dense model (Sec. 2.3, App. A.3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.bridges.crossing import Crossing
from extractor.bridges.initialisation import ActivationAnnealing, normalise_sites, start_from_dense
from extractor.bridges.losses import TERMS, VARIANCE_MEMORY, bridge_loss, moments, sparse_residuals, variance_of
from extractor.bridges.pair import BridgedPair, new_pair
from extractor.bridges.tuner import site_parameters
from extractor.data.corpus import Corpus
from extractor.training.compute import Compute

if TYPE_CHECKING:
    from extractor.models.load import DenseModel
from extractor.spec.schema import BridgeSpec
from extractor.training.checkpoints import TrainState
from extractor.training.loop import Loop, LoopEnvironment, run_loop
from extractor.training.optimizer import SparseOptimizer
from extractor.training.train_sparse import fill_bigram


class BridgeTrainer:
    """One bridge training: everything a step needs and changes."""

    def __init__(self, dense: DenseModel, spec: BridgeSpec, corpus: Corpus, seed: int, compute: Compute):
        self.spec, self.corpus, self.seed, self.compute = spec, corpus, seed, compute
        self.pair = new_pair(dense, spec, seed, compute.device)
        samples = normalise_sites(self.pair, corpus, spec.optim.context, seed)
        self.annealing: ActivationAnnealing | None = None
        if spec.init == "dense":
            start_from_dense(self.pair, samples)
            self.annealing = ActivationAnnealing(self.pair, spec.sparsity)
        else:
            fill_bigram(self.pair.sparse, corpus, spec.model.bigram_init)
        optim = spec.optim
        self.sparse = SparseOptimizer(self.pair.sparse, optim, spec.sparsity)
        self.bridges = torch.optim.AdamW(
            site_parameters(self.pair.sites), lr=spec.bridge_lr, betas=(optim.beta1, optim.beta2), weight_decay=0.0, fused=True
        )
        self.parameters = [*self.sparse.parameters, *site_parameters(self.pair.sites)]
        self.variance = torch.zeros(len(self.pair.sites), device=compute.device)
        self.state = TrainState(
            {"sparse": self.pair.sparse, "bridges": torch.nn.ModuleList(self.pair.sites)},
            [self.sparse.adam, self.bridges],
            compute.state | {"variance": self.variance},
        )

    def step(self, index: int) -> dict[str, float]:
        """Make step `index`; its loss and terms, nats per token or fractions, means over sites."""
        spec, optim = self.spec, self.spec.optim
        if self.annealing is not None:
            self.annealing.set(index, optim.steps)
        ids = self.corpus.batch(self.seed, index, optim.batch, optim.context).to(self.compute.device)
        crossing = Crossing.draw(spec, len(self.pair.sites), torch.Generator().manual_seed(self.seed * 1_000_003 + index))
        if index == 0:
            self._start_variance(ids)
        told = torch.zeros(len(TERMS), device=self.compute.device)
        spread = torch.zeros(len(self.pair.sites), self.pair.sparse.config.d_model + 1, device=self.compute.device)

        def loss_of(rows: Tensor) -> Tensor:
            start, stop = int(rows[0]), int(rows[-1]) + 1
            if start == 0:
                told.zero_()  # a pass that ran out of memory is made again
                spread.zero_()
            part = crossing.part(start, stop, optim.batch).to(self.compute.device)
            loss, terms, here = bridge_loss(self.pair, ids[start:stop], part, self.variance, spec)
            told.add_(terms, alpha=(stop - start) / optim.batch)
            spread.add_(here, alpha=(stop - start) / optim.batch)
            return loss

        loss = self.compute.accumulate(torch.arange(optim.batch), optim.batch, loss_of, self.parameters)
        for group in self.bridges.param_groups:
            group["lr"] = spec.bridge_lr * min(1.0, (index + 1) / max(1, optim.warmup * optim.steps)) * (1 - index / optim.steps)
        self.variance.lerp_(variance_of(spread), 1 - VARIANCE_MEMORY)
        metrics = {"loss": loss} | dict(zip(TERMS, told.tolist(), strict=True)) | self.sparse.step(index)
        if math.isfinite(metrics["gradient_rms"]):
            self.bridges.step()
        return metrics

    @torch.no_grad()
    def _start_variance(self, ids: Tensor) -> None:
        parts = ids.split(int(self.compute.state["micro_batch"]))
        told = [moments(sparse_residuals(self.pair, rows)) * (len(rows) / len(ids)) for rows in parts]
        self.variance.copy_(variance_of(torch.stack(told).sum(0)))

    def finish(self) -> BridgedPair:
        """The trained pair, in eval mode, its sites' normalisation folded into their maps."""
        if self.annealing is not None:
            self.annealing.finish()
        for site in self.pair.sites:
            site.fold_scaling()
        self.pair.sparse.eval()
        return self.pair


def train_bridges(dense: DenseModel, spec: BridgeSpec, corpus: Corpus, seed: int, env: LoopEnvironment) -> BridgedPair:
    """Train sparse model, encoders and decoders together; the dense model stays as it is. Raises what `run_loop` raises, SpecError."""
    compute = Compute(spec.optim, env.progress.note)
    trainer = BridgeTrainer(dense, spec, corpus, seed, compute)
    trainer.pair.sparse.train()
    run_loop(Loop("bridge", spec.optim.steps, trainer.step, spec.optim.batch * spec.optim.context), trainer.state, env, compute)
    return trainer.finish()
