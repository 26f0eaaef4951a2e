"""`extractor.load(FOLDER)`: a finished result of a circuit job. `extractor.extract(...)`: run such a job here, and load it.

result = extractor.load("out")
result.run("print('hello")                                       the circuit's answer, every node at every token
result.run("print('hello", off=["0.mlp.post_act.12"])            without a node
result.run("print('hello", patch={"1.attn.v.3": 'print("hello'}) with a node's value in another prompt
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor import files
from extractor.bridges.steering.prompt import open_result, steer_result
from extractor.circuits.circuit import Circuit
from extractor.data.encoding import prompt_text, text_ids, token_texts
from extractor.errors import NotFound, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from extractor.circuits.compiled import CompiledCircuit
    from extractor.circuits.graph import CircuitMask
    from extractor.results.prompt_run import PromptRun
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

Patch = Mapping[str, "str | float | Tensor"]


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt on which the circuit was measured, with its right and its wrong answer."""

    prompt: str
    right: str
    wrong: str


class Result:
    """One task of a finished result; `result[TASK]` is another. Everything is read when it is first asked for.

    folder    of the whole result;  task: whose circuit this is
    """

    def __init__(self, folder: Path, task: str):
        self.folder, self.task = folder, task

    def __repr__(self) -> str:
        numbers, circuit = self.numbers, self.circuit
        verdict = "meets" if numbers["meets_target"] else "does not meet"
        size = f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges, {self.loss['circuit']:.3f} nats"
        return f"Result({self.task} in {numbers['model']}: {size}; {verdict} {numbers['target_loss']:g}; {self.folder})"

    def _repr_html_(self) -> str:
        picture = self.place / "circuit.svg"
        return f"<p>{repr(self)[7:-1]}</p>" + (picture.read_text(encoding="utf-8") if picture.is_file() else "")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the result that have a circuit."""
        return _tasks(self.folder)

    def __getitem__(self, task: str) -> Result:
        """The result of another task. Raises UsageError for a task without a circuit."""
        return load(self.folder, task)

    @property
    def place(self) -> Path:
        """The folder of the circuit's files."""
        return self.folder / "circuits" / self.task

    @property
    def report(self) -> Path:
        """The page, an HTML file."""
        return self.place / "report.html"

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The content of result.json; see extractor/README.md, Result files."""
        found: dict[str, Any] = files.read_json(self.place / "result.json")
        return found

    @property
    def loss(self) -> dict[str, float]:
        """Nats per held-out prompt of full, circuit, without_circuit, random."""
        found: dict[str, float] = self.numbers["loss"]
        return found

    @property
    def accuracy(self) -> dict[str, float]:
        """Fractions of held-out prompts, of the same networks."""
        found: dict[str, float] = self.numbers["accuracy"]
        return found

    @cached_property
    def circuit(self) -> Circuit:
        return Circuit.from_json(files.read_json(self.place / "circuit.json"))

    @cached_property
    def paper_circuit(self) -> Circuit:
        """The circuit of the paper's standard: beside a robust one, else the circuit itself."""
        beside = self.place / "paper.json"
        return Circuit.from_json(files.read_json(beside)) if beside.is_file() else self.circuit

    @cached_property
    def model(self) -> SparseGPTForCausalLM:
        """The sparse model, frozen, on the CPU."""
        from extractor.models.load import load_model
        from extractor.models.reference import inspect_folder

        found: Any = load_model(inspect_folder(self.folder / "model"))
        return found.eval().requires_grad_(False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from extractor.models.tokenizer import load_tokenizer

        return load_tokenizer(self.folder / "model")

    @cached_property
    def compiled(self) -> CompiledCircuit:
        """The circuit as a module that needs no model: token ids (B, T) in, logit differences (B,) out, not calibrated.

        Results of earlier versions have the answers in the order of their token ids: name the first and the second there.
        """
        from extractor.circuits.compiled import FILE, CompiledCircuit

        return CompiledCircuit.load(self.place / FILE)

    @cached_property
    def held_out(self) -> tuple[HeldOutPrompt, ...]:
        """The held-out prompts; those of a pair follow each other."""
        kept = files.read_tensors(self.place / "held_out.safetensors")
        rows = zip(*(kept[name].tolist() for name in ("ids", "last", "correct", "wrong")), strict=True)
        shown = [
            (prompt_text(self.tokenizer, ids[: last + 1]), *token_texts(self.tokenizer, [right, wrong])) for ids, last, right, wrong in rows
        ]
        return tuple(HeldOutPrompt(*each) for each in shown)

    def run(
        self,
        prompt: str,
        off: Collection[str] = (),
        patch: Patch | None = None,
        scale: Mapping[str, float] | None = None,
        answers: tuple[str, str] | None = None,
    ) -> PromptRun:
        """The circuit on a prompt.

        off       nodes that have their means
        patch     {node: another prompt of the same length, whose value of it is taken; a number; or values (T,)}
        scale     {node: factor of its value}
        answers   the two answers, where those of the task vary from pair to pair

        Raises UsageError for unknown nodes, prompts of different lengths, and answers that are not one token.
        """
        from extractor.results.prompt_run import NodeEdits

        changes = patch or {}
        for node in (*off, *changes, *(scale or {})):
            self._check(node)
        ids = text_ids(self.tokenizer, prompt)
        values = {node: self._values(node, given, ids, answers) for node, given in changes.items()}
        return self._run(ids, answers, NodeEdits(tuple(off), values, scale))

    def effects(self) -> list[dict[str, Any]]:
        """{source, target, weight, rise of the loss without it in nats} of every edge that was measured, the largest rise first."""
        weights = {(edge.source, edge.target): edge.weight for edge in self.circuit.edges}
        found = [
            {"source": source, "target": target, "weight": weights[source, target], "rise": rise}
            for source, target, rise in self.numbers["validation"]["edge_effects"]["edges"]
        ]
        return sorted(found, key=lambda one: -one["rise"])

    def steer(self, prompt: str, toward: str, nodes: Collection[str] = (), strength: float = 1.0) -> dict[str, Any]:
        """The dense model's answers after `prompt` while nodes have their values after `toward`; see `extract steer`.

        Raises UsageError where the result has no dense model, and what `run` raises.
        """
        return steer_result(open_result(self.folder, self.task), toward, prompt, list(nodes), None, [strength])

    @cached_property
    def _graph(self) -> CircuitMask:
        from extractor.circuits.compiled import mask_of

        return mask_of(self.circuit, self.model)

    @cached_property
    def _means(self) -> dict[str, Tensor]:
        """{site: (width,)} what an ablated node is: by the paper's standard."""
        means = files.read_tensors(self.place / "means.safetensors")
        return {site: 0 * mean for site, mean in means.items()} if self.numbers["ablation"] == "zero" else means

    def _check(self, node: str) -> None:
        known = [one.id for one in self.circuit.nodes]
        if node not in known:
            close = ", ".join(difflib.get_close_matches(node, known, 3, 0.4)) or ", ".join(known[:3])
            raise UsageError(f"node {node!r} is not in the circuit of {self.task!r} ({len(known)} nodes); close: {close}")

    def _run(self, ids: list[int], answers: tuple[str, str] | None, edits: Any) -> PromptRun:
        import torch

        from extractor.data.prompts import TaskBatch
        from extractor.results.prompt_run import run_prompt

        if not 0 < len(ids) <= self.model.config.n_ctx:
            raise UsageError(f"the prompt has {len(ids)} tokens, the model takes 1 to {self.model.config.n_ctx}")
        first, second = self._answer_ids(ids, answers)
        last = torch.tensor([len(ids) - 1])
        batch = TaskBatch(torch.tensor([ids]), last, torch.tensor([first]), torch.tensor([second]), torch.ones(1))
        shown = token_texts(self.tokenizer, ids), token_texts(self.tokenizer, [first, second])
        circuit = self.circuit
        return run_prompt(
            self._graph, self._means, circuit.nodes, circuit.calibration, batch, tuple(shown[0]), (shown[1][0], shown[1][1]), edits
        )

    def _answer_ids(self, ids: list[int], answers: tuple[str, str] | None) -> tuple[int, int]:
        if answers is None:
            if self.circuit.answer_ids:
                return self.circuit.answer_ids
            raise UsageError(f"the answers of {self.task!r} vary from pair to pair: name two, as in run(prompt, answers=(' a', ' b'))")
        found = []
        for answer in answers:
            together = text_ids(self.tokenizer, prompt_text(self.tokenizer, ids) + answer)
            if together[:-1] != ids:
                raise UsageError(f"after this prompt the answer {answer!r} is not one token")
            found.append(together[-1])
        return found[0], found[1]

    def _values(self, node: str, given: str | float | Tensor, ids: list[int], answers: tuple[str, str] | None) -> Tensor:
        """The values (T,) that a node is given."""
        import torch

        from extractor.results.prompt_run import NodeEdits

        if isinstance(given, str):
            other = text_ids(self.tokenizer, given)
            if len(other) != len(ids):
                raise UsageError(f"the prompt has {len(ids)} tokens, {given!r} has {len(other)}: a node is patched token by token")
            return self._run(other, answers, NodeEdits()).activations[node]
        values = torch.as_tensor(given, dtype=torch.float32)
        if values.dim() and values.shape != (len(ids),):
            raise UsageError(f"values of {node} have the shape {tuple(values.shape)}; give a number, or one for each of {len(ids)} tokens")
        return values.expand(len(ids))


def load(folder: str | Path, task: str | None = None) -> Result:
    """The result of a circuit job; without `task` that of its only circuit, or of the first by name. Loads no model.

    Raises NotFound where there is no finished result of a circuit job, UsageError for a task without a circuit.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise NotFound(f"{str(folder)!r} is not a folder; `extract result JOB --out FOLDER` copies the result of a job into one")
    if not (place / files.MANIFEST).is_file():
        raise NotFound(f"{place} holds no finished result (no {files.MANIFEST}); wait for its job, or run its spec again")
    found = _tasks(place)
    if not found:
        raise NotFound(f"the result in {place} has no circuit: it is of a training without tasks, or no task met the conditions of the job")
    if task is not None and task not in found:
        raise UsageError(f"the result in {place} has no circuit of {task!r}; it has {', '.join(found)}")
    return Result(place, task or found[0])


def extract(model: str, task: str | tuple[str, ...], out: str | Path, threads: int | None = None, **options: Any) -> Result:
    """Run a circuit job in this process with a progress bar, and load its result. A job that was interrupted goes on.

    options   of `extractor.circuit_job`, such as preset, seed, target_loss, changes
    Raises ExtractorError for everything that can be said in one line.
    """
    from extractor.jobs.request import circuit_job
    from extractor.jobs.run import run_job
    from extractor.results.bar import StageBars

    tasks = (task,) if isinstance(task, str) else tuple(task)
    with StageBars() as progress:
        run_job(circuit_job(model, tasks, **options), Path(out), progress, threads)
    return load(out)


def _tasks(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(place.parent.name for place in folder.glob("circuits/*/circuit.json")))
