"""From the options of `extract batch submit` to a batch. All input is checked here; nothing is queued."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from extractor.data.task_choice import choose
from extractor.errors import UsageError
from extractor.jobs.request import CircuitRequest
from extractor.models.reference import MAX_PARAMETERS, max_parameters
from extractor.spec.fields import parse_changes
from worker.batches.batch import Batch, batch_id
from worker.batches.selection import Rules, select
from worker.batches.sources import open_source

STAND_IN = ("python-tiny", ("quote_close",))  # model and tasks of the template, replaced in each child's spec


@dataclass(frozen=True)
class BatchRequest:
    """The options of a batch. models: values of --models; most_parameters: per model, None for the setting; owners: values of --org."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    limit: int = 100
    most_parameters: int | None = None
    owners: tuple[str, ...] = ()
    preset: str = "tiny"
    target_loss: float = 0.15
    seed: int = 0
    strict: bool = True
    init: str | None = None
    corpus: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def plan(
    order: BatchRequest, before: Callable[[str], Batch | None], on_progress: Callable[[int, int], None] = lambda examined, taken: None
) -> Batch:
    """Select the models of a batch and pin them.

    before       returns the batch with an id as it was planned earlier, whose models are kept, or None
    on_progress  called with the numbers of examined and accepted models
    Raises UsageError, UnknownTask, SpecError, NotFound, ServiceUnavailable.
    """
    chosen, circuit, rules = choose(order.tasks), _circuit(order), _rules(order)
    template, bridge = circuit.template(), circuit.bridge_choice()
    sources = [open_source(text) for text in order.models]
    request = {
        "models": [source.identity for source in sources],
        "tasks": chosen.names,
        "task_files": [[file.name, file.sha256] for file in chosen.files],
        "most_parameters": order.most_parameters,
        "owners": sorted(rules.owners),
        "template": template.model_dump(mode="json"),
    }  # without the limit, so that a higher one adds models to the same batch
    batch = batch_id(request)
    earlier = before(batch)
    candidates = itertools.chain.from_iterable(source.candidates() for source in sources)
    selection = select(candidates, rules, chosen, bridge, earlier.selection if earlier else None, on_progress)
    created = earlier.created if earlier else time.time()
    return Batch(batch, _words(order), template, chosen.names, chosen.files, selection, created, bridge.otherwise)


def check_any(batch: Batch) -> None:
    """Refuse a batch without models. Raises UsageError."""
    refused = batch.selection.refused
    if batch.selection.taken:
        return
    if not refused:
        raise UsageError(f"no model found for {', '.join(batch.asked['models'])}; widen the search, or name other models")
    raise UsageError(f"all {len(refused)} models were rejected; --dry-run shows why; the first: {refused[0].reason}")


def _circuit(order: BatchRequest) -> CircuitRequest:
    model, tasks = STAND_IN
    same = {name: getattr(order, name) for name in ("preset", "target_loss", "seed", "strict", "init", "corpus")}
    return CircuitRequest(model, tasks, changes=parse_changes(order.changes), **same)


def _rules(order: BatchRequest) -> Rules:
    ceiling = max_parameters()
    if order.most_parameters is None or order.most_parameters > ceiling:
        return Rules(order.limit, ceiling, MAX_PARAMETERS, frozenset(order.owners))
    return Rules(order.limit, order.most_parameters, "--max-params", frozenset(order.owners))


def _words(order: BatchRequest) -> dict:
    return {name: value for name, value in asdict(order).items() if value not in (None, ())}
