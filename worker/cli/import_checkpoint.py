"""`extract import`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line


@click.command("import", short_help="Convert a published circuit-sparsity checkpoint.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New model folder.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Folder with the model's tokenizer.json.")
@json_option
def command(folder: Path, out: Path, tokenizer: Path | None, as_json: bool) -> int:
    """Convert a published circuit-sparsity checkpoint (beeg_config.json, final_model.pt) into a model folder for `extract submit`.

    \b
    Example: extract import csp_yolo2 --out yolo2 --tokenizer tinypython
    """
    from transformers.utils import logging

    from extractor.models.openai_import import import_checkpoint

    logging.disable_progress_bar()
    report = import_checkpoint(folder, out, tokenizer)
    if as_json:
        print_json({"path": str(out.absolute()), **report})
        return 0
    for name, facts in report["files"].items():
        print_line(f"read   {name}  sha256 {facts['sha256']}")
    for note in report["notes"]:
        print_line(f"note   {note}")
    print_line(f"model  {report['layers']} layers of width {report['width']}, {report['parameters']:,} parameters, in {out}")
    return 0
