"""Options that several commands share, and the one way to print JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extractor.pruning import algorithms

if TYPE_CHECKING:
    from extractor.spec.fields import Setting


def _writable(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Callback of an option that names a file to be touched. One that an earlier process left says nothing about us, so it goes."""
    if path is not None:
        try:
            path.touch()
            path.unlink()
        except OSError as error:
            raise click.BadParameter(f"{path} cannot be written ({error.strerror}); name a file in a folder of yours") from None
    return path


as_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")
no_worker = click.option("--no-worker", is_flag=True, help="Do not start a local worker.")
out_folder = click.option("--out", type=click.Path(path_type=Path), help="Copy the result to this new folder; needs --wait.")
alive_file = click.option(
    "--alive-file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_writable,
    help="Touch this file every few seconds while Redis answers: a liveness probe.",
)
threads = click.option("--threads", type=click.IntRange(1), help="CPU threads of the engine; default: all.")

_REQUEST = (
    click.option("--preset", type=click.Choice(["tiny", "small", "paper"]), default="tiny", show_default=True, help="How much work to do."),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Same seed, same result."),
    click.option("--corpus", multiple=True, help="Text: 'stdlib', 'generated', a folder, .txt, .py or .jsonl file. Repeatable."),
    click.option(
        "--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True, help="Place in the queue."
    ),
    click.option("--job-id", help="An id of your own; submitting the same again changes nothing."),
    click.option("--wait", is_flag=True, help="Follow the job until it ends and show its result."),
    out_folder,
    click.option("--print-spec", is_flag=True, help="Print the job's spec for `extract run`; queue nothing."),
    click.option("--dry-run", is_flag=True, help="Say what the job would do, what it needs and how long it takes; queue nothing."),
    no_worker,
    as_json,
)


_DATASET = (
    click.option(
        "--dataset",
        "datasets",
        multiple=True,
        metavar="NAME[:CONFIG][@REVISION]",
        help="Train on a Hugging Face dataset, streamed: a hub id or a folder. Repeatable; the five options below hold for each.",
    ),
    click.option("--dataset-config", "config", help="The configuration, of datasets that have several and are named without one."),
    click.option("--split", default="train", show_default=True, help="The split of every --dataset."),
    click.option("--revision", help="Branch, tag or commit, of datasets named without one; it is pinned to a commit. Default: main."),
    click.option("--text-column", default="text", show_default=True, help="The column that holds the text."),
    click.option(
        "--dataset-tokens", "tokens", type=click.IntRange(1), default=10_000_000, show_default=True, help="At most so many tokens of each."
    ),
)


def dataset_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name Hugging Face datasets."""
    for option in reversed(_DATASET):
        function = option(function)
    return function


_PRUNING = {
    "granularity": click.option(
        "--granularity", type=click.Choice(["edge", "node"]), help="What is eliminated one by one.  [default: edge]"
    ),
    "algorithm": click.option("--algorithm", type=click.Choice(algorithms.names()), help="What ranks the nodes.  [default: masks]"),
    "ablation": click.option(
        "--ablation", type=click.Choice(["mean", "zero", "resample"]), help="What stands for what is off.  [default: mean]"
    ),
    "trials": click.option("--trials", type=click.IntRange(1), help="Mask sets to try, by preset."),
    "minutes": click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Begin no new round of trials after that long."),
    "seeds": click.option("--seeds", type=click.IntRange(1), help="Prune from so many seeds, and say how far their circuits agree."),
}

fields_option = click.option("--fields", is_flag=True, help="Print every field that --set takes, its value and meaning; queue nothing.")


def changes_option(example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--set, repeatable."""
    return click.option(
        "--set", "changes", multiple=True, metavar="FIELD=VALUE", help=f"Change a field of the preset, as in {example}. Repeatable."
    )


def prune_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The choices of pruning that have options of their own: each stands for `--set prune.NAME=VALUE`. They arrive as `pruning`."""

    @functools.wraps(function)
    def gathered(*arguments: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _PRUNING}
        pruning = tuple(f"prune.{name}={value}" for name, value in given.items() if value is not None)
        return function(*arguments, pruning=pruning, **options)

    for option in reversed(list(_PRUNING.values())):
        gathered = option(gathered)
    return gathered


def positive(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Callback of options that are a loss."""
    if value is not None and not 0 < value < float("inf"):
        raise click.BadParameter(f"{value} is not a positive number of nats")
    return value


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that queues a job."""
    for option in reversed(_REQUEST):
        function = option(function)
    return function


def say(line: str) -> None:
    """A line for people beside the output, on stderr."""
    click.echo(line, err=True)


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout."""
    click.echo(json.dumps(value))


def show_fields(found: list[Setting], as_json: bool) -> None:
    """A line for each field under the heading of its section, or a JSON list."""
    if as_json:
        print_json([vars(setting) for setting in found])
        return
    section = ""
    for setting in found:
        if setting.section != section:
            click.echo(f"{section and chr(10)}{setting.section}")
            section = setting.section
        value = ",".join(f"{v:g}" for v in setting.value) or "none" if isinstance(setting.value, tuple) else str(setting.value).lower()
        click.echo(f"  {setting.name + '=' + value:<40} {setting.kind:<34} {setting.meaning}".rstrip())
