"""The least memory that a job needs, computed before it starts; the queue chooses a worker by it. No torch, no weights."""

from __future__ import annotations

import logging

from extractor.errors import SpecError
from extractor.jobs.cost import bridging
from extractor.jobs.cost.constants import FLOAT_BYTES, FRAGMENTATION, PROCESS_BYTES, USABLE_SHARE
from extractor.jobs.cost.units import show_bytes, show_count
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
        return _of_training(spec.train)
    if spec.model is None or spec.bridge is None or spec.prunes_dense:
        return 0
    try:
        config = bridging.config_of(spec.model)
        if config.get("model_type") == SPARSE_TYPE:
            return 0
        return int(bridging.bridging_cost(config, spec.bridge).bytes_needed(1) / USABLE_SHARE)
    except Exception as error:  # a stranger's files may be broken in any way; the job itself will end with this error
        log.info("memory needed by a job over %s is not known: %s", spec.model, error)
        return 0


def check_training(train: TrainSpec, available: int) -> int:
    """The bytes that a training needs at least. Raises SpecError where they are more than the `available` ones."""
    needed = _of_training(train)
    if needed > available:
        raise SpecError(
            f"training {show_count(parameters(train))} weights needs {show_bytes(needed)} at least, {show_bytes(available)} are available; "
            f"set model.d_model (now {train.model.d_model:,}) or model.n_layer (now {train.model.n_layer:,}) lower"
        )
    return needed


def _of_training(train: TrainSpec) -> int:
    return int(_COPIES * FLOAT_BYTES * FRAGMENTATION * parameters(train)) + PROCESS_BYTES


def parameters(train: TrainSpec) -> int:
    """Number of weights of the model, without biases and norms."""
    bigram = bigram_entries(train.model, train.vocab_size) if train.architecture == "sparse_gpt" else 0
    return block_entries(train.model) + 2 * train.vocab_size * train.model.d_model + bigram
