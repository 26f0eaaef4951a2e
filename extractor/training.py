"""What every training loop shares: state that fits in one safetensors file, checkpoints, the metrics log, the loop itself.

A loop is a function of (spec, seed): batches and all randomness of step i are derived from (seed, i), and a checkpoint holds every tensor
that a step changes. So an interrupted and resumed run ends in the same bits as an undisturbed one on the same machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from extractor import artifacts
from extractor.compute import Alone
from extractor.errors import BrokenArtifact, TrainingDiverged
from extractor.progress import Progress, Stopped

KEPT_CHECKPOINTS = 2
ALONE = Alone()
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
class TrainState:
    """Everything a step changes: modules, optimiser moments, loose tensors."""

    modules: dict[str, nn.Module]
    optimizers: list[torch.optim.Optimizer]
    extra: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All live tensors under flat names, tied ones once; moments appear after the first step."""
        named = {f"{name}/{key}": t for name, module in self.modules.items() for key, t in module.state_dict().items()}
        first = {t.data_ptr(): name for name, t in reversed(named.items())}
        flat = {name: t for name, t in named.items() if first[t.data_ptr()] == name}
        flat |= {f"extra/{name}": t for name, t in self.extra.items()}
        for index, (optimizer, parameter) in enumerate(self._parameters()):
            for key, value in optimizer.state.get(parameter, {}).items():
                flat[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
        return flat

    @torch.no_grad()
    def restore(self, saved: dict[str, Tensor]) -> None:
        """Copy a checkpoint's tensors into the live ones. Raises BrokenArtifact when they do not fit."""
        parameters = self._parameters()
        for name, tensor in saved.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                index, _, key = rest.partition("/")
                optimizer, target = parameters[int(index)]
                moved = tensor if key == "step" else tensor.to(target.device)
                optimizer.state[target][key] = moved.clone()
        live = self.tensors()
        if live.keys() != saved.keys():
            raise BrokenArtifact(f"checkpoint does not fit this spec: {sorted(live.keys() ^ saved.keys())[:3]} differ")
        for name, tensor in live.items():
            if not name.startswith("optimizer/"):
                tensor.copy_(saved[name])

    def _parameters(self) -> list[tuple[torch.optim.Optimizer, Tensor]]:
        return [(optimizer, p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]


class Checkpoints:
    """The newest checkpoints of one stage: NAME-STEP.safetensors, written atomically, a broken one skipped for the one before."""

    def __init__(self, folder: Path, stage: str):
        self.folder, self.stage = folder, stage

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.stage}-*.safetensors"))

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Save the state before step `step`; older ones beyond the last two are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        artifacts.write_tensors(self.folder / f"{self.stage}-{step:08d}.safetensors", tensors)
        for old in self._paths()[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, tensors) of the newest readable checkpoint, or None. What a killed process was writing is removed."""
        for left in self.folder.glob(".tmp*"):  # by safetensors
            left.unlink(missing_ok=True)
        for path in reversed(self._paths()):
            try:
                return int(path.stem.rpartition("-")[2]), artifacts.read_tensors(path)
            except BrokenArtifact:
                path.unlink(missing_ok=True)  # another rank may have been faster
        return None


class MetricsLog:
    """metrics.jsonl: one line per logged step, {"stage", "step", name: value, ...}; no times, so equal runs leave equal files."""

    def __init__(self, path: Path | None):
        self.path = path

    def rewind(self, stage: str, step: int) -> None:
        """Forget lines of `stage` at or after `step`, which a resumed run writes again."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the torn last line of a killed run
            if entry["stage"] != stage or entry["step"] < step:
                kept.append(line)
        artifacts.write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        if self.path is None:
            return
        entry = {"stage": stage, "step": step} | {name: round(value, 6) for name, value in metrics.items()}
        with artifacts.explain_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


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


def run_loop(loop: Loop, state: TrainState, env: LoopEnvironment, compute: Alone = ALONE) -> None:
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
        wish = compute.agree(_STOP if env.progress.should_stop() else wish)
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
