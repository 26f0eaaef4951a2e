"""From what was asked of `extract batch submit` to a batch: everything that can be refused is refused here, nothing is queued."""

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
from extractor.spec.schema import JobSpec
from worker.batches.batch import Batch, batch_id
from worker.batches.selection import Rules, select
from worker.batches.sources import open_source

STAND_IN = ("python-tiny", ("quote_close",))  # what the template is of, until a child's model and task take their place


@dataclass(frozen=True)
class BatchRequest:
    """A batch as it was asked for. models: texts of --models; most_parameters: of each model, None for the setting's; owners: --org."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    limit: int = 100
    most_parameters: int | None = None
    owners: tuple[str, ...] = ()
    preset: str = "tiny"
    target_loss: float = 0.15
    seed: int = 0
    init: str | None = None
    corpus: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def plan(
    order: BatchRequest, before: Callable[[str], Batch | None], on_look: Callable[[int, int], None] = lambda looked, taken: None
) -> Batch:
    """Look at the models and choose: the batch, its models pinned.

    before   gives the batch of an id as it was planned earlier, whose models stay; None where there is none
    Raises UsageError, also where no model can be taken, UnknownTask, SpecError, NotFound, ServiceUnavailable.
    """
    chosen, template, rules = choose(order.tasks), _template(order), _rules(order)
    assert template.bridge is not None  # a circuit job has it
    sources = [open_source(text) for text in order.models]
    request = {
        "models": [source.identity for source in sources],
        "tasks": chosen.names,
        "task_files": [[file.name, file.sha256] for file in chosen.files],
        "most_parameters": order.most_parameters,
        "owners": sorted(rules.owners),
        "template": template.model_dump(mode="json"),
    }  # not the limit: a higher one adds to the batch
    batch = batch_id(request)
    earlier = before(batch)
    candidates = itertools.chain.from_iterable(source.candidates() for source in sources)
    selection = select(candidates, rules, chosen, template.bridge, earlier.selection if earlier else None, on_look)
    return Batch(batch, _words(order), template, chosen.names, chosen.files, selection, earlier.created if earlier else time.time())


def check_any(batch: Batch) -> None:
    """Refuse a batch without models. Raises UsageError."""
    refused = batch.selection.refused
    if batch.selection.taken:
        return
    if not refused:
        raise UsageError(f"no model found for {', '.join(batch.asked['models'])}; widen the search, or name other models")
    raise UsageError(f"none of {len(refused)} models can be taken; --dry-run shows why; the first: {refused[0].reason}")


def _template(order: BatchRequest) -> JobSpec:
    model, tasks = STAND_IN
    same = {name: getattr(order, name) for name in ("preset", "target_loss", "seed", "init", "corpus")}
    return CircuitRequest(model, tasks, changes=parse_changes(order.changes), **same).to_spec()


def _rules(order: BatchRequest) -> Rules:
    ceiling = max_parameters()
    if order.most_parameters is None or order.most_parameters > ceiling:
        return Rules(order.limit, ceiling, MAX_PARAMETERS, frozenset(order.owners))
    return Rules(order.limit, order.most_parameters, "--max-params", frozenset(order.owners))


def _words(order: BatchRequest) -> dict:
    return {name: value for name, value in asdict(order).items() if value not in (None, ())}
