"""One training, in this process or in one process for each device (torch.distributed.run).

The engine prepares the corpus, starts the training processes, forwards the events of the main process (rank 0), and reads the trained
weights from a file. To stop, it creates a file that the main process checks for, so that all processes save and exit after the same step.
Training processes whose engine has ended exit within a second. The last event and the weights file decide how a training ended, not the
exit code: torch's launcher sometimes reports a failure after a training that finished.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from extractor import errors, files
from extractor.data.corpus import Corpus
from extractor.progress import Progress, Stopped
from extractor.spec.schema import TrainSpec
from extractor.training.checkpoints import Checkpoints, MetricsLog, TrainState
from extractor.training.loop import LoopEnvironment, set_up_torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENGINE = "EXTRACT_ENGINE_PID"
EXIT_DELAY_SECONDS = 10  # of a process that met an error, unless it is the main one


def train_model(spec: TrainSpec, corpus: Corpus, vocab_size: int, seed: int, env: LoopEnvironment) -> PreTrainedModel:
    """Train in `process_count` processes, but no more than a batch has rows; the model is in eval mode. Raises what `run_loop` raises."""
    count = min(process_count(), spec.optim.batch)
    if count > 1:
        return _train_in_processes(count, spec, corpus, vocab_size, seed, env)
    return _train_here(spec, corpus, vocab_size, seed, env)


def _train_here(spec: TrainSpec, corpus: Corpus, vocab_size: int, seed: int, env: LoopEnvironment) -> PreTrainedModel:
    if spec.architecture == "gpt2":
        from extractor.training.train_gpt2 import train_gpt2

        return train_gpt2(spec, corpus, vocab_size, seed, env)
    from extractor.training.train_sparse import train_sparse

    return train_sparse(spec, corpus, vocab_size, seed, env)


def process_count() -> int:
    """EXTRACT_PROCESSES, else the number of GPUs that this process may use, at least one. Raises SpecError."""
    text = os.environ.get("EXTRACT_PROCESSES", "")
    if not text:
        import torch

        return max(1, torch.cuda.device_count())
    if not text.isdecimal() or int(text) < 1:
        raise errors.SpecError(f"EXTRACT_PROCESSES={text!r} is not a whole number from 1; correct it or unset it")
    return int(text)


def new_model(spec: TrainSpec, vocab_size: int, seed: int) -> PreTrainedModel:
    """The untrained model of a spec."""
    if spec.architecture == "gpt2":
        from extractor.training.train_gpt2 import new_gpt2

        return new_gpt2(spec, vocab_size, seed)
    from extractor.training.train_sparse import new_sparse_gpt

    return new_sparse_gpt(spec.model, spec.model.n_layer, vocab_size, seed)


def _train_in_processes(count: int, spec: TrainSpec, corpus: Corpus, vocab_size: int, seed: int, env: LoopEnvironment) -> PreTrainedModel:
    import torch

    stage, work = env.checkpoints.stage, env.checkpoints.folder
    folder = work / f"{stage}-ranks"  # one process is one rank
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("stop", "trained.safetensors"):
        (folder / name).unlink(missing_ok=True)
    request = {
        "spec": spec.model_dump(mode="json"),
        "corpus": [str(folder) for folder in corpus.folders],
        "vocab_size": vocab_size,
        "seed": seed,
        "stage": stage,
        "work": str(work),
        "metrics": str(env.log.path) if env.log.path else None,
        "board": str(env.board) if env.board else None,
        "threads": max(1, torch.get_num_threads() // count),
        "checkpoint_seconds": env.progress.checkpoint_seconds,
    }
    files.write_json(folder / "request.json", request)
    _launch(count, folder, env.progress)
    model = new_model(spec, vocab_size, seed)
    TrainState({"model": model}, []).restore(files.read_tensors(folder / "trained.safetensors"))
    return model.eval()


def _launch(count: int, folder: Path, progress: Progress) -> None:
    """Run the training processes until they end. Raises Stopped, or the error that the main process reported."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "extractor.training.distributed", str(folder / "request.json")]
    environment = os.environ | {ENGINE: str(os.getpid()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment) as process:
        done = threading.Event()
        threading.Thread(target=_forward_stop, args=(progress, folder / "stop", done), daemon=True).start()
        try:
            last = _forward_events(process.stdout, progress)
        except BaseException:
            process.kill()
            raise
        finally:
            done.set()
    if last.get("event") == "stopped":
        raise Stopped
    if last.get("event") == "error":
        raise errors.by_name(str(last["type"]), str(last["message"]))
    if last.get("event") != "done" or not (folder / "trained.safetensors").is_file():
        raise errors.ExtractorError(f"a training process died (exit code {process.returncode}); its last output is in the job's log")


def _forward_events(stream: IO[str] | None, progress: Progress) -> dict[str, Any]:
    """Forward the events of the main process; returns its last one that reports an end, {} where there is none."""
    assert stream is not None
    last: dict[str, Any] = {}
    for line in stream:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:  # output of a library
            sys.stderr.write(line)
            continue
        if event["event"] in ("stopped", "error", "done"):
            last = event
        else:
            progress.on_event(event)
    return last


def _forward_stop(progress: Progress, path: Path, done: threading.Event) -> None:
    while not done.wait(0.1):
        if progress.should_stop():
            path.touch()
            return


# Below: what runs in each training process.


def main(request_path: str) -> int:
    """Train as one of the processes that `_launch` started."""
    from extractor.progress import emit

    path = Path(request_path)
    request = files.read_json(path)
    threading.Thread(target=_exit_with_engine, args=(int(os.environ[ENGINE]),), daemon=True).start()
    set_up_torch(request["threads"])
    is_main = os.environ["RANK"] == "0"
    report = emit if is_main else lambda _event: None
    try:
        state = _train(request, path.with_name("stop"), is_main)
        if is_main:
            files.write_tensors(path.with_name("trained.safetensors"), state)
        report({"event": "done"})
    except Stopped:
        report({"event": "stopped"})
    except errors.ExtractorError as error:
        report({"event": "error", "type": type(error).__name__, "message": str(error)})
        # No barrier: the other processes may wait for this one, and the launcher ends them. The main process must report before that.
        time.sleep(0 if is_main else EXIT_DELAY_SECONDS)
        os._exit(1)
    _leave_group()
    return 0


def _train(request: dict[str, Any], stop: Path, is_main: bool) -> dict[str, Any]:
    from extractor.progress import emit

    stage = request["stage"]
    progress = Progress(checkpoint_seconds=math.inf)
    if is_main:
        progress = Progress(emit, stop.exists, checkpoint_seconds=request["checkpoint_seconds"])
        progress.resume_stage(stage)
    metrics = Path(request["metrics"]) if is_main and request["metrics"] else None
    board = Path(request["board"]) if request["board"] else None
    env = LoopEnvironment(Checkpoints(Path(request["work"]), stage), MetricsLog(metrics), progress, board)
    spec = TrainSpec.model_validate(request["spec"])
    model = _train_here(spec, Corpus(*map(Path, request["corpus"])), request["vocab_size"], request["seed"], env)
    return TrainState({"model": model}, []).tensors()


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _exit_with_engine(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
