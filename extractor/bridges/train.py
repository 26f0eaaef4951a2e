"""Joint training of a sparse model and its bridges beside a frozen dense model (Sec. 2.3, App. A.3).

`BridgeTrainer.step` lists the algorithm of one step. Shapes and symbols: `extractor.bridges`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.bridges.crossing import Crossing
from extractor.bridges.initialisation import ActivationAnnealing, freeze_dense_layers, normalise_sites, start_from_dense
from extractor.bridges.losses import TERMS, bridge_loss, focus_loss, moments, sparse_residuals, variance_of
from extractor.bridges.pair import BridgedPair, new_pair
from extractor.bridges.tuner import site_parameters
from extractor.data.corpus import Corpus
from extractor.data.focus import FocusPrompts, Prompts
from extractor.spec.schema import BridgeSpec
from extractor.training.checkpoints import TrainState
from extractor.training.compute import Compute
from extractor.training.loop import Loop, LoopEnvironment, run_loop
from extractor.training.optimizer import SparseOptimizer
from extractor.training.train_sparse import fill_bigram

if TYPE_CHECKING:
    from extractor.models.load import DenseModel

VARIANCE_MEMORY = 0.9  # share of the running variance that a step keeps


class BridgeTrainer:
    """One bridge training: everything that a step reads and changes."""

    def __init__(self, dense: DenseModel, spec: BridgeSpec, corpus: Corpus, seed: int, compute: Compute, focus: FocusPrompts | None = None):
        self.spec, self.corpus, self.seed, self.compute = spec, corpus, seed, compute
        self.focus = focus if spec.focus else None
        self.focus_pairs = max(1, round(spec.focus * spec.optim.batch / 2))
        self.pair = new_pair(dense, spec, seed, compute.device)
        samples = normalise_sites(self.pair, corpus, spec.optim.context, seed)
        self.annealing: ActivationAnnealing | None = None
        if spec.init == "dense":
            start_from_dense(self.pair, samples)
            self.annealing = ActivationAnnealing(self.pair, spec.sparsity)
            if spec.layers is not None:
                freeze_dense_layers(self.pair)
        else:
            fill_bigram(self.pair.sparse, corpus, spec.model.bigram_init)
        optim = spec.optim
        self.sparse_optimizer = SparseOptimizer(self.pair.sparse, optim, spec.sparsity)
        of_bridges = [parameter for parameter in site_parameters(self.pair.sites) if parameter.requires_grad]
        self.bridge_optimizer = torch.optim.AdamW(
            of_bridges, lr=spec.bridge_lr, betas=(optim.beta1, optim.beta2), weight_decay=0.0, fused=True
        )
        self.parameters = [*self.sparse_optimizer.parameters, *of_bridges]
        self.variance = torch.zeros(len(self.pair.crossed), device=compute.device)
        self.state = TrainState(
            {"sparse": self.pair.sparse, "bridges": torch.nn.ModuleList(self.pair.sites)},
            [self.sparse_optimizer.adam, self.bridge_optimizer],
            compute.state | {"variance": self.variance},
        )

    def step(self, index: int) -> dict[str, float]:
        """Take training step `index` (App. A.3). Shapes and symbols: `extractor.bridges`; v_i, the loss and its terms: losses.py.

        1. With init='dense', set the k of every AbsTopK for this step.
        2. Draw x (B, T), and which sequences cross at which site, and which positions are scored: functions of (seed, index)
           alone.
        3. For the first batch: v_i = Var(hs_i). For each micro-batch of x:
           a. Run both models: hd_i (without gradient) and hs_i at every site i = 0..2L.
           b. Make the hybrid passes: a sequence that crosses at site i enters the sparse model there as f_i(hd_i), and the dense model
              as g_i(hs_i), and runs to the end. Each sequence crosses at one site; with estimator='exact' at all of them.
           c. With c = 1 / (2L + 1), or 1 (`BridgeSpec`); the sum is over all sites, or estimated from the sites of the crossings:
              loss = ce_coef * CE(ys, next token) + kl_plain_coef * KL(yd || ys)
                     + c * sum_i [ nmse_coef * (mean (f_i(hd_i) - hs_i)^2 / v_i  +  mean (g_i(hs_i) - hd_i)^2 in normalised coordinates)
                                   + kl_to_sparse_coef * KL(yd || logits of the pass that enters the sparse model at i)
                                   + kl_to_dense_coef * KL(yd || logits of the pass that enters the dense model at i) ]
           d. Backpropagate; losses, terms and gradients are averaged over the B sequences.
           e. With prompts of tasks: add focus_coef times the KLs of a, b and c at their last token, and after it (`losses.focus_loss`).
        4. v_i <- 0.9 v_i + 0.1 Var(hs_i).
        5. Sparse model: normalise the gradients, AdamW, projection to the L0 of this step (`SparseOptimizer.step`).
        6. Bridges: Adam with rate bridge_lr * min(1, (index + 1) / warm-up steps) * (1 - index / steps). Skipped, as
           step 5 is, where the gradients of the sparse model are not finite.

        Returns the loss, its TERMS (nats per token or fractions, means over sites), with prompts kl_focus (KL at the answer, nats), the
        RMS of the gradients and the learning rate.
        """
        spec, optim = self.spec, self.spec.optim
        if self.annealing is not None:  # 1
            self.annealing.set(index, optim.steps)
        ids = self.corpus.batch(self.seed, index, optim.batch, optim.context).to(self.compute.device)  # 2
        crossing = Crossing.draw(spec, len(self.pair.crossed), torch.Generator().manual_seed(self.seed * 1_000_003 + index))
        prompts = self._draw_prompts(index)
        if index == 0:
            self._start_variance(ids)

        def loss_of(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:  # 3 a to c
            start, stop = int(rows[0]), int(rows[-1]) + 1
            part = crossing.part(start, stop, optim.batch).to(self.compute.device)
            loss, *averaged = bridge_loss(self.pair, ids[start:stop], part, self.variance, spec)
            if prompts is None:
                return loss, averaged
            focus, kl = self._focus_loss(*prompts, start, stop)  # 3 e
            return loss + spec.focus_coef * focus, [*averaged, kl]

        # 3 d
        loss, (terms, sparse_moments, *kl_focus) = self.compute.accumulate(torch.arange(optim.batch), optim.batch, loss_of, self.parameters)
        self.variance.lerp_(variance_of(sparse_moments), 1 - VARIANCE_MEMORY)  # 4
        metrics = {"loss": loss} | dict(zip(TERMS, terms.tolist(), strict=True)) | ({"kl_focus": kl_focus[0].item()} if kl_focus else {})
        metrics |= self.sparse_optimizer.step(index)  # 5
        for group in self.bridge_optimizer.param_groups:  # 6
            group["lr"] = spec.bridge_lr * min(1.0, (index + 1) / max(1, optim.warmup * optim.steps)) * (1 - index / optim.steps)
        if math.isfinite(metrics["gradient_rms"]):
            self.bridge_optimizer.step()
        return metrics

    def _draw_prompts(self, index: int) -> tuple[Prompts, Crossing] | None:
        """The prompts of step `index` and their crossings: functions of (seed, index) alone. None without prompts of tasks."""
        if self.focus is None:
            return None
        prompts = self.focus.batch(self.seed, index, self.focus_pairs)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index + 1)
        return prompts, Crossing.of_prompts(self.spec, len(prompts.ids), len(self.pair.crossed), generator)

    def _focus_loss(self, prompts: Prompts, crossing: Crossing, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Loss and kl_focus of the prompts that go with sequences [start, stop); averaged over the batch as its sequences are."""
        batch, count = self.spec.optim.batch, len(prompts.ids)
        first, end = start * count // batch, stop * count // batch
        if first == end:
            return torch.zeros((), device=self.compute.device), torch.zeros((), device=self.compute.device)
        device, share = self.compute.device, (end - first) / count * batch / (stop - start)
        loss, kl = focus_loss(self.pair, prompts.part(first, end).to(device), crossing.part(first, end, count).to(device), self.spec)
        return loss * share, kl * share

    @torch.no_grad()
    def _start_variance(self, ids: Tensor) -> None:
        """Set v_i to the variance of hs_i on the first batch, ids (B, T)."""
        averaged = []
        for rows in ids.split(int(self.compute.state["micro_batch"])):
            found = sparse_residuals(self.pair, rows)
            own = self.pair.later_tokens([found[index] for index in self.pair.crossed])
            averaged.append(moments(own) * (len(rows) / len(ids)))
        self.variance.copy_(variance_of(torch.stack(averaged).sum(0)))

    def finish(self) -> BridgedPair:
        """The trained pair in eval mode, with the normalisation of every site folded into its encoder and decoder."""
        if self.annealing is not None:
            self.annealing.finish()
        for site in self.pair.sites:
            site.fold_scaling()
        self.pair.sparse.eval()
        return self.pair


def train_bridges(
    dense: DenseModel, spec: BridgeSpec, corpus: Corpus, seed: int, env: LoopEnvironment, focus: FocusPrompts | None = None
) -> BridgedPair:
    """Train sparse model, encoders and decoders together; the dense model does not change.

    focus   prompts of tasks, `spec.focus` of which are part of every step

    Raises SpecError where the spec does not fit the dense model, and what `run_loop` raises.
    """
    compute = Compute(spec.optim, env.progress.note)
    trainer = BridgeTrainer(dense, spec, corpus, seed, compute, focus)
    trainer.pair.sparse.train()
    run_loop(Loop("bridge", spec.optim.steps, trainer.step, spec.optim.batch * spec.optim.context), trainer.state, env, compute)
    return trainer.finish()
