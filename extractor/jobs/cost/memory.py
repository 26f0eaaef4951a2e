"""The least memory that a job needs, computed before it starts; the queue chooses a worker by it. No torch, no weights."""

from __future__ import annotations

import logging

from extractor.errors import ExtractorError
from extractor.jobs.cost import bridging
from extractor.jobs.cost.constants import FLOAT_BYTES, FRAGMENTATION, PROCESS_BYTES, USABLE_SHARE
from extractor.models.checks import SPARSE_TYPE
from extractor.spec.schema import JobSpec, TrainSpec
from extractor.spec.sizes import bigram_entries, block_entries

log = logging.getLogger("extract")
_COPIES = 4  # of every trained parameter: itself, its gradient, two Adam moments


def bytes_needed(spec: JobSpec) -> int:
    """Bytes of GPU memory, or of RAM on a CPU, below which the engine refuses to start or runs out; 0 where the number is not known.

    For a bridging: the cost with a micro-batch of one sequence. For a training: weights, gradients and moments. Pruning needs little.
    """
    if spec.train is not None:
        return int(_COPIES * FLOAT_BYTES * FRAGMENTATION * _parameters(spec.train)) + PROCESS_BYTES
    if spec.model is None or spec.bridge is None or spec.prunes_dense:
        return 0
    try:
        config = bridging.config_of(spec.model)
        if config.get("model_type") == SPARSE_TYPE:
            return 0
        return int(bridging.bridging_cost(config, spec.bridge).bytes_needed(1) / USABLE_SHARE)
    except (ExtractorError, OSError) as error:  # the job itself will end with this error
        log.info("memory needed by a job over %s is not known: %s", spec.model, error)
        return 0


def _parameters(train: TrainSpec) -> int:
    """Number of weights of the model, without biases and norms."""
    bigram = bigram_entries(train.model, train.vocab_size) if train.architecture == "sparse_gpt" else 0
    return block_entries(train.model) + 2 * train.vocab_size * train.model.d_model + bigram
