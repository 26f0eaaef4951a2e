"""The summary of a batch: the circuits of every model, the rejected models with reasons; as summary.json and index.html."""

from __future__ import annotations

from pathlib import Path

from extractor import files
from extractor.errors import BrokenArtifact, ExtractorError, NotFound, OutputError
from extractor.spec.claims import sizes_by_standard
from worker.batches.batch import Batch, Facts, count, inspect, state_of
from worker.batches.page import page
from worker.client import damaged
from worker.client.results import result_folder
from worker.client.service import Service
from worker.settings import Settings
from worker.storage import results

SUMMARY, PAGE = "summary.json", "index.html"
NUMBERS = ("nodes", "edges", "loss", "full_loss", "accuracy")
VERDICT = ("meets_target", "holds_for_dense", "why")


def folder_of(settings: Settings, batch: str) -> Path:
    """The default folder of a batch's summary."""
    return settings.state_dir / "batches" / batch


def gather(service: Service, batch: Batch) -> Facts:
    """The summary.

    models    [{model, reference, parameters, left_out {task: why}, tasks {task: {job, state, error, nodes, edges, loss, full_loss,
              accuracy, meets_target, holds_for_dense, why, report}}}]: losses in nats; numbers are None without a result, report is
              None if it is not visible from here
    refused   [{model, reason}]
    """
    facts = [_with_numbers(service, child) for child in inspect(service, batch)]
    counts = count(facts)
    found: dict[str, dict[str, Facts]] = {}
    for child in facts:
        found.setdefault(child["model"], {})[child["task"]] = {key: value for key, value in child.items() if key not in ("model", "task")}
    models = [
        {"model": model.asked, "reference": model.reference, "parameters": model.parameters, "left_out": dict(model.left_out)}
        | {"tasks": found.get(model.asked, {})}
        for model in batch.selection.taken
    ]
    refused = [{"model": model.asked, "reason": model.reason} for model in batch.selection.refused]
    summary: Facts = {"version": 1, "batch": batch.id, "state": state_of(counts), "created": batch.created, "asked": batch.asked}
    summary |= {"tasks": list(batch.tasks), "counts": counts, "models": models, "refused": refused}
    return summary | {"is_complete": batch.selection.is_complete}


def write(out: Path, summary: Facts) -> None:
    """Write summary.json and index.html, replacing earlier ones. Raises OutputError, or ExtractorError when the disk is full."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / SUMMARY, summary)
        files.write_text(out / PAGE, page(summary))
    except OSError as error:
        raise OutputError(f"output {out} cannot be written ({error.strerror}); name another folder with --out") from None


def check_out(out: Path) -> Path:
    """Return a folder that is new, empty or written by an earlier summary. Raises OutputError for any other."""
    if not (out / SUMMARY).is_file():
        results.check_new_folder(out)
    return out.absolute()


def _with_numbers(service: Service, child: Facts) -> Facts:
    facts = {key: child[key] for key in ("job", "model", "task", "state", "error")}
    facts |= dict.fromkeys((*NUMBERS, *VERDICT, "report")) | sizes_by_standard({})
    if child["state"] != "succeeded":
        return facts
    try:
        folder = result_folder(service.settings, service.records, child["job"], without="model/")
        return facts | _numbers(folder)
    except NotFound as error:
        if damaged.is_damaged(service, child["job"]):
            return facts | {"state": "failed", "error": "NotFound: its result is gone; the same `extract batch submit` makes it anew"}
        return facts | {"why": str(error)}  # the result is on another machine's disk
    except ExtractorError as error:
        return facts | {"state": "failed", "error": f"{type(error).__name__}: {error}"}


def _numbers(folder: Path) -> Facts:
    """The numbers of a circuit job's result that the summary shows. Raises BrokenArtifact."""
    try:
        result = results.summary(folder)
        if "tasks" in result:  # a strict job that found no circuit
            return {key: result["tasks"][0].get(key) for key in VERDICT}
        size, loss, accuracy = (result[name] for name in ("circuit", "loss", "accuracy"))
        numbers = {"nodes": int(size["nodes"]), "edges": int(size["edges"]), "loss": float(loss["circuit"])}
        numbers |= {"full_loss": float(loss["full"]), "accuracy": float(accuracy["circuit"])}
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenArtifact(f"the result in {folder} lacks the numbers of a circuit ({error}); run the job again") from None
    report = result["paths"].get("report")
    verdict = {"meets_target": bool(result.get("meets_target")), "holds_for_dense": result.get("holds_for_dense"), "why": result.get("why")}
    return numbers | sizes_by_standard(result) | verdict | {"report": str(Path(report).absolute()) if report else None}
