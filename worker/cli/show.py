"""`extract show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.text import print_json

if TYPE_CHECKING:
    from extractor.results.result import Result

LIMIT = 60  # nodes that are drawn
KEPT = ("model", "standard", "target_loss", "meets_target", "holds_for_dense", "why", "held_out_pairs", "loss", "accuracy")
MEASURED = ("auc", "moved", "flipped", "without")  # of a node alone, in `validation.mechanism`


@click.command("show", short_help="Draw a circuit in the terminal.")
@click.argument("job", metavar="[JOB|FOLDER[:TASK]]", required=False, shell_complete=complete.jobs)
@click.option("--all", "every", is_flag=True, help="Draw every node.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), help=f"Draw at most this many nodes, those with the largest effects.  [default: {LIMIT}]"
)
@json_option
def command(job: str | None, every: bool, limit: int | None, as_json: bool) -> int:
    """Draw a circuit: how it works, then its nodes from the prompt down to the answer, each with what it tells apart, the loss
    without it, and the edges that end at it.

    Without JOB, the newest finished job of `extract list`. A result of several tasks needs :TASK. --json has all nodes.

    \b
    Example: extract show k3v9x2mq
             extract show out:quote_close --limit 20
    """
    from extractor.errors import BrokenArtifact, UsageError, first_line
    from worker.cli.connect import circuit_of, newest_finished, split_task

    if every and limit is not None:
        raise UsageError("--all and --limit exclude each other")
    name, task = split_task(newest_finished() if job is None else job)
    result = circuit_of(name, task)
    try:
        facts = {"job": None if Path(name).expanduser().is_dir() else name} | circuit_facts(result)
        if as_json:
            print_json(facts)
        else:
            _print(facts, result.numbers, None if every else limit or LIMIT)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise BrokenArtifact(f"the files in {result.place} do not fit together ({what}); copy the result again") from error
    return 0


def circuit_facts(result: Result) -> dict[str, Any]:
    """What --json prints of a circuit, with the numbers of result.json.

    nodes   in forward order: {id, site, channel, head, mean, position, reads, writes, auc, moved, flipped, without, in, out, stream};
            head: None where a node has none, or where the result lacks the settings of its model; auc to without: of the node alone, see
            `validation.mechanism`, None where not measured; in, out: [[id, weight], ...], the largest weight first; stream: earlier nodes
            that write to the residual channel that the node reads
    edges   [[source, target, weight], ...]
    story   {holds, claims: [{kind, nodes, holds, text}, ...]}; None where the mechanism was not measured

    Raises KeyError, TypeError, ValueError or AttributeError where the files of the result do not fit together.
    """
    circuit, numbers = result.circuit, result.numbers
    return {
        "folder": str(result.folder),
        "task": result.task,
        **{name: numbers.get(name) for name in KEPT},
        "answers": list(circuit.answers),
        "nodes": _nodes(result),
        "edges": [[edge.source, edge.target, edge.weight] for edge in circuit.edges],
        "story": _story(numbers),
    }


def _nodes(result: Result) -> list[dict[str, Any]]:
    from extractor.spec.story import mechanism_of

    measured = (mechanism_of(result.numbers) or {}).get("nodes") or {}
    width = head_width(result.folder)
    found: dict[str, dict[str, Any]] = {}
    for node in result.circuit.nodes:
        place, own = node.site.partition(".")[2], measured.get(node.id) or {}
        found[node.id] = {
            "id": node.id,
            "site": node.site,
            "channel": node.channel,
            "head": node.channel // width if width and place in ("attn.q", "attn.k", "attn.v") else None,
            "mean": node.mean,
            "position": node.position,
            "reads": list(node.reads),
            "writes": list(node.writes),
            **{name: own.get(name) for name in MEASURED},
            "in": [],
            "out": [],
            "stream": [],
        }
    for edge in sorted(result.circuit.edges, key=lambda edge: -abs(edge.weight)):
        found[edge.target]["in"].append([edge.source, edge.weight])
        found[edge.source]["out"].append([edge.target, edge.weight])
    written: dict[int, list[str]] = {}  # residual channel -> nodes that write to it
    for one in _by_stream(list(found.values()), result.circuit.parallel):
        if one["site"].endswith("act_in") and not one["position"]:
            one["stream"] = list(written.get(one["channel"], ()))
        elif one["site"].endswith("resid_delta"):
            written.setdefault(one["channel"], []).append(one["id"])
    return list(found.values())


def _by_stream(nodes: list[dict[str, Any]], parallel: bool) -> list[dict[str, Any]]:
    """Nodes in the order in which they meet the residual stream: in a parallel block every read comes before every write."""

    def key(node: dict[str, Any]) -> tuple[int, bool]:
        layer = node["site"].partition(".")[0]
        return int(layer) if layer.isdecimal() else 0, parallel and node["site"].endswith("resid_delta")

    return sorted(nodes, key=key)


def _story(numbers: dict[str, Any]) -> dict[str, Any] | None:
    from extractor.spec.story import PLAIN, mechanism_of, tell

    found = mechanism_of(numbers)
    if found is None:
        return None
    told = zip(found["claims"], tell(found, PLAIN), strict=True)
    claims = [{"kind": claim["kind"], "nodes": claim["nodes"], "holds": claim["holds"], "text": one.text} for claim, one in told]
    return {"holds": found["holds"], "claims": claims}


def head_width(folder: Path) -> int | None:
    """Channels per attention head, of the settings of the sparse model; None where the result lacks them."""
    from extractor.files import read_json

    path = folder / "model" / "config.json"
    width = read_json(path).get("d_head") if path.is_file() else None
    return width if isinstance(width, int) and width > 0 else None


def _print(facts: dict[str, Any], numbers: dict[str, Any], limit: int | None) -> None:
    from rich.console import Console

    from worker.cli.views.circuit import result_lines
    from worker.cli.views.circuit_rows import glyphs_for

    console = Console()
    for line in list(result_lines(facts, numbers, console.width, glyphs_for(console.encoding), limit)):  # an error ends it before any line
        console.print(line, soft_wrap=True, highlight=False)
