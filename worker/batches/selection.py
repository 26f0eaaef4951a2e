"""Which models a batch takes, and why it refuses the others. Torch-free; of the hub's models only metadata is read, nothing is downloaded.

A model is refused that is gated, private, missing or disabled, has no safetensors, no tokenizer, an architecture we cannot work on, code
of its own, quantized weights, a broken config or too many parameters, is of an owner who is not allowed, or has the same weights as one
that was taken. One that is taken is pinned: on the hub to a commit, in a folder by the digest of its weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import cast

from extractor.data.task_choice import TaskChoice, check_expressible, refuse_if_none
from extractor.errors import ExtractorError, ModelNotFound, TaskNotExpressible, UnsupportedModel
from extractor.files import read_json, sha256
from extractor.jobs.cost.bridging import longest_prompt
from extractor.models import hub
from extractor.models.checks import CONFIG, Files, FolderFiles, check_model, check_size, weight_files
from extractor.models.hub import HUB_ID
from extractor.models.reference import check_rest, find, is_here
from extractor.spec.schema import BridgeSpec
from tasks.files import FileTask
from worker.batches.hub_search import Listed
from worker.batches.sources import ModelCandidate

LOOKERS = 8  # models looked into at once
MOST_LETTERS = 500  # of a reason
_CHUNK = 16


@dataclass(frozen=True)
class Rules:
    """limit: most models taken. most_parameters: of each, `setting` being what changes it. owners: allowed on the hub; none: all are."""

    limit: int
    most_parameters: int
    setting: str
    owners: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelDecision:
    """What was found of one model.

    asked      the reference it was named by          reference   the pinned one; '' of a model that is refused, `reason` says why
    digest     of its weights                         left_out    tasks that its tokenizer cannot express -> why; known of local models
    """

    asked: str
    reference: str = ""
    parameters: int | None = None
    digest: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_taken(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Selection:
    """Verdicts in the order of the candidates. is_complete: whether all were looked at, the limit not being reached before."""

    taken: tuple[ModelDecision, ...] = ()
    refused: tuple[ModelDecision, ...] = ()
    is_complete: bool = True


def select(
    candidates: Iterable[ModelCandidate],
    rules: Rules,
    tasks: TaskChoice,
    bridge: BridgeSpec,
    before: Selection | None = None,
    on_look: Callable[[int, int], None] = lambda looked, taken: None,
) -> Selection:
    """Look at candidates in their order until enough are taken.

    before   an earlier selection for the same request: the hub's models that it took stay pinned as they are and are not looked at again
    on_look  is told now and then how many were looked at, and how many are taken
    Raises what the candidates' source raises.
    """
    before = before or Selection()
    taken = [verdict for verdict in before.taken if not is_here(verdict.reference)]
    refused: dict[str, ModelDecision] = {}
    weights = {verdict.digest: verdict.asked for verdict in taken}
    fresh = _each_once(candidates, {verdict.asked for verdict in taken})
    with ThreadPoolExecutor(LOOKERS) as pool:
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
            on_look(len(taken) + len(refused), len(taken))
    seen = {verdict.asked for verdict in taken}
    earlier = {verdict.asked: verdict for verdict in before.refused if verdict.asked not in seen}
    return Selection(tuple(taken), tuple((earlier | refused).values()), len(taken) < rules.limit)


def judge(candidate: ModelCandidate, rules: Rules, tasks: TaskChoice, bridge: BridgeSpec) -> ModelDecision:
    """What is to be said of one model by itself; never raises."""
    try:
        _check_owner(candidate, rules)
        if candidate.listed is not None:
            _check_listed(candidate.listed, rules)
            looked = hub.inspect(candidate.asked)
            reference, files = looked.reference, cast("Files", looked)
        else:
            reference, files = find(candidate.asked, "model")
        check_model(files)
        parameters = check_size(files, rules.most_parameters, rules.setting)
        check_rest(files)
        left_out = _left_out(files.path, tasks, bridge) if isinstance(files, FolderFiles) else {}
        return ModelDecision(candidate.asked, reference, parameters, _digest(files) or reference, left_out)
    except ExtractorError as error:
        return ModelDecision(candidate.asked, reason=_one_line(str(error)))
    except Exception as error:  # what strangers uploaded may be broken in any way, and one model must not end the batch
        reason = f"model {candidate.asked!r} cannot be looked into ({type(error).__name__}: {error})"
        return ModelDecision(candidate.asked, reason=_one_line(reason))


def _each_once(candidates: Iterable[ModelCandidate], seen: set[str]) -> Iterator[ModelCandidate]:
    for candidate in candidates:
        if candidate.asked not in seen:
            seen.add(candidate.asked)
            yield candidate


def _one_line(text: str) -> str:
    """A reason fit for a terminal: it may quote a stranger's config at any length, escape codes and all."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text).split())
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]}..."


def _check_owner(candidate: ModelCandidate, rules: Rules) -> None:
    name = candidate.asked.partition("@")[0]
    on_hub = candidate.listed is not None or not (is_here(candidate.asked) or os.path.isdir(os.path.expanduser(candidate.asked)))
    if rules.owners and on_hub and name.partition("/")[0] not in rules.owners:
        raise UnsupportedModel(f"model {name!r} on the hub is of none of the owners allowed ({', '.join(sorted(rules.owners))}); see --org")


def _check_listed(listed: Listed, rules: Rules) -> None:
    """Refuse by the listing alone what needs no closer look: the hub is asked about few models only. Raises ExtractorError."""
    if not HUB_ID.fullmatch(listed.name):
        raise ModelNotFound(f"model {listed.name!r} has no name that the hub allows")
    if listed.gated and not hub.token():
        raise hub.gated(listed.name)
    if listed.files is not None and (CONFIG not in listed.files or (listed.config or {}).get("model_type")):
        check_model(listed)
    if listed.parameters is not None:
        check_size(listed, rules.most_parameters, rules.setting)


def _left_out(folder: Path, tasks: TaskChoice, bridge: BridgeSpec) -> dict[str, str]:
    """Tasks that a local model cannot be asked, and why. Raises TaskNotExpressible if that is all of them."""
    from extractor.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    has_files = any(isinstance(task, FileTask) for task in tasks.tasks)
    longest = longest_prompt(read_json(folder / CONFIG), bridge) if has_files else None
    reasons = {}
    for task in tasks.tasks:
        try:
            check_expressible(task, tokenizer, longest)
        except TaskNotExpressible as error:
            reasons[task.name] = str(error)
    refuse_if_none(reasons, len(tasks.tasks))
    return reasons


def _digest(files: Files) -> str:
    """What the weights are known by, wherever they lie: the sha256 of their file, or of those of their files; '' without any."""
    names = weight_files(files.sizes)
    if isinstance(files, hub.HubFiles):
        digests = [files.digests.get(name, files.reference) for name in names]
    else:
        digests = [sha256(cast("FolderFiles", files).path / name) for name in names]
    return "".join(digests) if len(digests) < 2 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _duplicate(verdict: ModelDecision, first: str) -> ModelDecision:
    return replace(
        verdict, reference="", reason=f"model {verdict.asked!r} is a duplicate of {first!r}: the same weights ({verdict.digest[:12]})"
    )
