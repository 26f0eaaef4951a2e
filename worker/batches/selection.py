"""Selection of a batch's models: accepts or rejects each with a reason. Torch-free. Reads only metadata of hub models, no weights.

A model is rejected if it is gated, private, missing or disabled; has no safetensors or no tokenizer; has an unsupported architecture, its
own code, quantized weights, a broken config or too many parameters; has an owner that is not allowed; or has the same weights as an
accepted model. An accepted model is pinned: on the hub to a commit, in a folder by the digest of its weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import cast

from extractor.data.task_choice import TaskChoice, check_expressible, refuse_if_none
from extractor.errors import ExtractorError, ModelNotFound, TaskNotExpressible, UnsupportedModel
from extractor.files import sha256
from extractor.jobs.bridge_choice import BridgeChoice
from extractor.jobs.cost.bridging import longest_prompt
from extractor.models import hub
from extractor.models.checks import CONFIG, Files, FolderFiles, check_kind, check_model, check_size, vocab_size_of, weights_of
from extractor.models.hub import HUB_ID
from extractor.models.reference import check_rest, find, is_here
from worker.batches.hub_search import Listed
from worker.batches.sources import ModelCandidate

EXAMINED_AT_ONCE = 8  # models
MAX_REASON_CHARACTERS = 500
_CHUNK = 16


@dataclass(frozen=True)
class Rules:
    """limit: maximum number of models. most_parameters: per model; `setting` is what changes it. owners: allowed on the hub, empty: all."""

    limit: int
    most_parameters: int
    setting: str
    owners: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelDecision:
    """The decision about one model.

    asked      its reference in the source            reference   its pinned reference; '' for a rejected model, with a `reason`
    digest     of its weights                         left_out    tasks that its tokenizer cannot express -> why; for local models only
    from_scratch    why its bridging starts from scratch where others start from the dense weights; '' where it does not
    batch           [sequences, tokens of each] of a step of its bridging, where the model has fewer positions than the preset's context
    """

    asked: str
    reference: str = ""
    parameters: int | None = None
    digest: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    from_scratch: str = ""
    batch: Sequence[int] = ()

    @property
    def is_taken(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Selection:
    """Decisions in the order of the candidates. is_complete: all candidates were examined before the limit was reached."""

    taken: tuple[ModelDecision, ...] = ()
    refused: tuple[ModelDecision, ...] = ()
    is_complete: bool = True


def select(
    candidates: Iterable[ModelCandidate],
    rules: Rules,
    tasks: TaskChoice,
    bridge: BridgeChoice,
    before: Selection | None = None,
    on_progress: Callable[[int, int], None] = lambda examined, taken: None,
) -> Selection:
    """Examine candidates in order until the limit is reached.

    before       an earlier selection for the same request; its accepted hub models stay pinned and are not examined again
    on_progress  called periodically with the numbers of examined and of accepted models
    Raises the errors of the candidates' source.
    """
    before = before or Selection()
    taken = [verdict for verdict in before.taken if not is_here(verdict.reference)]
    refused: dict[str, ModelDecision] = {}
    weights = {verdict.digest: verdict.asked for verdict in taken}
    fresh = _each_once(candidates, {verdict.asked for verdict in taken})
    with ThreadPoolExecutor(EXAMINED_AT_ONCE) as pool:
        while len(taken) < rules.limit and (chunk := list(islice(fresh, _CHUNK))):
            for verdict in pool.map(lambda candidate: judge(candidate, rules, tasks, bridge), chunk):
                if len(taken) == rules.limit:
                    break
                if verdict.is_taken and verdict.digest in weights:
                    verdict = _duplicate(verdict, weights[verdict.digest])
                if verdict.is_taken:
                    taken.append(verdict)
                    weights[verdict.digest] = verdict.asked
                else:
                    refused[verdict.asked] = verdict
            on_progress(len(taken) + len(refused), len(taken))
    seen = {verdict.asked for verdict in taken}
    earlier = {verdict.asked: verdict for verdict in before.refused if verdict.asked not in seen}
    return Selection(tuple(taken), tuple((earlier | refused).values()), len(taken) < rules.limit)


def judge(candidate: ModelCandidate, rules: Rules, tasks: TaskChoice, bridge: BridgeChoice) -> ModelDecision:
    """The decision about one model, independent of the others. Never raises."""
    try:
        _check_owner(candidate, rules)
        if candidate.listed is not None:
            _check_listed(candidate.listed, rules)
            found = hub.inspect(candidate.asked)
            reference, files = found.reference, cast("Files", found)
        else:
            reference, files = find(candidate.asked, "model")
        check_model(files)
        parameters = check_size(files, rules.most_parameters, rules.setting)
        check_rest(files, rules.most_parameters, rules.setting)
        config, notes = files.json(CONFIG), list[str]()
        settings = bridge.beside(config, False, notes.append)
        left_out = {} if files.folder is None else _left_out(files.folder, tasks, longest_prompt(config, settings))
        batch = bridge.batch_of(settings)
        digest = _digest(files) or reference
        return ModelDecision(candidate.asked, reference, parameters, digest, left_out, from_scratch="".join(notes), batch=batch)
    except ExtractorError as error:
        return ModelDecision(candidate.asked, reason=_one_line(str(error)))
    except Exception as error:  # uploaded models may be broken in any way, and one of them must not end the batch
        reason = f"model {candidate.asked!r} cannot be examined ({type(error).__name__}: {error})"
        return ModelDecision(candidate.asked, reason=_one_line(reason))


def _each_once(candidates: Iterable[ModelCandidate], seen: set[str]) -> Iterator[ModelCandidate]:
    for candidate in candidates:
        if candidate.asked not in seen:
            seen.add(candidate.asked)
            yield candidate


def _one_line(text: str) -> str:
    """A reason that is safe to print: it may quote a foreign config of any length, with escape codes."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text).split())
    return line if len(line) <= MAX_REASON_CHARACTERS else f"{line[:MAX_REASON_CHARACTERS]}..."


def _check_owner(candidate: ModelCandidate, rules: Rules) -> None:
    name = candidate.asked.partition("@")[0]
    on_hub = candidate.listed is not None or not (is_here(candidate.asked) or os.path.isdir(os.path.expanduser(candidate.asked)))
    if rules.owners and on_hub and name.partition("/")[0] not in rules.owners:
        raise UnsupportedModel(f"model {name!r} on the hub has an owner that is not allowed ({', '.join(sorted(rules.owners))}); see --org")


def _check_listed(listed: Listed, rules: Rules) -> None:
    """Reject a model by its listing alone, which saves a request to the hub. Raises ExtractorError."""
    if not HUB_ID.fullmatch(listed.name):
        raise ModelNotFound(f"model {listed.name!r} does not have a valid hub name")
    if listed.gated and not hub.token():
        raise hub.gated(listed.name)
    if listed.files is not None and (CONFIG not in listed.files or (listed.config or {}).get("model_type")):
        check_kind(listed)
    if listed.parameters is not None:
        check_size(listed, rules.most_parameters, rules.setting)


def _left_out(folder: Path, tasks: TaskChoice, longest: int | None) -> dict[str, str]:
    """The tasks that a local model's tokenizer cannot express in prompts of at most `longest` tokens, and why.

    Raises TaskNotExpressible if these are all tasks.
    """
    from extractor.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    vocab_size = vocab_size_of(folder)
    reasons = {}
    for task in tasks.tasks:
        try:
            check_expressible(task, tokenizer, longest, vocab_size)
        except TaskNotExpressible as error:
            reasons[task.name] = str(error)
    refuse_if_none(reasons, len(tasks.tasks))
    return reasons


def _digest(files: Files) -> str:
    """The identity of the weights: the sha256 of their file, or of the digests of several files; '' without files."""
    names = weights_of(files)
    if isinstance(files, hub.HubFiles):
        digests = [files.digests.get(name, files.reference) for name in names]
    else:
        digests = [sha256(cast("FolderFiles", files).path / name) for name in names]
    return "".join(digests) if len(digests) < 2 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _duplicate(verdict: ModelDecision, first: str) -> ModelDecision:
    return replace(
        verdict, reference="", reason=f"model {verdict.asked!r} is a duplicate of {first!r}: the same weights ({verdict.digest[:12]})"
    )
