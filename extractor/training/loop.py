"""The loop that every training runs: steps, checkpoints, metrics, progress.

A training is a function of (spec, seed): the batch and all random numbers of step i derive from (seed, i), and a checkpoint holds every
tensor that a step changes. So on one machine a run that was interrupted and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from extractor.errors import TrainingDiverged
from extractor.progress import Progress, Stopped
from extractor.training.checkpoints import Checkpoints, MetricsLog, TrainState
from extractor.training.compute import SingleProcess

SINGLE = SingleProcess()
_SAVE, _STOP = 1, 2


def set_up_torch(threads: int | None) -> None:
    """Set the thread count, on which results depend, and choose deterministic kernels."""
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean next-token loss of ids (B, T), nats per token, in fp32 also where the model runs in bf16."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@dataclass
class LoopEnvironment:
    """Where a loop saves, logs and reports; `board` is the folder for TensorBoard events, None for none."""

    checkpoints: Checkpoints
    log: MetricsLog
    progress: Progress
    board: Path | None = None


@dataclass(frozen=True)
class Loop:
    """A training loop. `step` takes step i and returns its metrics, which must stay finite; 'loss' is one of them.

    tokens    tokens of one step, for the rate that is displayed
    measure   further metrics of step i, computed only for steps that are logged
    """

    stage: str
    steps: int
    step: Callable[[int], dict[str, float]]
    tokens: int = 0
    measure: Callable[[int], dict[str, float]] = lambda _index: {}


def run_loop(loop: Loop, state: TrainState, env: LoopEnvironment, compute: SingleProcess = SINGLE) -> None:
    """Take all steps from the newest checkpoint on.

    Raises TrainingDiverged when a metric or a weight is NaN or infinite (the last good checkpoint stays), Stopped after a requested stop.
    """
    first = _resume(loop, state, env)
    compute.track(env.board, first)
    log_every = max(1, loop.steps // 200)
    for index in range(first, loop.steps):
        metrics = loop.step(index)
        _check_finite(loop.stage, index, metrics)
        if compute.is_main and (index % log_every == 0 or index == loop.steps - 1):
            metrics |= loop.measure(index)
            env.log.write(loop.stage, index, metrics)
            compute.log(index, metrics)
        if compute.is_main:
            env.progress.step(index + 1, loop.steps, loop.tokens, **metrics)
        request = _SAVE if env.progress.checkpoint_due() else 0
        request = compute.broadcast(_STOP if env.progress.should_stop() else request)
        if request:
            _save(loop, index, state, env, compute.is_main)
        if request == _STOP:
            raise Stopped
    compute.close()


def _resume(loop: Loop, state: TrainState, env: LoopEnvironment) -> int:
    """Load the newest checkpoint; returns the next step."""
    saved = env.checkpoints.load()
    if env.checkpoints.damaged:
        env.progress.note(
            f"{loop.stage}: damaged and removed: {', '.join(env.checkpoints.damaged)}; the work since the one before is repeated"
        )
    first = 0
    if saved is not None:
        first, tensors = saved
        state.restore(tensors)
        env.progress.note(f"resumed {loop.stage} at step {first}")
    env.log.rewind(loop.stage, first)
    return first


def _save(loop: Loop, index: int, state: TrainState, env: LoopEnvironment, is_main: bool) -> None:
    began, tensors = time.monotonic(), state.tensors()
    broken = next((name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)
    if broken is not None:
        raise TrainingDiverged(f"{loop.stage}: {broken} is no longer finite after step {index}; lower the learning rate")
    if is_main:
        env.checkpoints.save(index + 1, tensors)
    env.progress.checkpointed(index + 1, time.monotonic() - began)


def _check_finite(stage: str, index: int, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingDiverged(f"{stage}: the {name} became {value} at step {index}; lower the learning rate")
