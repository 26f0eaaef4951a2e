"""`extract train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import changes_option, dataset_options, fields_option, positive, refuse_given, request_options, show_fields
from worker.cli.text import say

if TYPE_CHECKING:
    from extractor.spec.schema import JobSpec
    from worker.client.service import Service

_OPTIONS = (
    click.option("--architecture", type=click.Choice(["sparse_gpt", "gpt2"]), default="sparse_gpt", show_default=True),
    click.option("--dense", is_flag=True, help="Train the dense baseline: the same shape without sparsity."),
    click.option("--match", type=float, metavar="LOSS", callback=positive, help="Search the smallest width that reaches this loss (nats)."),
    click.option(
        "--task",
        "tasks",
        multiple=True,
        shell_complete=complete.tasks,
        help="Also find the circuit for this task, as `submit` does. Repeatable.",
    ),
    click.option("--target-loss", type=float, default=0.15, show_default=True, callback=positive, help="Target loss of a circuit (nats)."),
    changes_option("optim.lr=0.05"),
    fields_option,
    click.option(
        "--tokenizer", metavar="MODEL", help="Use this model's tokenizer: a bundled name, a folder, a hub id. Default: train a new one."
    ),
    click.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files to the result."),
    dataset_options,
    request_options,
)


def _train_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command("train", short_help="Queue the training of a model from scratch.")
@_train_options
def command(fields: bool, tasks: tuple[str, ...], datasets: tuple[str, ...], match: float | None, **options: Any) -> int:
    """Queue the training of a model from scratch, and print the job id.

    \b
    Example: extract train --preset tiny --wait --out my-model
             extract train --dataset roneneldan/TinyStories --dataset-tokens 50000000 --set model.d_model=256
    """
    preset, dense, architecture = options["preset"], options.pop("dense"), options.pop("architecture")
    if fields:
        from extractor.jobs.request import train_settings

        show_fields(train_settings(preset, architecture, dense), options["as_json"])
        return 0
    if not tasks:
        refuse_given("--task", "target_loss")
    from worker.cli.request import request

    same = {name: options.pop(name) for name in ("preset", "target_loss", "tokenizer", "tensorboard", "seed", "corpus")}
    changes, shared = options.pop("changes"), {name: options.pop(name) for name in ("config", "split", "revision", "text_column", "tokens")}

    def build(_service: Service | None) -> JobSpec:
        from extractor.jobs.request import TrainRequest, dataset
        from extractor.spec.fields import parse_changes

        training = TrainRequest(
            architecture=architecture,
            dense=dense,
            match_loss=match,
            tasks=tasks,
            changes=parse_changes(changes),
            datasets=tuple(dataset(name, **shared) for name in datasets),
            **same,
        )
        return training.to_spec(say)

    return request(build, options)
