"""`extract train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from worker.cli.options import request_options

if TYPE_CHECKING:
    from extractor.specs import JobSpec
    from worker.client import Service


@click.command("train", short_help="Queue the training of a model from scratch.")
@click.option("--architecture", type=click.Choice(["sparse_gpt", "gpt2"]), default="sparse_gpt", show_default=True)
@request_options
def command(architecture: str, preset: str, seed: int, corpus: tuple[str, ...], **options: Any) -> int:
    """Queue the training of a model from scratch, and print the job's id.

    \b
    Example: extract train --preset tiny --wait --out my-model
    """
    from worker.cli.request import request

    def build(_service: Service | None) -> JobSpec:
        from extractor.request import train_job

        return train_job(preset=preset, architecture=architecture, seed=seed, corpus=corpus)

    return request(build, options)
