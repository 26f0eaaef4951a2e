"""Small datasets as files, and their preparation in processes that may be killed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import ROOT

from extractor.data.programs import programs
from extractor.errors import ExtractorError, SpecError
from extractor.spec.schema import DatasetSpec

TEXTS = list(programs(400, 7))


def lines(texts: list, column: str = "text") -> bytes:
    return "".join(json.dumps({column: text, "n": n}) + "\n" for n, text in enumerate(texts)).encode()


def parquet(texts: list) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), file, row_group_size=20)
    return file.getvalue()


def save(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def programs_folder(folder: Path) -> Path:
    """All of TEXTS in three JSON-lines files."""
    return save(folder, {f"part-{i}.jsonl": lines(TEXTS[start:stop]) for i, (start, stop) in enumerate([(0, 150), (150, 300), (300, 400)])})


def local(folder: Path, **fields) -> DatasetSpec:
    return DatasetSpec(name=str(folder), **{"tokens": 10_000_000} | fields)


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


PREPARE = """
import sys, time
from pathlib import Path
from tokenizers import Tokenizer
from extractor.data import shards
from extractor.progress import Progress
from extractor.spec.schema import DatasetSpec
shards.SHARD_TOKENS, shards.BLOCK_DOCUMENTS = 5_000, 16
spec = DatasetSpec.model_validate_json(sys.argv[1])
def slowly(event):
    print(event, flush=True)
    time.sleep(float(sys.argv[4]))
progress = Progress(slowly, checkpoint_seconds=0.0, report_seconds=0.0)
shards.prepare_dataset(spec, Tokenizer.from_file(sys.argv[2]), 0, Path(sys.argv[3]), progress)
"""


def prepare_killed(spec: DatasetSpec, tokenizer_file: Path, cache: Path, environment: dict[str, str], kills: list[int]) -> Path:
    """Prepare in processes of which one after another is killed with SIGKILL after so many reports; the folder."""
    arguments = [sys.executable, "-c", PREPARE, spec.model_dump_json(), str(tokenizer_file), str(cache)]
    for reports in [*kills, None]:
        process = subprocess.Popen(
            [*arguments, "0" if reports is None else "0.02"], cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for seen, _ in enumerate(process.stdout, 1):
            if seen == reports:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stdout.close()
        assert process.wait() == (0 if reports is None else -signal.SIGKILL)
    (folder,) = [p for p in (cache / "datasets").iterdir() if p.is_dir()]
    return folder


def refused(call, kind: type[ExtractorError] = SpecError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)
