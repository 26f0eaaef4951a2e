"""The output of --dry-run: the stages of a job and the cost of its bridging on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.cli.text import print_json

if TYPE_CHECKING:
    from extractor.spec.schema import JobSpec

NO_BRIDGE = "none: the model is already sparse"


def show_preflight(spec: JobSpec, as_json: bool) -> None:
    """Print the plan as a table or JSON. Raises SpecError if the bridging does not fit, ModelNotFound, BrokenArtifact."""
    from extractor.jobs.cost import bridging, hardware, text
    from extractor.spec.schema import stages_of

    facts: dict[str, Any] = {"kind": spec.kind, "stages": list(stages_of(spec))}
    rows = [("job", spec.kind), ("stages", describe_stages(facts["stages"]))]
    config = bridging.config_of(spec.model) if spec.bridge is not None and spec.model is not None else None
    if config is not None and config.get("model_type") == "sparse_gpt":
        facts["bridge"] = None
        rows.append(("bridge", NO_BRIDGE))
    elif config is not None:
        assert spec.bridge is not None
        found = bridging.bridging_cost(config, spec.bridge)
        memory = hardware.available_memory()
        bridging.check(found, memory)
        here = (memory, hardware.measure_speed(spec.bridge.optim.precision))
        facts["bridge"] = text.to_json(found, *here)
        rows += text.describe(found, *here)
    if spec.train is not None:
        optim = spec.train.optim
        facts["train"] = {"steps": optim.steps, "tokens": optim.steps * optim.batch * optim.context}
        rows.append(("training", f"{optim.steps:,} steps of {optim.batch * optim.context:,} tokens each"))
    if as_json:
        print_json(facts)
    else:
        _print_table(rows)


def describe_stages(stages: list[str]) -> str:
    """'corpus -> bridge -> prune -> ...'; for several tasks the stages of one task, then the task names."""
    shared = [stage for stage in stages if " " not in stage]
    tasks = list(dict.fromkeys(stage.partition(" ")[2] for stage in stages if " " in stage))
    own = list(dict.fromkeys(stage.partition(" ")[0] for stage in stages if " " in stage))
    return " -> ".join(shared) + (f" -> ({' -> '.join(own)}) for each of {', '.join(tasks)}" if tasks else "")


def _print_table(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console

    from worker.cli.views.tables import PlainTable

    table = PlainTable(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    Console(width=max(100, Console().width)).print(table, highlight=False, markup=False)
