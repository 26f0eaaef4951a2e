"""Where and how a training step runs: device, precision, processes, micro-batches. Hugging Face accelerate does the distributed part.

Each process takes its rows of one global batch and passes them through the model in micro-batches. Gradients are summed, weighted by
rows, so that to fp32 rounding they are those of the global batch, however it is divided. When memory runs out, all processes halve the
micro-batch and repeat the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from extractor.errors import OutOfMemory, SpecError, require
from extractor.spec.schema import OptimSpec

if TYPE_CHECKING:
    from accelerate import Accelerator


def pick_device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class SingleProcess:
    """The part of `Compute` that `run_loop` uses, for one process without a tracker."""

    is_main = True

    def broadcast(self, value: int) -> int:
        return value

    def track(self, folder: Path | None, first_step: int) -> None:
        pass

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class Compute(SingleProcess):
    """One for each training. `state` holds the micro-batch that memory allows and is part of the checkpoint."""

    def __init__(self, optim: OptimSpec, note: Callable[[str], None] = lambda _line: None):
        from accelerate import Accelerator

        self.accelerator: Accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        self.precision, self.note = optim.precision, note
        if optim.batch < self.processes:
            raise SpecError(f"optim.batch ({optim.batch}) is smaller than the number of processes ({self.processes}); use fewer processes")
        rows = -(-optim.batch // self.processes)
        self.state = {"micro_batch": torch.tensor(min(optim.micro_batch or rows, rows))}

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:  # type: ignore[override]
        """Whether this is the process that saves, logs and reports."""
        return self.accelerator.is_main_process

    def own_rows(self, rows: int) -> tuple[int, int]:
        """The rows [start, stop) of a global batch that this process takes; the first processes take one more where it does not divide."""
        size, more = divmod(rows, self.processes)
        process = self.accelerator.process_index
        start = process * size + min(process, more)
        return start, start + size + (process < more)

    def accumulate(
        self, own: Tensor, rows: int, loss_of: Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]], parameters: list[nn.Parameter]
    ) -> tuple[float, list[Tensor]]:
        """Leave the gradient of the mean loss over the global batch in `parameters`; returns that loss and the averaged terms.

        own      this process's rows of the global batch, see `own_rows`
        rows     number of rows of the global batch
        loss_of  for some rows their mean loss, a scalar, and further terms, tensors that are means over these rows; terms get no gradient

        Raises OutOfMemory when a single row does not fit.
        """
        while True:
            found = self._pass_over(own, rows, loss_of, parameters)
            if not self._total(found is None):
                break
            self._halve()
        assert found is not None
        loss, terms = self._add_up(parameters, *found) if self.processes > 1 else found
        return loss.item(), terms

    def broadcast(self, value: int) -> int:
        """The main process's value, in every process."""
        return self._total(value if self.is_main else 0)

    def track(self, folder: Path | None, first_step: int) -> None:
        """Also write metrics as TensorBoard events to `folder`; a resumed run replaces what it repeats. Raises SpecError."""
        if folder is None or not self.is_main:
            return
        require("tensorboard", "--tensorboard", "tensorboard", SpecError)
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

    def _pass_over(
        self, own: Tensor, rows: int, loss_of: Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]], parameters: list[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor]] | None:
        """This process's part of the loss and of the terms, and its gradient in place; None when memory ran out."""
        from accelerate.utils.memory import should_reduce_batch_size

        for parameter in parameters:
            parameter.grad = None
        total = torch.zeros((), device=self.device)
        sums: list[Tensor] = []
        try:
            for micro in own.split(int(self.state["micro_batch"])):
                weight = len(micro) / rows
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    value, terms = loss_of(micro.to(self.device))
                    loss = value * weight
                loss.backward()
                total += loss.detach()
                sums = sums or [torch.zeros_like(term) for term in terms]
                for term_sum, term in zip(sums, terms, strict=True):
                    term_sum.add_(term, alpha=weight)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return None
        return total, sums

    def _halve(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = int(self.state["micro_batch"])
        if size == 1:
            raise OutOfMemory(
                "memory ran out with a micro-batch of a single sequence; use a smaller model or optim.context, or a larger machine"
            )
        self.state["micro_batch"].fill_(size // 2)
        self.note(f"memory ran out with a micro-batch of {size} sequences; continuing with {size // 2}, which gives the same result")

    def _total(self, value: int) -> int:
        return value if self.processes == 1 else int(self._sum(torch.tensor(value, device=self.device, dtype=torch.int64)))

    def _add_up(self, parameters: list[nn.Parameter], loss: Tensor, terms: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Sum loss, terms and gradients over all processes, in one message."""
        tensors = [loss, *terms, *(p.grad for p in parameters if p.grad is not None)]
        summed = self._sum(torch.cat([t.flatten() for t in tensors])).split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, summed, strict=True):
            tensor.copy_(part.view_as(tensor))
        return loss, terms

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")
