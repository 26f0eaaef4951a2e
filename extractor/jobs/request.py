"""From a user's request to a checked JobSpec. Torch-free and quick: every check that needs no download of weights is made here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from extractor.data.sources import AUTO, NAMED_SOURCES, NO_DENSE_TO_WRITE, SELF, check_sources
from extractor.data.streams import check_dataset, pin_dataset
from extractor.data.task_choice import TaskChoice, choose
from extractor.errors import SpecError
from extractor.jobs.bridge_choice import BridgeChoice
from extractor.jobs.cost.bridging import longest_prompt
from extractor.models.checks import SPARSE_TYPE, vocab_size_of
from extractor.models.reference import resolve_given
from extractor.models.sparse_folder import check_sparse_folder
from extractor.models.tokenizer import load_tokenizer, open_tokenizer, resolve_tokenizer
from extractor.pruning import algorithms
from extractor.spec.fields import CIRCUIT, Setting, changed, checked_spec, settings, split_changes
from extractor.spec.presets import PRESETS, bridge_spec, dense_baseline, prune_spec, train_spec
from extractor.spec.schema import CHANCE, BridgeSpec, CorpusSpec, DatasetSpec, JobSpec, PruneSpec

Preset = Literal["tiny", "small", "paper"]
OnNote = Callable[[str], None]
SPARSE_ONLY = (  # fields of the model that a GPT-2 does not have
    *("activation", "activation_frac", "d_pos_emb", "added_positions", "sinks"),
    *("bigram", "bigram_top", "bigram_rank", "bigram_init"),
)


def _ignore(_note: str) -> None:
    pass


@dataclass(frozen=True)
class CircuitRequest:
    """A request for circuits of a model's tasks; `to_spec` checks it.

    model         a bundled name, a folder or a hub id, of a model or of a LoRA adapter (then also names its base)
    tasks         names, JSONL files of pairs, or 'all': every task of tasks/ that the tokenizer can express
    adapter       a folder or hub id of a LoRA on `model`, whatever base its own config names
    subject       what is pruned of a dense model: 'twin', a sparse model that is bridged to it; 'dense', the dense model itself
    labels        which answer is the right one: 'task', the task's; 'model', the given model's own
    strict        whether to find no circuit of a task that the dense model does not do, or on which its sparse model disagrees with it
    focus         whether prompts of tasks are part of every step of a bridging, as the preset says
    layers        'A-B': only these layers of a bridging become sparse, the others stay as the dense model has them; None: all
    init          where the sparse model of a bridging starts: 'scratch' or 'dense'; None: the preset's choice, 'scratch' where the weights
                  of this model cannot be the start
    changes       dotted field -> text, over the preset; `circuit_settings` lists the fields
    target_loss   nats per prompt
    corpus        'stdlib', 'generated', 'prose', 'self' or paths; without these and `datasets`, text that the model knows
    datasets      Hugging Face datasets
    """

    model: str
    tasks: tuple[str, ...]
    adapter: str | None = None
    subject: str = "twin"
    labels: str = "task"
    strict: bool = False
    focus: bool = True
    layers: str | None = None
    init: str | None = None
    changes: Mapping[str, str] | None = None
    preset: str = "tiny"
    target_loss: float = 0.15
    seed: int = 0
    corpus: tuple[str, ...] = ()
    datasets: tuple[DatasetSpec, ...] = ()

    def to_spec(self, on_note: OnNote = _ignore) -> JobSpec:
        """The checked spec, with models, adapters and datasets pinned.

        on_note receives a line for each task of 'all' that is left out, and where a bridging cannot start from the dense model's weights.
        A hub model's tokenizer is checked only by the worker, which downloads it; so is the fit of an adapter.
        Raises UnknownTask, NotFound, ModelNotFound, UnsupportedModel, BrokenArtifact, TaskNotExpressible, SpecError.
        """
        changes, chosen = self._checked()
        given = resolve_given(self.model, self.adapter)
        if SELF in self.corpus and given.config.get("model_type") == SPARSE_TYPE:
            raise SpecError(NO_DENSE_TO_WRITE.format(self.model))
        if self.layers is not None and given.config.get("model_type") == SPARSE_TYPE:
            raise SpecError(f"{self.model} is a sparse model, which is not bridged: leave out the layers ({self.layers})")
        prunes_dense = self.subject == "dense"
        bridge = self.bridge_choice(changes).beside(given.config, prunes_dense, on_note)
        if given.folder is not None:
            if given.config.get("model_type") == SPARSE_TYPE:
                check_sparse_folder(given.folder)
            longest = longest_prompt(given.config, bridge, prunes_dense) if chosen.files else None
            chosen = chosen.under(load_tokenizer(given.folder), longest, on_note, vocab_size_of(given.folder))
        return self._spec(given.model, given.adapter, chosen, bridge, changes, on_note)

    def template(self) -> JobSpec:
        """The checked spec with model and adapter as they were typed, which are not looked at. Raises UnknownTask, NotFound, SpecError."""
        changes, chosen = self._checked()
        return self._spec(self.model, self.adapter, chosen, self.bridge_choice(changes).preferred, changes, _ignore)

    def bridge_choice(self, changes: Mapping[str, Mapping[str, str]] | None = None) -> BridgeChoice:
        """The settings of the bridging, whatever the dense model is. Raises SpecError."""
        parts = self._changes() if changes is None else changes
        return BridgeChoice.of(_check_preset(self.preset), self.init, {**parts["bridge"], **({} if self.focus else {"focus": "0"})})

    def _checked(self) -> tuple[dict[str, dict[str, str]], TaskChoice]:
        """The changes by part of the job, and the tasks. Raises SpecError, UnknownTask, NotFound."""
        if not self.tasks:
            raise SpecError("a circuit job needs a task; `extract tasks` lists them")
        if isinstance(self.tasks, str):
            raise SpecError(f"tasks is the text {self.tasks!r}, not a sequence of names; write ({self.tasks!r},)")
        changes, chosen = self._changes(), choose(self.tasks)
        if self.labels not in ("task", "model"):
            raise SpecError(f"labels {self.labels!r} is unknown; choose task or model")
        if self.subject not in ("twin", "dense"):
            raise SpecError(f"subject {self.subject!r} is unknown; choose twin or dense")
        if self.subject == "dense" and self.strict:
            raise SpecError("a dense model is pruned itself, there is no sparse model to compare with it: leave out --strict or --dense")
        if not self.focus and (self.subject == "dense" or "focus" in changes["bridge"]):
            other = "--dense" if self.subject == "dense" else "bridge.focus"
            raise SpecError(f"--no-focus leaves the prompts of tasks out of a bridging, {other} has another wish: leave out one of the two")
        if self.subject == "dense" and (self.init is not None or changes["bridge"]):
            given = "the initial weights" if self.init is not None else f"bridge.{next(iter(changes['bridge']))}"
            raise SpecError(f"a dense model is pruned itself, without a bridging: leave out {given}, or leave out --dense")
        return changes, chosen

    def _changes(self) -> dict[str, dict[str, str]]:
        """The changes by part of the job. Raises SpecError."""
        found = split_changes(self.changes or {}, CIRCUIT)
        if self.layers is not None:
            if not isinstance(self.layers, str):
                raise SpecError(f"layers are {self.layers!r}, not a text; write 'A-B', such as '3-7'")
            if "layers" in found["bridge"]:
                raise SpecError(f"the layers are given twice, {self.layers} and {found['bridge']['layers']}: leave out one of the two")
            found["bridge"]["layers"] = self.layers
        return found

    def _spec(
        self,
        model: str,
        adapter: str | None,
        chosen: TaskChoice,
        bridge: BridgeSpec,
        changes: dict[str, dict[str, str]],
        on_note: OnNote,
    ) -> JobSpec:
        return JobSpec(
            kind="circuit",
            model=model,
            adapter=adapter,
            tasks=chosen.names,
            task_files=chosen.files,
            subject=cast("Literal['twin', 'dense']", self.subject),
            labels=cast("Literal['task', 'model']", self.labels),
            strict=self.strict,
            target_loss=_check_target(self.target_loss),
            seed=self.seed,
            preset=_check_preset(self.preset),
            corpus=_corpus(self.corpus, self.datasets, changes["corpus"], on_note, CorpusSpec(sources=AUTO)),
            bridge=bridge,
            prune=_prune(self.preset, changes["prune"]),
        )


@dataclass(frozen=True)
class TrainRequest:
    """A request to train a model from scratch; `to_spec` checks it.

    architecture   'sparse_gpt', or 'gpt2': an ordinary dense GPT-2
    dense          train the dense baseline of the sparse model instead
    match_loss     nats per token on held-out text: search the smallest width that reaches this loss
    tasks          tasks whose circuits are found in the trained model, to `target_loss` nats; named as in a `CircuitRequest`
    changes        dotted field -> text, over the preset; `train_settings` lists the fields
    tokenizer      a model whose tokenizer is used instead of a new one trained on the corpus
    tensorboard    also write event files
    corpus         as in a `CircuitRequest`; without these and `datasets`, the two default sources
    datasets       Hugging Face datasets
    """

    preset: str = "tiny"
    architecture: str = "sparse_gpt"
    dense: bool = False
    match_loss: float | None = None
    tasks: tuple[str, ...] = ()
    target_loss: float = 0.15
    changes: Mapping[str, str] | None = None
    tokenizer: str | None = None
    tensorboard: bool = False
    seed: int = 0
    corpus: tuple[str, ...] = ()
    datasets: tuple[DatasetSpec, ...] = ()

    def to_spec(self, on_note: OnNote = _ignore) -> JobSpec:
        """The checked spec, with tokenizer and datasets pinned. on_note receives a line for each task of 'all' that is left out.

        Raises SpecError, UnknownTask, TaskNotExpressible, NotFound, ModelNotFound, UnsupportedModel, BrokenArtifact.
        """
        preset, changes = _check_preset(self.preset), split_changes(self.changes or {})
        self._check(changes)
        train = changed(train_spec(preset, self.architecture), changes[""])
        if self.dense:
            train = changed(dense_baseline(train), changes[""])  # again: the user's changes override the baseline's own values
        tokenizer = None if self.tokenizer is None else resolve_tokenizer(self.tokenizer)
        if tokenizer is not None and "vocab_size" in changes[""]:
            raise SpecError("the given tokenizer determines vocab_size; leave out one of the two")
        chosen = choose(self.tasks)
        if self.tasks and tokenizer and "@" not in tokenizer:
            chosen = chosen.under(open_tokenizer(tokenizer), train.model.n_ctx, on_note)
        update = {"tokenizer": tokenizer, "match_loss": self.match_loss, "tensorboard": self.tensorboard}
        return JobSpec(
            kind="train",
            tasks=chosen.names,
            task_files=chosen.files,
            target_loss=_check_target(self.target_loss),
            seed=self.seed,
            preset=preset,
            corpus=_corpus(self.corpus, self.datasets, changes["corpus"], on_note),
            train=train.model_copy(update=update),
            prune=_prune(self.preset, changes["prune"]) if self.tasks else None,
        )

    def _check(self, changes: dict[str, dict[str, str]]) -> None:
        """Raise SpecError for options that contradict each other."""
        if SELF in self.corpus:
            raise SpecError(NO_DENSE_TO_WRITE.format("a model that is still to be trained"))
        if self.architecture not in ("sparse_gpt", "gpt2"):
            raise SpecError(f"architecture {self.architecture!r} is unknown; choose sparse_gpt or gpt2")
        if self.architecture == "gpt2":
            options = {"--dense": self.dense, "--match": self.match_loss is not None, "--task": bool(self.tasks)}
            given = [option for option, is_given in options.items() if is_given]
            if given:
                raise SpecError(
                    f"{given[0]} needs architecture sparse_gpt: a gpt2 is an ordinary dense model, not the baseline of a sparse one"
                )
            sparse_only = [name for name in changes[""] if name.startswith("sparsity.") or name.removeprefix("model.") in SPARSE_ONLY]
            if sparse_only:
                raise SpecError(f"a gpt2 has no {sparse_only[0]}; leave it out, or choose architecture sparse_gpt")
        if self.match_loss is not None and not 0 < self.match_loss < float("inf"):
            raise SpecError(f"the loss to match must be a positive number of nats per token, not {self.match_loss}")
        sparse = [name for name in changes[""] if name.startswith("sparsity.") or name == "model.activation_frac"]
        if self.dense and sparse:
            raise SpecError(f"a dense baseline has no sparsity; leave out {', '.join(sparse)}")
        if changes["prune"] and not self.tasks:
            raise SpecError(f"prune.{next(iter(changes['prune']))} is for circuits, but the job has no task; add one with --task")


def circuit_job(model: str, tasks: tuple[str, ...], *, tell: OnNote = _ignore, **options: Any) -> JobSpec:
    """The spec of a circuit job: `CircuitRequest(model, tasks, **options).to_spec(tell)`, which see."""
    return CircuitRequest(model, tasks, **options).to_spec(tell)


def train_job(*, tell: OnNote = _ignore, **options: Any) -> JobSpec:
    """The spec of a train job: `TrainRequest(**options).to_spec(tell)`, which see."""
    return TrainRequest(**options).to_spec(tell)


def train_settings(preset: str = "tiny", architecture: str = "sparse_gpt", dense: bool = False) -> list[Setting]:
    """Every field that the `changes` of a `TrainRequest` may name, with its value before any change. Raises SpecError."""
    TrainRequest(architecture=architecture, dense=dense)._check(split_changes({}))
    train = train_spec(_check_preset(preset), architecture)
    return settings({"": dense_baseline(train) if dense else train, "prune": prune_spec(preset), "corpus": CorpusSpec()})


def circuit_settings(preset: str = "tiny", init: str | None = None) -> list[Setting]:
    """Every field that the `changes` of a `CircuitRequest` may name, with its value before any change. Raises SpecError."""
    return settings({"bridge": bridge_spec(_check_preset(preset), init), "prune": prune_spec(preset), "corpus": CorpusSpec()})


def dataset(reference: str, *, config: str | None = None, revision: str | None = None, **fields: str | int) -> DatasetSpec:
    """The dataset that 'NAME[:CONFIG][@REVISION]' names, a folder or a hub id. Raises SpecError.

    config, revision   used where the reference has none
    fields             split, text_column, tokens
    """
    name = reference
    if not os.path.isdir(os.path.expanduser(reference)):
        name, _, own_revision = reference.partition("@")
        name, _, own_config = name.partition(":")
        config, revision = own_config or config, own_revision or revision
    if not name:
        raise SpecError(f"dataset {reference!r} has no name; write NAME, NAME:CONFIG or NAME:CONFIG@REVISION")
    return checked_spec(DatasetSpec, {"name": name, "config": config, "revision": revision, **fields})


def _prune(preset: str, changes: dict[str, str]) -> PruneSpec:
    spec = changed(prune_spec(preset), changes, "prune.")
    algorithms.check(spec.algorithm, spec.granularity)
    return spec


def _check_target(loss: float) -> float:
    if not 0 < loss < CHANCE:
        limits = f"0 and {CHANCE:.3f}, the loss of a circuit without nodes"
        raise SpecError(f"target loss {loss:g} nats is not between {limits}; choose a loss in between")
    return loss


def _check_preset(name: str) -> Preset:
    if name not in PRESETS:
        raise SpecError(f"preset {name!r} is unknown; choose {', '.join(PRESETS)}")
    return cast("Preset", name)


def _corpus(
    sources: tuple[str, ...],
    datasets: tuple[DatasetSpec, ...],
    changes: Mapping[str, str],
    on_note: OnNote,
    default: CorpusSpec = CorpusSpec(),  # noqa: B008 - frozen
) -> CorpusSpec:
    if "" in sources:  # as a path this is the current folder
        raise SpecError(f"corpus '' is empty; write {', '.join(NAMED_SOURCES)}, or a folder, .txt, .py or .jsonl file")
    named = tuple(s if s in (*NAMED_SOURCES, SELF) else os.path.realpath(os.path.expanduser(s)) for s in sources)
    twice = next((s for s in named if named.count(s) > 1), None)
    if twice is not None:
        raise SpecError(f"corpus {twice!r} is given twice; name every source once")
    pinned = tuple(pin_dataset(dataset) for dataset in datasets)
    for one in pinned:
        check_dataset(one, on_note)
    start = CorpusSpec(sources=named, datasets=pinned) if named or pinned else default
    spec = changed(start, changes, "corpus.")
    if "generated_programs" in changes and spec.sources != AUTO and "generated" not in spec.sources:
        raise SpecError("corpus.generated_programs has no effect without the corpus 'generated'; add --corpus generated or leave it out")
    check_sources(spec)
    return spec
