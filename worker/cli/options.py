"""Options shared by several commands, and helpers for output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from extractor.pruning import algorithms
from extractor.spec.limits import MAX_THREADS
from worker.cli.text import print_json, print_line

if TYPE_CHECKING:
    from extractor.spec.fields import Setting


def _writable(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Callback of --alive-file: check that the file can be written, and delete one left by an earlier process."""
    if path is not None:
        try:
            path.touch()
            path.unlink()
        except OSError as error:
            raise click.BadParameter(f"{path} cannot be written ({error.strerror}); name a file in a writable folder") from None
    return path


as_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")
no_worker = click.option("--no-worker", is_flag=True, help="Do not start a local worker.")
out_folder = click.option("--out", type=click.Path(path_type=Path), help="Copy the result to this new folder; needs --wait.")
alive_file = click.option(
    "--alive-file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_writable,
    help="Touch this file every few seconds while Redis answers, as a liveness probe.",
)
threads = click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="CPU threads of the engine. Default: all usable cores.")

_REQUEST = (
    click.option("--preset", type=click.Choice(["tiny", "small", "paper"]), default="tiny", show_default=True, help="Size of the work."),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Random seed."),
    click.option(
        "--corpus",
        multiple=True,
        help="Training text: 'stdlib', 'generated', 'prose', 'self', a folder, a .txt, .py or .jsonl file. Repeatable.",
    ),
    click.option(
        "--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True, help="Place in the queue."
    ),
    click.option("--job-id", help="Id of the job. Submitting the same spec under the same id again has no effect."),
    click.option("--wait", is_flag=True, help="Follow the job until it ends, then show its result."),
    out_folder,
    click.option("--print-spec", is_flag=True, help="Print the job's spec as JSON, for `extract run`; queue nothing."),
    click.option("--dry-run", is_flag=True, help="Print the stages, the memory needed and the estimated time; queue nothing."),
    no_worker,
    as_json,
)


_DATASET = (
    click.option(
        "--dataset",
        "datasets",
        multiple=True,
        metavar="NAME[:CONFIG][@REVISION]",
        help="Stream training text from a Hugging Face dataset: a hub id or a folder. Repeatable. The five options below apply to each.",
    ),
    click.option("--dataset-config", "config", help="Configuration of the datasets that are named without one."),
    click.option("--split", default="train", show_default=True, help="Split of every dataset."),
    click.option("--revision", help="Branch, tag or commit of the datasets that are named without one; pinned to a commit. Default: main."),
    click.option("--text-column", default="text", show_default=True, help="Column that contains the text."),
    click.option(
        "--dataset-tokens", "tokens", type=click.IntRange(1), default=10_000_000, show_default=True, help="Maximum tokens per dataset."
    ),
)


def dataset_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name Hugging Face datasets. Those that describe a dataset are refused without one."""

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        if not options["datasets"]:
            refuse_given("--dataset", "config", "split", "revision", "text_column", "tokens")
        return function(*arguments, **options)

    for option in reversed(_DATASET):
        checked = option(checked)
    return checked


def refuse_given(needed: str, *names: str) -> None:
    """Raise UsageError where one of these parameters is on the command line: without the option `needed` it would have no effect."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} has no effect without {needed}; add {needed} or leave it out")


_PRUNING = {
    "granularity": click.option(
        "--granularity", type=click.Choice(["edge", "node"]), help="Prune single edges or whole nodes.  [default: edge]"
    ),
    "algorithm": click.option(
        "--algorithm", type=click.Choice(algorithms.names()), help="How nodes or edges are ranked; race: in several ways.  [default: race]"
    ),
    "ablation": click.option(
        "--ablation",
        type=click.Choice(["mean", "zero", "resample"]),
        help="How ablated nodes are filled: their mean, zero, or their value on another prompt.  [default: mean]",
    ),
    "standard": click.option(
        "--standard",
        type=click.Choice(["robust", "paper"]),
        help="What a circuit must hold under: 'paper', ablated nodes at their mean, calibrated; 'robust', also the worst of five ablations "
        "without calibration, beside the paper's.  [default: robust, with preset paper: paper]",
    ),
    "trials": click.option("--trials", type=click.IntRange(1), help="Number of mask sets to train. Default: set by the preset."),
    "minutes": click.option(
        "--minutes", type=click.FloatRange(0, min_open=True), help="Start no new ranking or round of trials after this many minutes."
    ),
    "seeds": click.option("--seeds", type=click.IntRange(1), help="Repeat with N seeds and report how much the circuits overlap."),
}

fields_option = click.option("--fields", is_flag=True, help="List every field for --set with its value and meaning; queue nothing.")


def changes_option(example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--set, repeatable."""
    return click.option(
        "--set", "changes", multiple=True, metavar="FIELD=VALUE", help=f"Override a field of the preset, as in {example}. Repeatable."
    )


def prune_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the pruning options. Each means `--set prune.NAME=VALUE`; the command receives these settings as `pruning`."""

    @functools.wraps(function)
    def gathered(*arguments: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _PRUNING}
        pruning = tuple(f"prune.{name}={value}" for name, value in given.items() if value is not None)
        return function(*arguments, pruning=pruning, **options)

    for option in reversed(list(_PRUNING.values())):
        gathered = option(gathered)
    return gathered


def positive(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Callback of options whose value is a loss."""
    if value is not None and not 0 < value < float("inf"):
        raise click.BadParameter(f"{value} is not a positive number of nats")
    return value


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that queues a job."""
    for option in reversed(_REQUEST):
        function = option(function)
    return function


def show_fields(found: list[Setting], as_json: bool) -> None:
    """Print one line per field, grouped by section, or a JSON list."""
    if as_json:
        print_json([vars(setting) for setting in found])
        return
    section = ""
    for setting in found:
        if setting.section != section:
            if section:
                print_line()
            print_line(setting.section)
            section = setting.section
        value = ",".join(f"{v:g}" for v in setting.value) or "none" if isinstance(setting.value, tuple) else str(setting.value).lower()
        print_line(f"  {setting.name + '=' + value:<40} {setting.kind:<34} {setting.meaning}".rstrip())
