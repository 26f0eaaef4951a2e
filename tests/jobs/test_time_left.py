"""The time left of a running job: exact where the work is even, and within a factor of 1.5 on recordings of real jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extractor.jobs.cost.bridging import config_of
from extractor.jobs.cost.parts import job_parts
from extractor.jobs.cost.time_left import JobPart, LoopPace, TimeLeft
from extractor.jobs.request import circuit_job, train_job
from extractor.spec.schema import JobSpec, stages_of

RECORDINGS = Path(__file__).parent / "recordings"
TINY = config_of("python-tiny")
STAGES = ("bridge", "prune a", "validate a", "prune b", "validate b")


def stage(index: int) -> dict[str, Any]:
    return {"event": "stage", "index": index}


def at(phase: str = "", step: int | None = None, total: int | None = None, loss: float | None = None) -> dict[str, Any]:
    return {"event": "progress", "phase": phase, "step": step, "total": total, "metrics": {} if loss is None else {"loss": loss}}


def parts(seconds: float = 100.0) -> list[JobPart]:
    found = [JobPart("bridge", "", seconds, 100)]
    for task in "ab":
        found += [JobPart(f"prune {task}", "rank", 10.0, 20), JobPart(f"prune {task}", "cut", 30.0), JobPart(f"validate {task}", "", 20.0)]
    return found


def started(seconds: float = 100.0) -> TimeLeft:
    estimate = TimeLeft(STAGES)
    estimate.expect(parts(seconds))
    return estimate


def test_nothing_is_known_before_something_was_measured():
    estimate = TimeLeft(STAGES)
    assert estimate.left(0.0) is None
    estimate.on_event(stage(1), 0.0)
    assert estimate.left(0.0) is None, "not even what the parts are"
    estimate.expect(parts())
    estimate.on_event(at(step=1, total=100, loss=1.0), 1.0)
    estimate.on_event(at(step=2, total=100, loss=1.0), 2.0)
    assert estimate.left(2.0) is None
    estimate.on_event(at(step=9, total=100, loss=1.0), 9.0)
    assert estimate.left(9.0) == pytest.approx(91 + 120, rel=0.01)


def test_a_slower_machine_takes_longer_for_all_that_comes():
    estimate = started()
    estimate.on_event(stage(1), 0.0)
    for step in range(1, 51):
        estimate.on_event(at(step=step, total=100, loss=1.0), 3.0 * step)
    slowdown = (15 + 147) / (15 + 49)
    assert estimate.left(150.0) == pytest.approx(150 + slowdown * 120)
    assert estimate.left(160.0) == pytest.approx(140 + slowdown * 120), "it falls between two events"


def test_a_count_that_is_no_loop_tells_no_pace():
    estimate = started()
    estimate.on_event(stage(1), 0.0)
    for step in range(100):
        estimate.on_event(at(step=step, total=100), float(step))
    assert estimate.left(99.0) is None


def test_tasks_that_are_done_say_what_the_others_take():
    stages = tuple(f"{kind} {task}" for task in range(20) for kind in ("prune", "validate"))
    estimate = TimeLeft(stages)
    estimate.expect([JobPart(name, "", 10.0 if name.startswith("prune") else 50.0) for name in stages])
    now = 0.0
    for index, name in enumerate(stages[:10], 1):
        estimate.on_event(stage(index), now)
        now += 100.0 if name.startswith("prune") else 50.0  # the search takes ten times as long as on the reference task
    estimate.on_event(stage(11), now)
    found = estimate.left(now)
    assert found is not None
    assert 0.8 < found / (15 * 150) < 1.25


def test_a_search_that_lasts_longer_than_expected_is_not_about_to_end():
    estimate = started()
    estimate.on_event(stage(1), 0.0)
    for step in range(1, 101):
        estimate.on_event(at(step=step, total=100, loss=1.0), float(step))
    estimate.on_event(stage(2), 100.0)
    estimate.on_event(at("rank"), 100.0)
    estimate.on_event(at("cut"), 110.0)
    later = 20 + 40 + 20
    assert estimate.left(112.0) == pytest.approx(28 + later, rel=0.03)
    assert estimate.left(210.0) == pytest.approx(25 + later, rel=0.03)


def test_phases_may_be_left_out_and_come_again():
    estimate = started()
    estimate.on_event(stage(1), 0.0)
    for step in range(1, 101):
        estimate.on_event(at(step=step, total=100, loss=1.0), float(step))
    estimate.on_event(stage(2), 100.0)
    estimate.on_event(at("cut"), 100.0)
    assert estimate.left(100.0) == pytest.approx(30 + 80, rel=0.03)
    estimate.on_event(at("rank"), 110.0)
    assert estimate.left(110.0) == pytest.approx(10 + 20 + 80, rel=0.05), "a third of the cut is done"
    estimate.on_event(at("not in the table"), 112.0)
    assert estimate.left(112.0) == pytest.approx(8 + 20 + 80, rel=0.05)


def test_a_stage_that_names_no_phase_is_one_part():
    estimate = started()
    estimate.on_event(stage(1), 0.0)
    for step in range(1, 101):
        estimate.on_event(at(step=step, total=100, loss=1.0), float(step))
    estimate.on_event(stage(2), 100.0)
    assert estimate.left(105.0) == pytest.approx(35 + 80, rel=0.03)


def test_a_part_without_reference_leaves_the_end_unknown_until_its_loop_runs():
    estimate = TimeLeft(("bridge", "prune"))
    estimate.expect([JobPart("bridge", "", None, 100), JobPart("prune", "", 10.0)])
    estimate.on_event(stage(1), 0.0)
    assert estimate.left(50.0) is None
    estimate.expect([JobPart("bridge", "", None), JobPart("prune", "", 10.0)])
    estimate.on_event(stage(2), 60.0)
    estimate.on_event(at(step=1, total=9, loss=0.1), 61.0)
    assert estimate.left(61.0) is None, "one step says nothing"


def test_steps_of_an_earlier_attempt_are_done_and_have_no_pace():
    pace = LoopPace()
    pace.on_step(80, 100, 0.0)
    assert pace.left(100, 0.0) is None
    pace.on_step(90, 100, 5.0)
    assert pace.left(100, 5.0) == pytest.approx(5.0)
    assert pace.left(100, 7.0) == pytest.approx(3.0)
    assert pace.left(100, 99.0) == 0.0


def test_rounds_of_a_loop_are_counted_together():
    pace = LoopPace()
    for round_began in (0.0, 20.0):
        for step in range(1, 11):
            pace.on_step(step, 10, round_began + step)
    assert pace.done == 20
    assert pace.left(30, 30.0) == pytest.approx(10.0)


def test_the_next_attempt_goes_on_with_what_was_measured():
    estimate = started()
    estimate.on_event(stage(1), 0.0)
    for step in range(1, 101):
        estimate.on_event(at(step=step, total=100, loss=1.0), 2.0 * step)
    estimate.on_event(stage(2), 200.0)
    kept = json.loads(json.dumps(estimate.keep()))
    assert kept["finished"] == {"bridge": 200.0}
    resumed = TimeLeft(STAGES, kept)
    resumed.expect(parts())
    resumed.on_event(stage(1), 1000.0)  # an attempt that resumes passes the stages that have their files
    resumed.on_event(stage(2), 1000.0)
    assert resumed.left(1000.0) == pytest.approx(estimate.left(200.0), rel=0.01)


SPECS = {
    "main": circuit_job("python-tiny", ("quote_close",)),
    "three": circuit_job("python-tiny", ("quote_close", "for_while", "var_if")),
    "dense": circuit_job("python-tiny", ("quote_close",), subject="dense"),
    "paper": circuit_job("python-tiny", ("quote_close",), changes={"prune.standard": "paper", "prune.seeds": "3"}),
    "train": train_job(tokenizer="python-tiny"),
    "train and prune": train_job(tokenizer="python-tiny", tasks=("quote_close",)),
    "widths": train_job(tokenizer="python-tiny", match_loss=3.0),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_parts_follow_the_stages_of_the_job(name: str):
    spec = SPECS[name]
    found = job_parts(spec, TINY)
    assert tuple(dict.fromkeys(part.stage for part in found)) == stages_of(spec)
    assert len(set(found)) == len(found)
    assert all(part.seconds is None or part.seconds >= 0 for part in found)
    assert [part.stage for part in found if part.seconds is None] == ["train"] * (name == "widths")
    assert [part.phase for part in found if part.stage in ("bridge", "train")][1:] == {
        "bridge": ["faithfulness"] * (name != "dense"), "train": ["numbers"] * (name != "widths"),
    }[stages_of(spec)[1]]  # fmt: skip


def test_larger_models_and_more_seeds_take_longer():
    def total(spec: JobSpec, config: dict[str, Any] = TINY) -> float:
        return sum(part.seconds or 0.0 for part in job_parts(spec, config))

    assert total(SPECS["paper"]) > total(circuit_job("python-tiny", ("quote_close",), changes={"prune.standard": "paper"})) + 20
    sparse = {"model_type": "sparse_gpt", "n_layer": 4, "d_model": 256, "mlp_ratio": 4}
    assert 7 < total(SPECS["main"], sparse) / total(SPECS["main"], sparse | {"n_layer": 2, "d_model": 128}) < 8.1
    assert total(SPECS["main"]) == pytest.approx(300 + total(SPECS["main"], sparse | {"n_layer": 2, "d_model": 128}), rel=0.1)


def test_a_large_model_of_which_few_layers_and_few_pairs_are_searched_takes_minutes_and_not_hours():
    """SmolLM2-135M bridged in five of thirty layers: search, checks and report took less than half an hour."""
    llama = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    llama |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192}
    pairs = {"prune.select_pairs": "32", "prune.held_out_pairs": "64", "prune.trial_pairs": "16", "prune.controls": "0"}
    few = job_parts(layered_spec(pairs), llama)
    assert 60 < sum(part.seconds or 0.0 for part in few if part.stage != "bridge") < 1800
    every = job_parts(layered_spec({}), llama)
    assert all((a.seconds or 0.0) <= (b.seconds or 0.0) for a, b in zip(few, every, strict=True))


def layered_spec(changes: dict[str, str]) -> JobSpec:
    made = circuit_job("python-tiny", ("quote_close",), changes=changes | {"prune.standard": "paper"})
    assert made.bridge is not None
    return made.model_copy(update={"bridge": made.bridge.model_copy(update={"layers": "24-28"})})


def recorded(name: str) -> tuple[JobSpec, dict[str, Any]]:
    facts = json.loads((RECORDINGS / f"{name}.json").read_text())
    if facts["kind"] == "train":
        return train_job(tokenizer="python-tiny", tasks=tuple(facts["tasks"]), changes={"optim.steps": str(facts["steps"])}), facts
    changes = {
        "bridge.optim.steps": str(facts["steps"]),
        "prune.standard": facts["standard"],
        "prune.algorithm": facts.get("algorithm", "masks"),
        "prune.trial_pairs": str(facts.get("trial_pairs", 256)),
    }
    return circuit_job("python-tiny", tuple(facts["tasks"]), changes=changes), facts


def replayed(name: str) -> Iterator[tuple[float, float | None]]:
    """(seconds since the job was queued, (elapsed + left) / total) of every second."""
    spec, facts = recorded(name)
    estimate, waiting = TimeLeft(stages_of(spec)), list(facts["events"])
    estimate.expect(job_parts(spec, TINY))
    for now in range(1, int(facts["seconds"])):
        while waiting and waiting[0][0] <= now:
            time, *content = waiting.pop(0)
            if len(content) == 1:
                estimate.on_event(stage(*content), time)
            else:
                phase, step, total, is_loop = content
                estimate.on_event(at(phase, step, total, 1.0 if is_loop else None), time)
        left = estimate.left(now)
        yield now, None if left is None else (now + left) / facts["seconds"]


@pytest.mark.parametrize(
    ("name", "share"), [("main_job", 1.0), ("main_job_race", 1.0), ("three_tasks_paper", 1.0), ("three_tasks", 0.9), ("train_job", 1.0)]
)
def test_after_a_minute_the_end_of_a_recorded_job_is_known_within_a_factor_of_one_and_a_half(name: str, share: float):
    """share: of the seconds; less than all where other work on the machine came and went."""
    found = [ratio for now, ratio in replayed(name) if now >= 60]
    assert sum(ratio is not None and 1 / 1.5 <= ratio <= 1.5 for ratio in found) >= share * len(found)


@pytest.mark.parametrize("name", ["main_job", "main_job_race"])
def test_on_a_quiet_machine_the_end_of_the_main_job_is_known_within_a_fifth(name: str):
    found = [ratio for now, ratio in replayed(name) if now >= 60]
    assert all(ratio is not None and 1 / 1.2 <= ratio <= 1.2 for ratio in found)
