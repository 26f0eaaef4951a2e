"""Is the circuit real? Four networks on held-out pairs that pruning never saw (Sec. 3.1, App. C).

full              the whole model
circuit           the circuit alone, everything else mean-ablated, with the circuit's own calibration: is it sufficient?
without_circuit   the whole model with only the circuit's nodes mean-ablated: is it necessary?
random            as many random nodes at every site as the circuit has there, mean of several draws: is it better than chance?

The last two are given the calibration that suits them best (fitted on the select split), so that they fail for want of knowledge, not
of scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from extractor.ablation import measured_margin
from extractor.objective import TaskBatch, accuracy
from extractor.prune import Calibration, Probe, PruneResult, calibrate, calibrated_loss

RANDOM_DRAWS = 5
_PLAIN = Calibration(1.0, 0.0)


@dataclass(frozen=True)
class ValidationReport:
    """loss in nats per prompt and accuracy as a fraction, each for 'full', 'circuit', 'without_circuit', 'random'."""

    loss: dict[str, float]
    accuracy: dict[str, float]
    held_out_pairs: int


@torch.no_grad()
def validate(result: PruneResult, probe: Probe, held_out: TaskBatch, seed: int) -> ValidationReport:
    """Measure the four networks; `probe` carries the select batch for the controls' calibration."""
    model, means, index = probe.model, probe.means, probe.index
    everything = torch.arange(len(index))
    loss: dict[str, float] = {}
    right: dict[str, float] = {}

    def measure(nodes: Tensor, calibration: Calibration | None) -> tuple[float, float]:
        masks = index.masks(nodes.to(model.device))
        if calibration is None:
            calibration = calibrate(measured_margin(model, probe.batch, masks, means), probe.batch.sign)
        margin = measured_margin(model, held_out, masks, means)
        return calibrated_loss(margin, held_out.sign, calibration), accuracy(calibration.scale * margin + calibration.shift, held_out.sign)

    loss["full"], right["full"] = measure(everything, _PLAIN)
    loss["circuit"], right["circuit"] = measure(result.nodes, result.calibration)
    loss["without_circuit"], right["without_circuit"] = measure(probe.others(result.nodes), None)
    draws = [measure(_random_like(probe, result.nodes, seed + d), None) for d in range(RANDOM_DRAWS)]
    loss["random"] = sum(d[0] for d in draws) / len(draws)
    right["random"] = sum(d[1] for d in draws) / len(draws)
    return ValidationReport(loss, right, held_out.pairs)


def _random_like(probe: Probe, nodes: Tensor, seed: int) -> Tensor:
    """Random nodes, as many at each site as `nodes` has there."""
    generator = torch.Generator().manual_seed(seed)
    picked = {
        site: set(torch.randperm(probe.index.widths[site], generator=generator)[: len(channels)].tolist())
        for site, channels in probe.kept(nodes).items()
    }
    return torch.tensor(sorted(probe.flat(picked)))
