"""How much longer a job takes, from its events. No torch.

A job is a list of parts (`parts.job_parts`), each with its seconds on the reference machine.

slowdown   (PRIOR_SECONDS + seconds) / (PRIOR_SECONDS + reference seconds), over what was measured: the steps of loops, and all else of the
           stages that are done
expected   of a part: the mean of slowdown * its reference seconds and of what the same part took for each task that is done
left       of the present part: the pace of its loop times the steps to come; without a loop what is expected less what has passed, and at
           least OVERTIME of what has passed, since the work of a search is not known beforehand

The time left is that of the present part and all that is expected of later ones. It is not known until MEASURED_SECONDS were measured, and
where a part to come has no reference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PRIOR_SECONDS = 15.0
MEASURED_SECONDS = 5.0
OVERTIME = 0.25


@dataclass(frozen=True)
class JobPart:
    """A part of a job's work.

    stage     as `spec.schema.stages_of` lists it
    phase     as progress events name it; '' for a stage that is one part, and for the part with which a stage begins
    seconds   on the reference machine; None where they are not known
    steps     of all loops in it; 0 where its steps are not alike
    is_work   whether its time says something of the machine; else the work may lie ready in a cache
    """

    stage: str
    phase: str
    seconds: float | None
    steps: int = 0
    is_work: bool = True

    @property
    def key(self) -> tuple[str, str]:
        """What the same parts of several tasks have in common."""
        return self.stage.partition(" ")[0], self.phase


class LoopPace:
    """The pace of the loops in one part. Steps of an earlier attempt count as done; the pace is that of the steps which were seen."""

    def __init__(self) -> None:
        self.seconds, self.steps, self.done = 0.0, 0, 0
        self._total, self._step, self._time = 0, 0, 0.0

    def on_step(self, step: int, total: int, now: float) -> None:
        """Take note of a step. Another total, or a smaller step, belongs to the next loop."""
        if total == self._total and step >= self._step:
            self.seconds, self.steps = self.seconds + now - self._time, self.steps + step - self._step
            self.done += step - self._step
        else:
            self.done += self._total - self._step + step
        self._total, self._step, self._time = total, step, now

    def left(self, steps: int, now: float) -> float | None:
        """Seconds until `steps` steps are done; None before two were seen."""
        return max(0.0, self.seconds / self.steps * (steps - self.done) - (now - self._time)) if self.steps else None


class TimeLeft:
    """The estimate for one job. Times are seconds of one clock.

    stages   the job's stages in order
    kept     what an earlier attempt's estimate kept
    """

    def __init__(self, stages: Sequence[str], kept: Mapping[str, Any] | None = None):
        kept = kept or {}
        self.stages, self.finished = tuple(stages), dict(kept.get("finished", {}))
        self._parts = [JobPart(stage, "", None) for stage in stages]
        self._taken: dict[JobPart, float] = {}
        self._here: list[JobPart] = []  # what runs: one part, or all parts of a stage that has not said which
        self._stage, self._stage_since, self._since = "", 0.0, 0.0
        self._pace = LoopPace()
        self._looped = tuple(kept.get("looped", (0.0, 0.0)))  # seconds of loops that are done, reference seconds of the same steps

    def keep(self) -> dict[str, Any]:
        """What the next attempt should know: seconds of finished stages, and of the steps of loops with their reference seconds."""
        return {"finished": self.finished, "looped": self._loops()}

    def expect(self, parts: Sequence[JobPart]) -> None:
        """Say what the parts of the job are."""
        self._parts = list(parts)
        for stage, seconds in self.finished.items():
            self._share(self._of(stage), seconds)
        self._here = self._first()

    def on_event(self, event: Mapping[str, Any], now: float) -> None:
        """Take note of an event of the job."""
        if event["event"] == "stage":
            self._leave_stage(now)
            self._stage = self.stages[event["index"] - 1]
            self._here, self._since, self._stage_since = self._first(), now, now
        elif event["event"] == "progress":
            named = [part for part in self._of(self._stage) if part.phase and part.phase == event.get("phase")]
            if named and named != self._here:
                self._leave(now)
                self._here, self._since = named, now
            if "loss" in event["metrics"]:  # the steps of trainings are alike
                self._pace.on_step(event["step"], event["total"], now)

    def left(self, now: float) -> float | None:
        """Seconds until the job ends; None where that is not known."""
        if not self._here or self._measured()[0] < MEASURED_SECONDS:
            return None
        still = self._still()
        parts = [self._left_here(now, still), *still[self._parts.index(self._here[-1]) + 1 :]]
        return None if None in parts else sum(seconds for seconds in parts if seconds is not None)

    def _left_here(self, now: float, still: Sequence[float | None]) -> float | None:
        if len(self._here) == 1 and self._here[0].steps and (left := self._pace.left(self._here[0].steps, now)) is not None:
            return left
        expected, passed = [still[self._parts.index(part)] for part in self._here], now - self._since
        return None if None in expected else max(sum(s for s in expected if s is not None) - passed, OVERTIME * passed)

    def _still(self) -> list[float | None]:
        """What is expected of every part, less what it has already taken."""
        seconds, reference = self._measured()
        slowdown, same = (PRIOR_SECONDS + seconds) / (PRIOR_SECONDS + reference), defaultdict[tuple[str, str], list[float]](list)
        for part, taken in self._taken.items():
            if part.stage in self.finished:
                same[part.key].append(taken)

        def still(part: JobPart) -> float | None:
            if part.seconds is None:
                return None
            expected = (slowdown * part.seconds + sum(same[part.key])) / (1 + len(same[part.key]))
            return max(0.0, expected - self._taken.get(part, 0.0))

        return [still(part) for part in self._parts]

    def _measured(self) -> tuple[float, float]:
        """(seconds, reference seconds) of loops, and of the other parts of stages that are done."""
        ended = ((part, seconds) for part, seconds in self._taken.items() if part.stage in self.finished and part.is_work)
        done = [(seconds, part.seconds) for part, seconds in ended if part.seconds and not part.steps]
        seconds, reference = self._loops()
        return seconds + sum(s for s, _ in done), reference + sum(r for _, r in done)

    def _loops(self) -> tuple[float, float]:
        """(seconds, reference seconds) of the steps of loops."""
        part = self._here[0] if len(self._here) == 1 else None
        if part is None or not part.steps or part.seconds is None:
            return self._looped
        return self._looped[0] + self._pace.seconds, self._looped[1] + part.seconds * self._pace.steps / part.steps

    def _leave_stage(self, now: float) -> None:
        if not self._stage:
            return
        self._leave(now)
        for part in self._of(self._stage):
            self._taken.setdefault(part, 0.0)  # a phase that this stage did without
        self.finished[self._stage] = self.finished.get(self._stage, 0.0) + now - self._stage_since

    def _leave(self, now: float) -> None:
        self._looped = self._loops()
        self._share(self._here, now - self._since)
        self._pace = LoopPace()

    def _share(self, parts: Sequence[JobPart], seconds: float) -> None:
        """Note what parts took together, in the ratio of their reference seconds."""
        whole = sum(part.seconds or 0.0 for part in parts)
        for part in parts:
            share = (part.seconds or 0.0) / whole if whole else 1 / len(parts)
            self._taken[part] = self._taken.get(part, 0.0) + share * seconds

    def _first(self) -> list[JobPart]:
        """Where the present stage begins."""
        parts = self._of(self._stage)
        return parts[:1] if parts and not parts[0].phase else parts

    def _of(self, stage: str) -> list[JobPart]:
        return [part for part in self._parts if part.stage == stage]
