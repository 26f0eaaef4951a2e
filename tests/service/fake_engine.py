"""An engine that keeps the real one's contract and learns nothing: two stages, a checkpoint after each step, a manifest at the end.

It is steered by a JSON file in EXTRACT_FAKE_PLAN, read at the start of each run:

    steps, seconds   of each stage, and between two steps
    die_at           kill ourselves with SIGKILL after this step, in every run that reaches it
    crash            message of an exception nobody expected
    fail             [class name, message, exit code] of an error to end with
    fail_for         {text: such an error}, for the specs that hold that text
    deaf             whether SIGTERM is ignored
    chatter          extra progress events per step
    complain         what to write to stderr at the start
    burn             rounds of hashing per step: work for one CPU
    tells_steps      whether the result tells which steps were done, repeated ones too
    announce         say after each step that a checkpoint is there
    bulk             bytes of one more file, in the checkpoint and in the result
    model            a folder that becomes the model of the result

With --bridged the first stage is copied from there, or kept there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from extractor import files
from extractor.errors import ExtractorError

STAGES = ("bridge", "prune")
NUMBERS = ("nodes", "edges", "loss", "full_loss", "accuracy", "without", "random")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--bridged", type=Path)
    parser.add_argument("--guard", action="store_true")
    options = parser.parse_args()
    plan = {
        "steps": 5,
        "seconds": 0.02,
        "die_at": None,
        "fail": None,
        "fail_for": {},
        "deaf": False,
        "chatter": 0,
        "crash": None,
        "complain": None,
        "burn": 0,
        "tells_steps": True,
        "announce": False,
        "bulk": 0,
        "model": None,
    }
    plan |= json.loads(Path(os.environ["EXTRACT_FAKE_PLAN"]).read_text()) if os.environ.get("EXTRACT_FAKE_PLAN") else {}
    if options.guard:
        threading.Thread(target=guard, daemon=True).start()
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1) if not plan["deaf"] else None)
    try:
        return work(options, plan, asked)
    except ExtractorError as error:
        tell(event="error", type=type(error).__name__, message=str(error))
        return error.exit_code


def work(options: argparse.Namespace, plan: dict, asked: list[int]) -> int:
    spec, out = options.spec.read_text(), options.out
    work_folder = out / files.WORK
    work_folder.mkdir(parents=True, exist_ok=True)
    checkpoint = work_folder / "checkpoint.json"
    if (out / files.MANIFEST).exists():
        tell(event="done")
        return 0
    done = json.loads(checkpoint.read_text())["done"] if checkpoint.exists() else 0
    cut(work_folder / "steps.log", done)
    if options.bridged is not None and options.bridged.is_dir() and not done:
        done = plan["steps"]
        shutil.copyfile(options.bridged / "steps.log", work_folder / "steps.log")
    tell(event="note", message=f"threads {options.threads} pid {os.getpid()} from {done}")
    if plan["complain"]:
        print(plan["complain"], file=sys.stderr)
    if plan["crash"]:
        raise RuntimeError(plan["crash"])
    if plan["bulk"]:
        files.write_text(work_folder / "bulk.txt", "0123456789abcdef" * (plan["bulk"] // 16))
    steps = plan["steps"]
    for number, stage in enumerate(STAGES):
        tell(event="stage", stage=stage, index=number + 1, of=len(STAGES))
        for step in range(max(0, done - number * steps), steps):
            time.sleep(plan["seconds"])
            burn(plan["burn"])
            total = number * steps + step + 1
            for _ in range(1 + plan["chatter"]):
                tell(event="progress", stage=stage, step=step + 1, total=steps, metrics={"loss": 1 / total}, seconds_left=None)
            with files.explain_full_disk(work_folder / "steps.log"):
                with open(work_folder / "owners.log", "a") as file:
                    file.write(f"{total} {os.getpid()}\n")
                with open(work_folder / "steps.log", "a") as file:
                    file.write(f"{total}\n")
            files.write_json(checkpoint, {"done": total})
            if plan["announce"]:
                tell(event="checkpoint", stage=stage, step=step + 1)
            if plan["die_at"] is not None and total >= plan["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if asked:
                tell(event="checkpoint", stage=stage, step=step + 1)
                return 75
        if stage == "bridge" and options.bridged is not None and not options.bridged.is_dir():
            options.bridged.mkdir(parents=True)
            shutil.copyfile(work_folder / "steps.log", options.bridged / "steps.log")
            files.write_manifest(options.bridged)
    fail = next((error for text, error in plan["fail_for"].items() if text in spec), plan["fail"])
    if fail:
        name, message, code = fail
        tell(event="error", type=name, message=message)
        return code
    return finish(out, json.loads(spec), work_folder, plan["tells_steps"], plan["model"])


def cut(log: Path, done: int) -> None:
    """Drop the steps that the checkpoint does not hold: they are done again."""
    if log.exists() and len(lines := log.read_text().splitlines(keepends=True)) > done:
        files.write_text(log, "".join(lines[:done]))


def burn(rounds: int) -> None:
    block = bytes(4096)
    for _ in range(rounds):
        block = hashlib.sha256(block).digest() * 128


def finish(out: Path, spec: dict, work_folder: Path, tells_steps: bool, model: str | None) -> int:
    steps = (work_folder / "steps.log").read_text().split()
    if not tells_steps:
        steps = sorted(set(steps), key=int)
    if model:
        shutil.copytree(model, out / "model", dirs_exist_ok=True)
    else:
        (out / "model").mkdir(exist_ok=True)
        files.write_text(out / "model" / "config.json", "{}")
    if (work_folder / "bulk.txt").exists():
        files.write_text(out / "model" / "bulk.txt", (work_folder / "bulk.txt").read_text())
    if spec["kind"] == "train":
        files.write_json(out / "result.json", {"loss": 1.25, "steps": steps})
        return wrap_up(out)
    conditions = {"full": 0.01, "circuit": 0.14, "without_circuit": 4.5, "random": 2.1}
    rows = []
    for task in spec["tasks"]:
        if task == "lambda_func" and len(spec["tasks"]) > 1:
            rows.append({"task": task} | dict.fromkeys(NUMBERS) | {"meets_target": False, "why": "its answers are two tokens"})
            continue
        result = {"model": spec["model"], "task": task, "target_loss": 0.15, "seed": 0, "circuit": {"nodes": 12, "edges": 34}}
        result |= {"loss": conditions, "accuracy": conditions, "meets_target": True, "held_out_pairs": 64, "seconds": {}, "steps": steps}
        folder = out / "circuits" / str(task)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "result.json", result)
        files.write_text(folder / "report.html", "<p>a report</p>")
        files.write_text(folder / "circuit.svg", "<svg/>")
        numbers = dict(zip(NUMBERS, (12, 34, 0.14, 0.01, 0.96, 4.5, 2.1), strict=True))
        rows.append({"task": task} | numbers | {"meets_target": True, "why": None})
    if len(rows) > 1:
        files.write_json(out / "tasks.json", rows)
        files.write_text(out / "index.html", "<p>all tasks</p>")
    return wrap_up(out)


def wrap_up(out: Path) -> int:
    files.write_manifest(out)
    tell(event="done")
    return 0


def tell(**event: object) -> None:
    try:
        print(json.dumps(event), flush=True)
    except BrokenPipeError:  # like the real one: only the guard decides that nobody is left to work for
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - must outlive this function


def guard() -> None:
    while os.read(0, 1024):
        pass
    os._exit(70)


if __name__ == "__main__":
    sys.exit(main())
