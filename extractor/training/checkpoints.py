"""The state of a training on disk: tensors of a step, saved atomically and restored bit for bit, and the metrics log beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from extractor import files
from extractor.errors import BrokenArtifact

KEPT_CHECKPOINTS = 2


@dataclass
class TrainState:
    """Everything that a step changes: modules, optimiser moments, further tensors (`extra`)."""

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
        """Copy a checkpoint's tensors into the live ones. Raises BrokenArtifact when names do not match."""
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
    """The newest checkpoints of one stage: STAGE-STEP.safetensors, written atomically. A damaged one is removed, the one before it used."""

    def __init__(self, folder: Path, stage: str):
        self.folder, self.stage = folder, stage
        self.damaged: list[str] = []  # names of the checkpoints that `load` found damaged and removed

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.stage}-*.safetensors"))

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Save the state before step `step`, and remove all but the newest KEPT_CHECKPOINTS."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_tensors(self.folder / f"{self.stage}-{step:08d}.safetensors", tensors)
        for old in self._paths()[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, tensors) of the newest readable checkpoint, or None. Removes half-written files of killed processes."""
        for left in self.folder.glob(".tmp*"):  # by safetensors
            left.unlink(missing_ok=True)
        for path in reversed(self._paths()):
            try:
                return int(path.stem.rpartition("-")[2]), files.read_tensors(path)
            except BrokenArtifact:
                self.damaged.append(path.name)
                path.unlink(missing_ok=True)  # another process may have removed it
        return None


class MetricsLog:
    """metrics.jsonl: one line per logged step, {"stage", "step", name: value, ...}. It holds no times, so equal runs write equal files."""

    def __init__(self, path: Path | None):
        self.path = path

    def rewind(self, stage: str, step: int) -> None:
        """Remove the lines of `stage` from `step` on, which a resumed run writes again."""
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
        files.write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Append a line. Raises DiskFull."""
        if self.path is None:
            return
        entry = {"stage": stage, "step": step} | {name: round(value, 6) for name, value in metrics.items()}
        with files.explain_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
