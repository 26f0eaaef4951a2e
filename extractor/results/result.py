"""`extractor.load(FOLDER)`: a finished result of a circuit job. `extractor.extract(...)`: run such a job here, and load it.

result = extractor.load("out")
result.run("print('hello")                                       the circuit's answer, every node at every token
result.run("print('hello", off=["0.mlp.post_act.12"])            without a node
result.run("print('hello", patch={"1.attn.v.3": 'print("hello'}) with a node's value in another prompt
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor import files
from extractor.circuits.circuit import Circuit, Node, node_ids_of
from extractor.data.encoding import prompt_text, token_texts
from extractor.errors import BrokenArtifact, ExtractorError, NotFound, UsageError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from extractor.circuits.compiled import CompiledCircuit
    from extractor.circuits.graph import CircuitMask
    from extractor.results.prompt_run import PromptRun
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

NUMBERS = ("model", "target_loss", "meets_target", "loss", "accuracy", "ablation", "validation")  # of result.json, in all versions


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt on which the circuit was measured. answers: first and second, in the order of the circuit; right: one of them."""

    prompt: str
    answers: tuple[str, str]
    right: str


class Result:
    """One task of a finished result; `result[TASK]` is another. Everything is read when it is first asked for.

    folder    of the whole result;  task: whose circuit this is
    """

    def __init__(self, folder: Path, task: str):
        self.folder, self.task = folder, task

    def __repr__(self) -> str:
        try:
            numbers, circuit = self.numbers, self.circuit
            verdict = "meets" if numbers["meets_target"] else "does not meet"
            size = f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges, {self.loss['circuit']:.3f} nats"
            what = f"in {numbers['model']}: {size}; {verdict} {numbers['target_loss']:g}"
        except ExtractorError as error:
            what = f"damaged: {error}"
        return f"Result({self.task} {what}; {self.folder})"

    def _repr_html_(self) -> str:
        """The line above, and the picture: as an image, so that nothing in it can run."""
        picture = self.place / "circuit.svg"
        drawn = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
        image = f'<img alt="the circuit" src="data:image/svg+xml;base64,{drawn}">' if drawn else ""
        return f"<p>{html.escape(repr(self)[7:-1])}</p>{image}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the result that have a circuit."""
        return _tasks(self.folder)

    def __iter__(self) -> Iterator[Result]:
        """The results of all tasks."""
        return (Result(self.folder, task) for task in self.tasks)

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

    def verify(self) -> None:
        """Compare every file with the manifest. Raises BrokenArtifact."""
        files.verify_manifest(self.folder)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The content of result.json; see extractor/README.md. Raises BrokenArtifact."""
        path = self.place / "result.json"
        found = files.read_json(path)
        if missing := [name for name in NUMBERS if not isinstance(found, dict) or name not in found]:
            raise BrokenArtifact(f"{path} is not the content of a result: it has no {', '.join(missing)}")
        return dict(found)

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
        return _circuit(self.place / "circuit.json")

    @cached_property
    def paper_circuit(self) -> Circuit:
        """The circuit of the paper's standard: beside a robust one, else the circuit itself."""
        beside = self.place / "paper.json"
        return _circuit(beside) if beside.is_file() else self.circuit

    @cached_property
    def model(self) -> SparseGPTForCausalLM:
        """The sparse model, frozen, on the CPU."""
        from extractor.models.load import load_model
        from extractor.models.reference import inspect_folder

        found: Any = load_model(inspect_folder(self._model_folder))
        return found.eval().requires_grad_(False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from extractor.models.tokenizer import load_tokenizer

        return load_tokenizer(self._model_folder)

    @property
    def _model_folder(self) -> Path:
        if not (self.folder / "model").is_dir():
            raise NotFound(f"the result in {self.folder} lacks its folder model/; copy the complete result")
        return self.folder / "model"

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
        found = []
        for row, (ids, last, right, wrong) in enumerate(rows):
            texts = token_texts(self.tokenizer, [right, wrong])
            answers = (texts[0], texts[1]) if row % 2 == 0 else (texts[1], texts[0])  # a pair's first prompt has the first answer
            found.append(HeldOutPrompt(prompt_text(self.tokenizer, ids[: last + 1]), answers, texts[0]))
        return tuple(found)

    def run(
        self,
        prompt: str,
        off: str | Node | Iterable[str | Node] = (),
        patch: Mapping[str, str | float | Tensor] | None = None,
        scale: Mapping[str, float] | None = None,
        answers: tuple[str, str] | None = None,
    ) -> PromptRun:
        """The circuit on a prompt.

        off       nodes that have their means
        patch     {node: another prompt of the same length, whose value of it is taken; a number; or values (T,)}
        scale     {node: factor of its value}
        answers   first and second answer, where those of the task vary from pair to pair: in the order of the pair, for which the circuit
                  is calibrated. Answers that are not those of the task are compared without calibration.

        Raises UsageError for unknown nodes, a node that is edited twice, prompts of different lengths, numbers that are not finite, and
        answers that are not two different tokens.
        """
        from extractor.results.asked import Asked

        return Asked(self.circuit, self.tokenizer, self.graph, self.means).run(prompt, off, patch, scale, answers)

    def effects(self) -> list[dict[str, Any]]:
        """{source, target, weight, rise of the loss without it in nats} of every edge that was measured, the largest rise first."""
        weights = {(edge.source, edge.target): edge.weight for edge in self.circuit.edges}
        try:
            measured = self.numbers["validation"]["edge_effects"]["edges"]
            found = [{"source": a, "target": b, "weight": weights[a, b], "rise": rise} for a, b, rise in measured]
        except (KeyError, TypeError, ValueError):
            raise BrokenArtifact(f"{self.place / 'result.json'} and circuit.json do not have the same edges") from None
        return sorted(found, key=lambda one: -one["rise"])

    def steer(self, prompt: str, toward: str, nodes: str | Node | Iterable[str | Node] = (), strength: float = 1.0) -> dict[str, Any]:
        """The dense model's answers after `prompt` while nodes have their values after `toward`; see `extract steer`.

        nodes   none: the best one of the circuit. Raises UsageError where the result has no dense model, and what `run` raises.
        """
        from extractor.bridges.steering.prompt import open_result, steer_result

        if not isinstance(strength, int | float):
            raise UsageError(f"strength is a number, not {type(strength).__name__}; nodes are the third argument")
        return steer_result(open_result(self.folder, self.task), toward, prompt, node_ids_of(nodes), None, [float(strength)])

    @cached_property
    def graph(self) -> CircuitMask:
        """The circuit as masks of the model."""
        from extractor.circuits.compiled import mask_of

        return mask_of(self.circuit, self.model)

    @cached_property
    def means(self) -> dict[str, Tensor]:
        """{site: (width,)} what an ablated node is, by the paper's standard."""
        means = files.read_tensors(self.place / "means.safetensors")
        return {site: 0 * mean for site, mean in means.items()} if self.numbers["ablation"] == "zero" else means


def load(folder: str | Path, task: str | None = None) -> Result:
    """The result of a circuit job; without `task` that of its only circuit, or of the first by name. Loads no model.

    Raises NotFound where there is no finished result of a circuit job, UsageError for a task without a circuit.
    """
    place = Path(folder).expanduser()
    if not str(folder) or not place.is_dir():
        raise NotFound(f"{str(folder)!r} is not a folder; `extract result JOB --out FOLDER` copies the result of a job into one")
    if place.parent.name == "circuits" and (place / "circuit.json").is_file():
        raise UsageError(f"{place} is a part of a result; load {place.parent.parent}, task {place.name!r}")
    if not (place / files.MANIFEST).is_file():
        raise NotFound(f"{place} holds no finished result (no {files.MANIFEST}); wait for its job, or run its spec again")
    found = _tasks(place)
    if not found:
        raise NotFound(f"the result in {place} has no circuit: it is of a training without tasks, or no task met the conditions of the job")
    if task is not None and task not in found:
        raise UsageError(f"the result in {place} has no circuit of {task!r}; it has {', '.join(found)}")
    return Result(place, task or found[0])


def extract(model: str, task: str | tuple[str, ...], out: str | Path, threads: int | None = None, **options: Any) -> Result:
    """Run a circuit job in this process with a bar for each stage, and load its result. A job that was interrupted goes on.

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


def _circuit(path: Path) -> Circuit:
    found = files.read_json(path)
    try:
        return Circuit.from_json(found)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenArtifact(f"{path} is not a circuit: {first_line(error) or type(error).__name__}") from None
