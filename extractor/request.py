"""From what a user typed to a checked JobSpec. Torch-free and quick: everything that can be refused at once is refused here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from extractor.corpus import check_sources
from extractor.errors import SpecError
from extractor.models import open_model, resolve
from extractor.objective import express, get_task
from extractor.presets import PRESETS, bridge_spec, prune_spec, train_spec
from extractor.specs import CorpusSpec, JobSpec
from extractor.tokenizer import load_tokenizer

Preset = Literal["tiny", "small", "paper"]


def circuit_job(
    model: str, task: str, *, preset: str = "tiny", target_loss: float = 0.15, seed: int = 0, corpus: tuple[str, ...] = ()
) -> JobSpec:
    """A circuit job. `corpus` names sources ('stdlib', 'generated' or paths); empty means the default two.

    Raises UnknownTask, ModelNotFound, UnsupportedModel, TaskNotExpressible, SpecError. A hub model's tokenizer is checked by the
    worker, which downloads it.
    """
    found = get_task(task)
    reference = resolve(model)
    if "@" not in reference:
        express(found, load_tokenizer(open_model(reference).path))
    return JobSpec(
        kind="circuit",
        model=reference,
        task=found.name,
        target_loss=target_loss,
        seed=seed,
        preset=_preset(preset),
        corpus=_corpus(corpus),
        bridge=bridge_spec(preset),
        prune=prune_spec(preset),
    )


def train_job(*, preset: str = "tiny", architecture: str = "sparse_gpt", seed: int = 0, corpus: tuple[str, ...] = ()) -> JobSpec:
    """A training job: a sparse model from scratch, or a dense GPT-2. Raises SpecError."""
    if architecture not in ("sparse_gpt", "gpt2"):
        raise SpecError(f"architecture {architecture!r} is unknown; choose sparse_gpt or gpt2")
    checked = _preset(preset)
    return JobSpec(kind="train", seed=seed, preset=checked, corpus=_corpus(corpus), train=train_spec(checked, architecture))


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise SpecError(f"preset {name!r} is unknown; choose {', '.join(PRESETS)}")
    return cast(Preset, name)


def _corpus(sources: tuple[str, ...]) -> CorpusSpec:
    spec = CorpusSpec()
    if sources:
        named = tuple(s if s in ("stdlib", "generated") else str(Path(s).expanduser().resolve()) for s in sources)
        spec = spec.model_copy(update={"sources": named})
    check_sources(spec)
    return spec
