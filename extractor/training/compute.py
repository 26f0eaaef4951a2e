"""Where and how a training step runs: device, precision, ranks, micro-batches. Hugging Face accelerate does the distributed part.

Every rank takes its rows of one global batch; they go through the model in micro-batches; gradients are added up
weighted by rows. So the gradient is that of the whole batch however it was cut, to fp32 rounding. When memory runs out the micro-batch is
halved, on all ranks alike, and the step starts again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from extractor.errors import OutOfMemory, SpecError
from extractor.spec.schema import OptimSpec

if TYPE_CHECKING:
    from accelerate import Accelerator


def pick_device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class SingleProcess:
    """What a loop asks of a `Compute`, where one process does all and nothing is tracked."""

    is_main = True

    def agree(self, value: int) -> int:
        return value

    def track(self, folder: Path | None, first_step: int) -> None:
        pass

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class Compute(SingleProcess):
    """One per training. `state` belongs into the checkpoint: it holds the micro-batch that memory allows."""

    def __init__(self, optim: OptimSpec, note: Callable[[str], None] = lambda _line: None):
        from accelerate import Accelerator

        self.accelerator: Accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        self.precision, self.note = optim.precision, note
        if optim.batch < self.ranks:
            raise SpecError(f"optim.batch ({optim.batch}) is smaller than the number of processes ({self.ranks}); use fewer processes")
        rows = -(-optim.batch // self.ranks)
        self.state = {"micro_batch": torch.tensor(min(optim.micro_batch or rows, rows))}

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def ranks(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:  # type: ignore[override]
        """Whether this is the rank that saves, logs and reports."""
        return self.accelerator.is_main_process

    def share(self, rows: int) -> tuple[int, int]:
        """Which rows [start, stop) of a global batch are this rank's; the first ranks take one more where it does not divide."""
        size, more = divmod(rows, self.ranks)
        rank = self.accelerator.process_index
        start = rank * size + min(rank, more)
        return start, start + size + (rank < more)

    def accumulate(self, share: Tensor, rows: int, loss_of: Callable[[Tensor], Tensor], parameters: list[nn.Parameter]) -> float:
        """Leave the gradient of the mean loss over the global batch in `parameters`; returns that loss.

        share    this rank's rows of it, (its rows, T)
        rows     of the global batch
        loss_of  mean loss of some rows, a scalar that is the mean of per-row losses

        Raises OutOfMemory when a single row does not fit.
        """
        while True:
            total = self._pass_over(share, rows, loss_of, parameters)
            if not self._total(total is None):
                break
            self._halve()
        assert total is not None
        if self.ranks > 1:
            total = self._add_up(parameters, total)
        return total.item()

    def agree(self, value: int) -> int:
        """What the main rank says, on every rank."""
        return self._total(value if self.is_main else 0)

    def track(self, folder: Path | None, first_step: int) -> None:
        """Also write metrics as TensorBoard events to `folder`; a resumed run replaces what it repeats. Raises SpecError."""
        if folder is None or not self.is_main:
            return
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise SpecError("tensorboard is asked for but not installed: pip install 'extractor[tensorboard]'") from None
        from accelerate.tracking import TensorBoardTracker

        tracker = TensorBoardTracker(folder.name, folder.parent, purge_step=first_step)
        tracker.start()
        self.accelerator.trackers = [tracker]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Pass metrics to the tracker, if there is one."""
        self.accelerator.log(metrics, step=step)

    def close(self) -> None:
        """Close the tracker."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []

    def _pass_over(self, share: Tensor, rows: int, loss_of: Callable[[Tensor], Tensor], parameters: list[nn.Parameter]) -> Tensor | None:
        """This rank's part of the loss, its gradient in place; None when memory ran out."""
        from accelerate.utils.memory import should_reduce_batch_size

        for parameter in parameters:
            parameter.grad = None
        total = torch.zeros((), device=self.device)
        try:
            for micro in share.split(int(self.state["micro_batch"])):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = loss_of(micro.to(self.device)) * (len(micro) / rows)
                loss.backward()
                total += loss.detach()
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return None
        return total

    def _halve(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = int(self.state["micro_batch"])
        if size == 1:
            raise OutOfMemory("memory ran out with a single sequence a pass; use a smaller model or optim.context, or more memory")
        self.state["micro_batch"].fill_(size // 2)
        self.note(f"memory ran out with {size} sequences a pass; going on with {size // 2}, which gives the same result")

    def _total(self, value: int) -> int:
        return value if self.ranks == 1 else int(self._sum(torch.tensor(value, device=self.device, dtype=torch.int64)))

    def _add_up(self, parameters: list[nn.Parameter], total: Tensor) -> Tensor:
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = self._sum(torch.cat([total.reshape(1), *(g.flatten() for g in grads)]))
        summed, *parts = flat.split([1, *(g.numel() for g in grads)])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))
        return summed.squeeze(0)

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")
