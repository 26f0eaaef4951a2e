"""`extract submit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from worker.cli.options import positive, request_options

if TYPE_CHECKING:
    from extractor.specs import JobSpec
    from worker.client import Service


@click.command("submit", short_help="Queue the extraction of a task's circuit from a model.")
@click.option("--model", required=True, help="A bundled name, a folder, a hub id, or the id of a finished job.")
@click.option("--task", required=True, help="What the model does; see `extract tasks`.")
@click.option("--target-loss", type=float, default=0.15, show_default=True, callback=positive, help="Loss to reach, in nats.")
@request_options
def command(model: str, task: str, target_loss: float, preset: str, seed: int, corpus: tuple[str, ...], **options: Any) -> int:
    """Queue the extraction of a task's circuit from a model, and print the job's id.

    \b
    Example: extract submit --model python-tiny --task quote_close --wait
    """
    from worker.cli.request import request

    def build(service: Service | None) -> JobSpec:
        from extractor.request import circuit_job
        from worker.client import resolve_model
        from worker.settings import from_env

        source = resolve_model(model, service.settings if service else from_env(), service.records if service else None)
        return circuit_job(source, task, preset=preset, target_loss=target_loss, seed=seed, corpus=corpus)

    return request(build, options)
