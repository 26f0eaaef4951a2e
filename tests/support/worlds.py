"""Small worlds the tests share: a tokenizer and a corpus of generated programs, a random GPT-2, a place for a loop to save in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

from extractor.data.build_corpus import build_corpus
from extractor.data.corpus import Corpus
from extractor.data.programs import programs
from extractor.models.tokenizer import save_tokenizer, train_tokenizer
from extractor.progress import Progress
from extractor.spec.schema import CorpusSpec
from extractor.training.checkpoints import Checkpoints, MetricsLog
from extractor.training.loop import LoopEnvironment

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 600
CORPUS = CorpusSpec(sources=("generated",), generated_programs=300)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """EXTRACT_CACHE_DIR, of this test session alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXTRACT_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tokenizer():
    """A BPE of 600 entries that writes the answers of nearly every task as single tokens."""
    return train_tokenizer(programs(300, 0), VOCABULARY)


@pytest.fixture(scope="session")
def corpus(tokenizer, cache: Path) -> Corpus:
    """300 generated programs."""
    return build_corpus(CORPUS, tokenizer, cache)


def random_gpt2(*, n_layer: int = 2, vocab_size: int = VOCABULARY, seed: int = 0, attention: str = "sdpa", scale: float = 0.3):
    """A GPT2LMHeadModel of width 32 with weights large enough that its logits say something."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=64,
        n_embd=32,
        n_layer=n_layer,
        n_head=2,
        initializer_range=scale,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_bridge(**changes):
    """A BridgeSpec that trains in a second: width 16, half of all weights, five sequences a step."""
    from extractor.spec.schema import BridgeSpec, OptimSpec, SparseModelSpec, SparsitySpec

    return BridgeSpec(
        model=SparseModelSpec(d_model=16, d_head=8, mlp_ratio=2, n_ctx=16),
        sparsity=SparsitySpec(weight_frac=0.5, embedding_frac=0.5, bias_frac=0.5),
        optim=OptimSpec(steps=30, batch=5, context=16, lr=0.1),
        kl_share=1.0,
        over_sites="sum",
    ).model_copy(update=changes)


def tiny_pair(spec=None, dense=None):
    """A random GPT-2 and an untrained sparse model, bridged, with bridges large enough that every path differs."""
    from extractor.bridges.pair import new_pair
    from extractor.bridges.tuner import site_parameters
    from extractor.models.load import DenseModel

    model = (dense or random_gpt2()).requires_grad_(False)
    found = new_pair(DenseModel(model, "tiny", {"model": "tiny"}), spec or tiny_bridge(), 0)
    with torch.no_grad():
        for parameter in site_parameters(found.sites):
            parameter.mul_(5).add_(0.01)
    return found


def paths(pair, ids):
    """Per site the exact logits of both single-crossing paths: [(dense then sparse, sparse then dense), ...]."""
    from extractor.bridges.faithfulness import path_logits
    from extractor.bridges.losses import sparse_residuals
    from extractor.models.dense.base import residuals

    with torch.no_grad():
        found = list(path_logits(pair, ids, residuals(pair.dense, ids), sparse_residuals(pair, ids)))
    return list(zip(found[::2], found[1::2], strict=True))


@pytest.fixture
def gpt2():
    """A fresh tiny GPT-2: two layers, width 32, the shared vocabulary."""
    return random_gpt2()


@pytest.fixture(scope="session")
def gpt2_folder(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GPT-2 and its tokenizer, saved. Tests that change files work on a copy."""
    folder = tmp_path_factory.mktemp("gpt2")
    random_gpt2().save_pretrained(folder)
    save_tokenizer(tokenizer, folder, 64)
    return folder


def environment(folder: Path, progress: Progress | None = None, stage: str = "train") -> LoopEnvironment:
    """Where a loop saves (`.work`), logs (`metrics.jsonl`) and reports, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return LoopEnvironment(Checkpoints(folder / ".work", stage), MetricsLog(folder / "metrics.jsonl"), progress or Progress())


@pytest.fixture
def env(tmp_path: Path) -> LoopEnvironment:
    return environment(tmp_path / "loop")


def stop_after(steps: int) -> Progress:
    """A listener that asks for a stop when it has been asked `steps` times whether to save."""
    asked = iter(range(steps))
    stopping: list[bool] = []

    class Impatient(Progress):
        def checkpoint_due(self) -> bool:
            if next(asked, None) is None:
                stopping.append(True)
            return super().checkpoint_due()

    return Impatient(should_stop=lambda: bool(stopping))


def python(
    code: str, *arguments: str, cwd: Path | None = None, isolated: bool = False, env: dict[str, str] | None = None, expect: int = 0
) -> str:
    """Standard output of a fresh interpreter; isolated ones do not see this project. Fails unless it exits with `expect`."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"} | (env or {})
    if isolated:
        code = f"import sys; sys.path[:] = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n{_NO_FINDERS}\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd or (Path("/") if isolated else ROOT), env=environ, capture_output=True, text=True
    )
    assert done.returncode == expect, done.stderr
    return done.stdout


_NO_FINDERS = """
sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]
import importlib.util
assert importlib.util.find_spec('extractor') is None, 'the project is still importable'
"""


@pytest.fixture
def fresh_python() -> Callable[..., str]:
    return python
