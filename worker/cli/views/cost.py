"""The output of --dry-run: the stages of a job and the cost of its bridging on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.cli.text import print_json

if TYPE_CHECKING:
    from extractor.spec.schema import JobSpec

NO_BRIDGE = "none: the model is already sparse"
PRUNES_DENSE = "none: the dense model itself is pruned"


def show_preflight(spec: JobSpec, as_json: bool) -> None:
    """Print the plan as a table or JSON. Raises SpecError if the job does not fit into memory, ModelNotFound, BrokenArtifact."""
    from extractor.jobs.cost import bridging, hardware, memory, text
    from extractor.jobs.cost.units import show_bytes, show_count
    from extractor.spec.schema import stages_of
    from worker.settings import from_env
    from worker.supervision.shared_bridging import is_kept

    facts: dict[str, Any] = {"kind": spec.kind, "stages": list(stages_of(spec))}
    rows = [("job", spec.kind), ("stages", describe_stages(facts["stages"]))]
    config = bridging.config_of(spec.model) if spec.bridge is not None and spec.model is not None else None
    is_sparse = config is not None and config.get("model_type") == "sparse_gpt"
    if is_sparse or (config is not None and spec.prunes_dense):
        facts["bridge"] = None
        rows.append(("bridge", NO_BRIDGE if is_sparse else PRUNES_DENSE))
    elif config is not None:
        assert spec.bridge is not None
        found = bridging.bridging_cost(config, spec.bridge)
        available = hardware.available_memory()
        bridging.check(found, available)
        here = (available, hardware.measure_speed(spec.bridge.optim.precision))
        facts["bridge"] = text.to_json(found, *here) | {"kept": is_kept(spec, from_env())}
        rows += text.describe(found, *here)
        if facts["bridge"]["kept"]:
            rows.append(("kept", "an earlier job has made this bridged model here: the bridging takes no time"))
    if spec.train is not None:
        optim = spec.train.optim
        available = hardware.available_memory()
        needed = memory.check_training(spec.train, available)
        facts["train"] = {"steps": optim.steps, "tokens": optim.steps * optim.batch * optim.context}
        facts["train"] |= {"parameters": memory.parameters(spec.train), "memory_needed": needed, "memory_at_hand": available}
        rows.append(("parameters", f"{show_count(memory.parameters(spec.train))}, without biases and norms"))
        rows.append(("memory, at least", show_bytes(needed)))
        rows.append(("memory available", show_bytes(available)))
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
    from worker.cli.views.tables import PlainTable, print_table

    table = PlainTable(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    print_table(table)
