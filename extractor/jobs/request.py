"""From what a user typed to a checked JobSpec. Torch-free and quick: everything that can be refused at once is refused here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Literal, cast

from extractor.data.sources import AUTO, NAMED_SOURCES, check_sources
from extractor.data.streams import check_dataset, pin_dataset
from extractor.data.task_choice import choose
from extractor.errors import SpecError
from extractor.files import read_json
from extractor.jobs.cost.bridging import longest_prompt
from extractor.models.checks import CONFIG
from extractor.models.reference import is_here, open_model, resolve_pair
from extractor.models.tokenizer import load_tokenizer, open_tokenizer, resolve_tokenizer
from extractor.pruning import algorithms
from extractor.spec.fields import CIRCUIT, Setting, changed, checked_spec, settings, split_changes
from extractor.spec.presets import PRESETS, bridge_spec, dense_baseline, prune_spec, train_spec
from extractor.spec.schema import CHANCE, CorpusSpec, DatasetSpec, JobSpec, PruneSpec

Preset = Literal["tiny", "small", "paper"]


def circuit_job(
    model: str,
    tasks: tuple[str, ...],
    *,
    adapter: str | None = None,
    subject: str = "twin",
    labels: str = "task",
    init: str | None = None,
    changes: Mapping[str, str] | None = None,
    preset: str = "tiny",
    target_loss: float = 0.15,
    seed: int = 0,
    corpus: tuple[str, ...] = (),
    datasets: tuple[DatasetSpec, ...] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> JobSpec:
    """A circuit job.

    model      a bundled name, folder or hub id of a model; of a LoRA adapter too, which stands for its base with itself on it
    tasks      names, JSONL files of pairs, or 'all': every task of tasks/ that the tokenizer can express
    adapter    a folder or hub id of a LoRA on `model`, whatever base its own config names
    subject    of a dense model: 'twin', the sparse model it is bridged to; 'dense', it itself
    labels     'task': the right answer is the task's; 'model': it is what the given model answers, right or wrong
    init       'scratch' or 'dense': where the sparse model starts that a dense one is bridged to; None: the preset's
    changes    dotted field -> text, over the preset; `circuit_settings` lists them
    corpus     names sources ('stdlib', 'generated', 'prose' or paths); with none and no datasets the worker takes the kind the model knows
    datasets   Hugging Face datasets, pinned and looked into here
    tell       is given a line for each task of 'all' that is left out

    Raises UnknownTask, NotFound, ModelNotFound, UnsupportedModel, BrokenArtifact, TaskNotExpressible, SpecError. The tokenizer is the
    base's. A hub model's is checked by the worker, which downloads it, and so is whether an adapter fits.
    """
    if not tasks:
        raise SpecError("a circuit job needs a task; `extract tasks` lists them")
    wanted, chosen = split_changes(changes or {}, CIRCUIT), choose(tasks)
    if labels not in ("task", "model"):
        raise SpecError(f"labels {labels!r} is unknown; choose task or model")
    if subject not in ("twin", "dense"):
        raise SpecError(f"subject {subject!r} is unknown; choose twin or dense")
    reference, tuned = resolve_pair(model, adapter)
    bridge = changed(bridge_spec(preset, init), wanted["bridge"], "bridge.")
    if is_here(reference):
        folder = open_model(reference).path
        longest = longest_prompt(read_json(folder / CONFIG), bridge) if chosen.files else None
        chosen = chosen.under(load_tokenizer(folder), longest, tell)
    return JobSpec(
        kind="circuit",
        model=reference,
        adapter=tuned,
        tasks=chosen.names,
        task_files=chosen.files,
        subject=cast("Literal['twin', 'dense']", subject),
        labels=cast("Literal['task', 'model']", labels),
        target_loss=_below_chance(target_loss),
        seed=seed,
        preset=_preset(preset),
        corpus=_corpus(corpus, datasets, wanted["corpus"], CorpusSpec(sources=AUTO)),
        bridge=bridge,
        prune=_prune(preset, wanted["prune"]),
    )


def train_job(
    *,
    preset: str = "tiny",
    architecture: str = "sparse_gpt",
    dense: bool = False,
    match_loss: float | None = None,
    tasks: tuple[str, ...] = (),
    target_loss: float = 0.15,
    changes: Mapping[str, str] | None = None,
    tokenizer: str | None = None,
    tensorboard: bool = False,
    seed: int = 0,
    corpus: tuple[str, ...] = (),
    datasets: tuple[DatasetSpec, ...] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> JobSpec:
    """A training job: a sparse model from scratch, its dense baseline (`dense`), or a dense GPT-2 (`architecture='gpt2'`).

    match_loss   nats a token on held-out text: search the smallest width that reaches it
    tasks        whose circuits are found in the trained model, to `target_loss` nats; named as those of `circuit_job`
    changes      dotted field -> text, over the preset; `extractor.spec.fields` lists them
    tokenizer    a model whose tokenizer is taken instead of one trained on the corpus
    datasets     Hugging Face datasets, pinned and looked into here; with them and no `corpus`, the default two sources are left out
    tell         is given a line for each task of 'all' that is left out

    Raises SpecError, UnknownTask, TaskNotExpressible, NotFound, ModelNotFound, UnsupportedModel, BrokenArtifact.
    """
    checked, wanted = _preset(preset), split_changes(changes or {})
    _check_kind(architecture, dense, match_loss, tasks, wanted)
    train = changed(train_spec(checked, architecture), wanted[""])
    if dense:
        train = changed(dense_baseline(train), wanted[""])  # once more: what was asked for goes before what the baseline would choose
    update = {
        "tokenizer": None if tokenizer is None else resolve_tokenizer(tokenizer),
        "match_loss": match_loss,
        "tensorboard": tensorboard,
    }
    if tokenizer is not None and "vocab_size" in wanted[""]:
        raise SpecError("vocab_size is that of the tokenizer you give; leave one of the two out")
    chosen = choose(tasks)
    if tasks and update["tokenizer"] and "@" not in str(update["tokenizer"]):
        chosen = chosen.under(open_tokenizer(str(update["tokenizer"])), train.model.n_ctx, tell)
    return JobSpec(
        kind="train",
        tasks=chosen.names,
        task_files=chosen.files,
        target_loss=_below_chance(target_loss),
        seed=seed,
        preset=checked,
        corpus=_corpus(corpus, datasets, wanted["corpus"]),
        train=train.model_copy(update=update),
        prune=_prune(preset, wanted["prune"]) if tasks else None,
    )


def _check_kind(
    architecture: str, dense: bool, match_loss: float | None, tasks: tuple[str, ...], wanted: dict[str, dict[str, str]]
) -> None:
    if architecture not in ("sparse_gpt", "gpt2"):
        raise SpecError(f"architecture {architecture!r} is unknown; choose sparse_gpt or gpt2")
    if architecture == "gpt2":
        asked = {"--dense": dense, "--match": match_loss is not None, "--task": bool(tasks)}
        refused = [option for option, given in asked.items() if given]
        if refused:
            raise SpecError(
                f"{refused[0]} needs architecture sparse_gpt: a gpt2 is an ordinary dense model, not the baseline of a sparse one"
            )
    if match_loss is not None and not 0 < match_loss < float("inf"):
        raise SpecError(f"the loss to match must be a positive number of nats a token, not {match_loss}")
    sparse = [name for name in wanted[""] if name.startswith("sparsity.") or name == "model.activation_frac"]
    if dense and sparse:
        raise SpecError(f"a dense baseline has no sparsity; leave out {', '.join(sparse)}")
    if wanted["prune"] and not tasks:
        raise SpecError(f"prune.{next(iter(wanted['prune']))} shapes a circuit, and no task is asked for; name one with --task")


def train_settings(preset: str = "tiny", architecture: str = "sparse_gpt", dense: bool = False) -> list[Setting]:
    """Every field that `changes` may name, with the values this request would start from. Raises SpecError."""
    _check_kind(architecture, dense, None, (), split_changes({}))
    train = train_spec(_preset(preset), architecture)
    return settings({"": dense_baseline(train) if dense else train, "prune": prune_spec(preset), "corpus": CorpusSpec()})


def circuit_settings(preset: str = "tiny", init: str | None = None) -> list[Setting]:
    """Every field that `changes` of a circuit job may name, with the values this request would start from. Raises SpecError."""
    return settings({"bridge": bridge_spec(_preset(preset), init), "prune": prune_spec(preset), "corpus": CorpusSpec()})


def dataset(reference: str, *, config: str | None = None, revision: str | None = None, **fields: str | int) -> DatasetSpec:
    """The dataset that 'NAME[:CONFIG][@REVISION]' names: a folder or a hub id. `config` and `revision` hold where it gives none.

    fields   split, text_column, tokens
    Raises SpecError.
    """
    name = reference
    if not os.path.isdir(os.path.expanduser(reference)):
        name, _, own_revision = reference.partition("@")
        name, _, own_config = name.partition(":")
        config, revision = own_config or config, own_revision or revision
    if not name:
        raise SpecError(f"dataset {reference!r} has no name; write NAME, NAME:CONFIG or NAME:CONFIG@REVISION")
    return checked_spec(DatasetSpec, {"name": name, "config": config, "revision": revision, **fields})


def _prune(preset: str, wanted: dict[str, str]) -> PruneSpec:
    found = changed(prune_spec(preset), wanted, "prune.")
    if found.algorithm not in algorithms.names():
        raise SpecError(f"pruning algorithm {found.algorithm!r} is unknown; choose {', '.join(algorithms.names())}")
    return found


def _below_chance(loss: float) -> float:
    if not 0 < loss < CHANCE:
        raise SpecError(f"target loss {loss:g} nats: a circuit without nodes has {CHANCE:.3f}; choose between 0 and that")
    return loss


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise SpecError(f"preset {name!r} is unknown; choose {', '.join(PRESETS)}")
    return cast("Preset", name)


def _corpus(
    sources: tuple[str, ...],
    datasets: tuple[DatasetSpec, ...] = (),
    changes: Mapping[str, str] | None = None,
    default: CorpusSpec = CorpusSpec(),  # noqa: B008 - frozen
) -> CorpusSpec:
    if "" in sources:  # as a path it would be the folder we are in
        raise SpecError(f"corpus '' names nothing; write {', '.join(NAMED_SOURCES)}, or a folder, .txt, .py or .jsonl file")
    named = tuple(s if s in NAMED_SOURCES else os.path.realpath(os.path.expanduser(s)) for s in sources)
    pinned = tuple(pin_dataset(spec) for spec in datasets)
    for spec in pinned:
        check_dataset(spec)
    start = CorpusSpec(sources=named, datasets=pinned) if named or pinned else default
    found = changed(start, changes or {}, "corpus.")
    check_sources(found)
    return found
