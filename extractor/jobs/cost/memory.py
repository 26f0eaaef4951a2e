"""The memory that a job needs at least, told before it starts, so that it goes to a machine that has it. No torch, no weights."""

from __future__ import annotations

import logging

from extractor.errors import ExtractorError
from extractor.jobs.cost import bridging
from extractor.spec.schema import JobSpec, TrainSpec

log = logging.getLogger("extract")
_BYTES = 16  # a trained parameter, its gradient and two moments, in fp32


def bytes_needed(spec: JobSpec) -> int:
    """Bytes of GPU memory, or of RAM on a CPU, without which the engine refuses to start or runs out; 0 where that cannot be told.

    Of a bridging: the plan with one sequence a pass. Of a training: weights, gradients and moments. Pruning a sparse model needs little.
    """
    if spec.train is not None:
        return int(_BYTES * bridging.HOLES * _parameters(spec.train)) + bridging.PROCESS
    if spec.model is None or spec.bridge is None or spec.prunes_dense:
        return 0
    try:
        config = bridging.config_of(spec.model)
        if config.get("model_type") == "sparse_gpt":
            return 0
        return int(bridging.bridging_cost(config, spec.bridge).needed(1) / bridging.SHARE)
    except (ExtractorError, OSError) as error:  # the job will say so itself
        log.info("memory needed by a job over %s is not known: %s", spec.model, error)
        return 0


def _parameters(train: TrainSpec) -> int:
    """Weights of the model, biases and norms left out."""
    shape = train.model
    block = 4 * shape.d_model**2 + 2 * shape.mlp_ratio * shape.d_model**2
    table = {"none": 0, "dense": train.vocab_size**2, "counts": train.vocab_size * shape.bigram_top}
    bigram = table.get(shape.bigram, 2 * train.vocab_size * shape.bigram_rank)
    return shape.n_layer * block + 2 * train.vocab_size * shape.d_model + (bigram if train.architecture == "sparse_gpt" else 0)
