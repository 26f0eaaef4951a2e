"""`extract models`."""

from __future__ import annotations

import click

from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line


@click.command("models", short_help="List the bundled models.")
@json_option
def command(as_json: bool) -> int:
    """List the bundled models. `--model` also accepts a folder, a Hugging Face id or the id of a finished job.

    \b
    Example: extract models
    """
    from extractor.models.reference import bundled_models

    models = bundled_models()
    if as_json:
        print_json([{key: str(model[key]) for key in ("name", "path", "description")} for model in models])
        return 0
    width = max((len(model["name"]) for model in models), default=0)
    for model in models:
        print_line(f"{model['name']:<{width}}  {model['description']}")
    return 0
