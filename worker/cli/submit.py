"""`extract submit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import changes_option, dataset_options, fields_option, positive, prune_options, request_options, show_fields
from worker.cli.text import say

if TYPE_CHECKING:
    from extractor.spec.schema import JobSpec
    from worker.client.service import Service

_OPTIONS = (
    click.option(
        "--model", shell_complete=complete.models, help="A bundled name, a folder, a hub id, or the id of a finished job (also as job:ID)."
    ),
    click.option("--adapter", help="LoRA adapter of the model: a folder or a hub id. For a --model that is an adapter, its base is found."),
    click.option(
        "--task",
        "tasks",
        shell_complete=complete.tasks,
        multiple=True,
        help="A name from `extract tasks`, a JSONL file of pairs, or 'all'. Repeatable; all tasks share one bridging.",
    ),
    click.option("--target-loss", type=float, default=0.15, show_default=True, callback=positive, help="Target loss of a circuit (nats)."),
    click.option(
        "--init", type=click.Choice(["dense", "scratch"]), help="Initial weights of the sparse model. Default: set by the preset."
    ),
    click.option(
        "--labels",
        type=click.Choice(["task", "model"]),
        default="task",
        show_default=True,
        help="Answers that the circuit must give: the task's correct answers or the model's own.",
    ),
    click.option(
        "--strict/--no-strict",
        help="Find no circuit of a task that the dense model does not do, or on which its sparse model disagrees with it. Default: find "
        "it, and say so.",
    ),
    click.option(
        "--focus/--no-focus",
        default=True,
        help="Whether prompts of the tasks are part of every step of the bridging, where the preset has them. Default: --focus.",
    ),
    click.option(
        "--layers",
        metavar="A-B",
        help="Make only these layers sparse, counted from 0; the others stay as the dense model has them. Default: all layers.",
    ),
    click.option("--dense", "is_dense", is_flag=True, help="Prune the dense model itself, without bridging."),
    prune_options,
    changes_option("bridge.optim.lr=0.01"),
    fields_option,
    dataset_options,
    request_options,
)


def _submit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command("submit", short_help="Queue the extraction of circuits from a model.")
@click.argument("given", nargs=-1, metavar="[MODEL [TASK]...]")
@_submit_options
def command(
    given: tuple[str, ...], model: str | None, tasks: tuple[str, ...], fields: bool, datasets: tuple[str, ...], **options: Any
) -> int:
    """Queue the extraction of a model's circuits for one or several tasks, and print the job id. MODEL and TASK are required, here or
    as options.

    \b
    Example: extract submit python-tiny quote_close --wait
             extract submit --model python-tiny --task for_while --task my_pairs.jsonl
             extract submit --model gpt2 --task quote_close --dataset HuggingFaceFW/fineweb-edu:sample-10BT --dry-run
    """
    if fields:
        from extractor.jobs.request import circuit_settings

        show_fields(circuit_settings(options["preset"], options["init"]), options["as_json"])
        return 0
    if given and model is None:
        model, given = given[0], given[1:]
    tasks = (*given, *tasks)
    for name, value in (("--model", model or ""), *(("--task", task) for task in tasks)):
        if value.startswith("--"):
            raise click.BadOptionUsage(name, f"option {name!r} needs a value before {value!r}")
    if not model or not tasks:
        raise click.MissingParameter(param_hint="'--task'" if model else "'--model'", param_type="option")
    from worker.cli.request import request

    of_request = ("adapter", "labels", "strict", "focus", "layers", "init", "preset", "target_loss", "seed", "corpus")
    same = {name: options.pop(name) for name in of_request}
    same["subject"] = "dense" if options.pop("is_dense") else "twin"
    changes, shared = (
        (*options.pop("pruning"), *options.pop("changes")),
        {name: options.pop(name) for name in ("config", "split", "revision", "text_column", "tokens")},
    )

    def build(service: Service | None) -> JobSpec:
        from extractor.jobs.request import CircuitRequest, dataset
        from extractor.spec.fields import parse_changes
        from worker.cli.connect import resolve_model
        from worker.settings import from_env

        source = resolve_model(model, service.settings if service else from_env(), service.records if service else None)
        found = tuple(dataset(name, **shared) for name in datasets)
        return CircuitRequest(source, tasks, changes=parse_changes(changes), datasets=found, **same).to_spec(say)

    return request(build, options)
