"""`extractor.load(FOLDER or JOB)`: a finished result of a circuit job. `extractor.extract` makes one (`extracting.py`).

result = extractor.load("out")
result.run("print('hello")                                       the circuit's answer, every node at every token
result.run("print('hello", off=["0.mlp.post_act.12"])            without a node
result.run("print('hello", patch={"1.attn.v.3": 'print("hello'}) with a node's value in another prompt
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor import files
from extractor.circuits.circuit import Circuit, Node, node_ids_of
from extractor.circuits.guesses import no_attribute
from extractor.errors import BrokenArtifact, ExtractorError, NotFound, UsageError, first_line
from extractor.results.held_out import HeldOutPrompt, read_held_out
from extractor.results.places import HasId, place_of
from extractor.results.rows import Rows
from extractor.results.shown import CircuitPicture, open_page, without_bars

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from extractor.circuits.compiled import CompiledCircuit
    from extractor.circuits.graph import CircuitMask
    from extractor.results.asked import Value
    from extractor.results.prompt_run import PromptRun
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

_INSTEAD = {  # what users guess: what does it
    **dict.fromkeys(("nodes", "edges", "to_frame", "to_networkx"), "result.circuit, which has nodes, edges, to_frame(), to_networkx()"),
    **dict.fromkeys(("predict", "forward", "generate", "answer", "logits", "run_with_cache"), "result.run(prompt)"),
    **dict.fromkeys(("activations", "attention", "cache"), "result.run(prompt).activations and .attention"),
    **dict.fromkeys(("ablate", "knock_out", "switch_off"), "result.run(prompt, off=[node])"),
    **dict.fromkeys(("table", "to_table"), "result.circuit.to_frame() or result.effects()"),
    **dict.fromkeys(("patch", "intervene"), "result.run(prompt, patch={node: other prompt or value})"),
    **dict.fromkeys(("plot", "draw", "image", "svg"), "result.picture, which a notebook shows, or result.place / 'circuit.svg'"),
    **dict.fromkeys(("show", "view", "html", "page"), "result.open(), or result.report, the path of the page"),
    **dict.fromkeys(("summary", "metrics", "stats", "scores"), "result.loss, result.accuracy or result.numbers"),
    **dict.fromkeys(("prompts", "data", "examples", "dataset"), "result.held_out"),
    **dict.fromkeys(("name", "id", "path"), "result.task and result.folder"),
    "compare": "extractor.compare(result, other)",
}
NUMBERS = ("model", "target_loss", "meets_target", "loss", "accuracy", "ablation", "validation")  # of result.json, in all versions


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

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self.tasks)

    def __contains__(self, task: object) -> bool:
        return task in self.tasks

    if not TYPE_CHECKING:  # for which every name would exist

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, _INSTEAD)

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

    @property
    def picture(self) -> CircuitPicture:
        """The picture of the circuit, which a notebook shows. Raises NotFound without the file."""
        if not (path := self.place / "circuit.png").is_file():
            raise NotFound(f"there is no picture {path}; copy the complete result")
        return CircuitPicture(path)

    def open(self) -> Path:
        """Open the page in a browser. Returns its path. Raises ExtractorError where there is no browser, NotFound without the page."""
        open_page(self.report)
        return self.report

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

        with without_bars():
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
        """The circuit as a module that needs no model: token ids (B, T) or (T,) in, logit differences (B,) out, not calibrated.

        Results of earlier versions have the answers in the order of their token ids: name the first and the second there.
        """
        from extractor.circuits.compiled import FILE, CompiledCircuit
        from extractor.results.asked import batched_ids

        if not (self.place / FILE).is_file() and (self.place / "circuit.json").is_file():
            resampled = self.numbers["ablation"] == "resample"
            why = "under resampling" if resampled else "of a model with gates or rotary positions"
            why = f"a circuit {why} is not compiled"
            raise NotFound(f"{self.place} has no {FILE}: {why}; use result.run(text)")
        found = CompiledCircuit.load(self.place / FILE)
        found.register_forward_pre_hook(lambda _module, given: (batched_ids(given[0]), *given[1:]) if given else None)
        return found

    @cached_property
    def held_out(self) -> tuple[HeldOutPrompt, ...]:
        """The held-out prompts; those of a pair follow each other."""
        return read_held_out(self.place / "held_out.safetensors", self.tokenizer)

    def run(
        self,
        prompt: str | HeldOutPrompt,
        off: str | Node | Iterable[str | Node] = (),
        patch: Mapping[str, Value] | Mapping[Node, Value] | None = None,
        scale: Mapping[str, float] | Mapping[Node, float] | None = None,
        answers: tuple[str, str] | None = None,
    ) -> PromptRun:
        """The circuit on a prompt: a text, or a prompt of `held_out` with the answers of its pair.

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

    def effects(self) -> Rows:
        """{source, target, weight, rise of the loss without it in nats} of every edge that was measured, the largest rise first.

        A list of dicts, which a notebook shows as a table; `.to_frame()` is a pandas DataFrame.
        """
        weights = {(edge.source, edge.target): edge.weight for edge in self.circuit.edges}
        try:
            measured = self.numbers["validation"]["edge_effects"]["edges"]
            found = [{"source": a, "target": b, "weight": weights[a, b], "rise": rise} for a, b, rise in measured]
        except (KeyError, TypeError, ValueError):
            raise BrokenArtifact(f"{self.place / 'result.json'} and circuit.json do not have the same edges") from None
        return Rows(sorted(found, key=lambda one: -one["rise"]))

    def steer(self, prompt: str, toward: str, nodes: str | Node | Iterable[str | Node] = (), strength: float = 1.0) -> dict[str, Any]:
        """The dense model's answers after `prompt` while nodes have their values after `toward`; see `extract steer`.

        nodes   none: the best one of the circuit. Raises UsageError where the result has no dense model, and what `run` raises.
        """
        from extractor.bridges.steering.prompt import open_result, steer_result

        if not isinstance(strength, int | float):
            raise UsageError(f"strength is a number, not {type(strength).__name__}; nodes are the third argument")
        with without_bars():
            return steer_result(open_result(self.folder, self.task), toward, prompt, node_ids_of(nodes), None, [float(strength)])

    @cached_property
    def graph(self) -> CircuitMask:
        """The circuit as masks of the model."""
        from extractor.circuits.compiled import mask_of

        return mask_of(self.circuit, self.model)

    @cached_property
    def means(self) -> Mapping[str, Tensor]:
        """{site: (width,)} what an ablated node is, by the paper's standard."""
        from extractor.circuits.mean_activations import Means

        means = Means.from_stored(files.read_tensors(self.place / "means.safetensors"))
        return {site: 0 * mean for site, mean in means.items()} if self.numbers["ablation"] == "zero" else means


def load(result: str | os.PathLike[str] | HasId | None = None, task: str | None = None) -> Result:
    """The result of a circuit job; without `task` that of its only circuit, or of the first by name. Loads no model.

    result   a folder; the id of a job of the service, whose result is downloaded if need be; one of `extractor.jobs()`; None: the newest
             job that has finished with a task

    Starts neither a worker nor a server. Raises NotFound where there is no finished result of a circuit job, UsageError for a task without
    a circuit, ServiceUnavailable.
    """
    place = place_of(result)
    found = _tasks(place)
    if not found:
        raise NotFound(f"the result in {place} has no circuit: it is of a training without tasks, or no task met the conditions of the job")
    if task is not None and task not in found:
        raise UsageError(f"the result in {place} has no circuit of {task!r}; it has {', '.join(found)}")
    return Result(place, task or found[0])


def _tasks(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(place.parent.name for place in folder.glob("circuits/*/circuit.json")))


def _circuit(path: Path) -> Circuit:
    found = files.read_json(path)
    try:
        return Circuit.from_json(found)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenArtifact(f"{path} is not a circuit: {first_line(error) or type(error).__name__}") from None
