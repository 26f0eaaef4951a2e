"""What every training loop shares: state that fits in one safetensors file, checkpoints, the metrics log, the loop itself.

A loop is a function of (spec, seed): batches and all randomness of step i are derived from (seed, i), and a checkpoint holds every tensor
that a step changes. So an interrupted and resumed run ends in the same bits as an undisturbed one on the same machine.
"""

from __future__ import annotations

import math
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

ALONE = SingleProcess()
_SAVE, _STOP = 1, 2


def set_up_torch(threads: int | None) -> None:
    """Pin the thread count (results depend on it) and ask for deterministic kernels."""
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean next-token loss of ids (B, T), nats per token, in fp32 whatever the precision of the pass."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@dataclass
class LoopEnvironment:
    """Where a loop saves, logs and reports; `board` is the folder for TensorBoard events, if any are wanted."""

    checkpoints: Checkpoints
    log: MetricsLog
    progress: Progress
    board: Path | None = None


@dataclass(frozen=True)
class Loop:
    """A training loop. `step` makes step i and returns its metrics, all of which must stay finite; 'loss' is one of them.

    tokens    of one step, for the rate that is shown
    measure   further metrics for the lines that are logged, slower to compute
    """

    stage: str
    steps: int
    step: Callable[[int], dict[str, float]]
    tokens: int = 0
    measure: Callable[[int], dict[str, float]] = lambda _index: {}


def run_loop(loop: Loop, state: TrainState, env: LoopEnvironment, compute: SingleProcess = ALONE) -> None:
    """Make the steps that the newest checkpoint has not made.

    Raises TrainingDiverged on a NaN or infinite metric or weight (the last good checkpoint stays), Stopped after a requested stop.
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
        wish = _SAVE if env.progress.checkpoint_due() else 0
        wish = compute.broadcast(_STOP if env.progress.should_stop() else wish)
        if wish:
            _save(loop, index, state, env, compute.is_main)
        if wish == _STOP:
            raise Stopped
    compute.close()


def _resume(loop: Loop, state: TrainState, env: LoopEnvironment) -> int:
    """The first step to make."""
    saved = env.checkpoints.load()
    first = 0
    if saved is not None:
        first, tensors = saved
        state.restore(tensors)
        env.progress.note(f"resumed {loop.stage} at step {first}")
    env.log.rewind(loop.stage, first)
    return first


def _save(loop: Loop, index: int, state: TrainState, env: LoopEnvironment, is_main: bool) -> None:
    tensors = state.tensors()
    broken = next((name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)
    if broken is not None:
        raise TrainingDiverged(f"{loop.stage}: {broken} is no longer finite after step {index}; lower the learning rate")
    if is_main:
        env.checkpoints.save(index + 1, tensors)
    env.progress.checkpointed(index + 1)


def _check_finite(stage: str, index: int, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingDiverged(f"{stage}: the {name} became {value} at step {index}; lower the learning rate")
