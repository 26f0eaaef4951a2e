"""A cache of bridged models: bridging is the longest stage, and many jobs need the same bridged model.

The address of a bridged model is a hash of everything it depends on. The folder of that name has the files of the bridge stage (model/ and
metrics.jsonl) and a manifest, written last. A job that copies them ends with the same files as the job that made them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from extractor import files
from extractor.data.build_corpus import dataset_facts, text_facts
from extractor.data.sources import AUTO
from extractor.errors import BrokenArtifact
from extractor.models.checks import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG
from extractor.models.reference import BUNDLED, JOB_MODEL, is_here, open_model
from extractor.models.tokenizer_files import read_tokenizer_files
from extractor.spec.schema import JobSpec
from tasks.base import task_names

METRICS = "metrics.jsonl"
_VERSION = 1  # of the folder's layout
_TOKENS = 2  # version of how tokenizers are read that are more than a plain tokenizer.json, or that nobody has seen yet
_AUTO = 2  # version of the choice of text for a model
_PACKAGES = ("extractor", "torch", "transformers", "peft", "tokenizers")


def address(spec: JobSpec, threads: int) -> str | None:
    """The address of a job's bridged model, 24 hex digits; None where the job bridges no model.

    threads: CPU threads of the engine, which change the rounding of sums. For a local model raises what `open_model` and
    `read_tokenizer_files` raise.
    """
    if spec.kind != "circuit" or spec.prunes_dense or spec.model is None or spec.bridge is None:
        return None
    if is_here(spec.model) and open_model(spec.model).is_sparse:
        return None
    corpus = [
        spec.corpus.model_dump(mode="json"),
        *([_AUTO] if spec.corpus.sources == AUTO else []),
        text_facts(spec.corpus),
        dataset_facts(spec.corpus.datasets),
    ]
    model = [_identity(spec.model, CONFIG, "*.safetensors", "tokenizer*"), *_tokens(spec.model)]
    adapter = _identity(spec.adapter, ADAPTER_CONFIG, ADAPTER_WEIGHTS) if spec.adapter else None
    names = [spec.model, spec.adapter]  # part of dense.json
    own = _own_tasks(spec) if spec.bridge.focus else []  # their prompts are part of the bridging
    facts = [
        _VERSION,
        [version(name) for name in _PACKAGES],
        names,
        model if len(model) > 1 else model[0],
        adapter,
        spec.seed,
        threads,
        corpus,
        spec.bridge.model_dump(mode="json"),
        *own,
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:24]


def _identity(reference: str, *patterns: str) -> str:
    """What identifies a model: the reference of a pinned hub model or a job's model, the digest of a folder's files."""
    if not is_here(reference) or JOB_MODEL.fullmatch(reference):
        return reference
    folder = Path(reference) if Path(reference).is_absolute() else BUNDLED / reference
    return files.digest(folder, *patterns)


def _own_tasks(spec: JobSpec) -> list:
    """The tasks of a job that are not those of tasks/: the digests of files, the names of installed ones."""
    digests = {file.name: file.sha256 for file in spec.task_files}
    return [[name, digests.get(name)] for name in sorted(set(spec.tasks) - set(task_names()))]


def _tokens(reference: str) -> list:
    """What the tokens of a model's texts depend on beside its tokenizer.json and tokenizer_config.json; [] for most folders."""
    if not is_here(reference):
        return [_TOKENS]
    digest = read_tokenizer_files(open_model(reference).path).identity
    return [] if digest is None else [_TOKENS, digest]


def load(kept: Path, out: Path) -> bool:
    """Copy a cached bridged model into a job's folder; False where it is missing. A damaged one is deleted. Raises DiskFull."""
    if not kept.is_dir():
        return False
    try:
        files.verify_manifest(kept)
    except BrokenArtifact:
        shutil.rmtree(kept, ignore_errors=True)
        return False
    with files.explain_full_disk(out / METRICS):
        if (kept / METRICS).is_file():
            shutil.copyfile(kept / METRICS, out / METRICS)
    with files.new_folder(out / "model") as folder:
        shutil.copytree(kept / "model", folder, dirs_exist_ok=True)
    return True


def store(out: Path, kept: Path) -> None:
    """Store the files of a finished bridge stage in the cache. A copy that another job stored meanwhile stays. Raises DiskFull, OSError."""
    mine = kept.with_name(f"{kept.name}-{os.getpid()}")
    with files.new_folder(mine) as folder:
        shutil.copytree(out / "model", folder / "model")
        if (out / METRICS).is_file():
            shutil.copyfile(out / METRICS, folder / METRICS)
        files.write_manifest(folder)
    try:
        os.rename(mine, kept)
    except OSError:
        shutil.rmtree(mine)
        if not kept.is_dir():
            raise
