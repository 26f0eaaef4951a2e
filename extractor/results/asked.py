"""What a user asks of a circuit on a prompt, checked: nodes, edits, answers; then run (`prompt_run`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration, Circuit, Node, node_id_of, node_ids_of
from extractor.data.encoding import text_ids, token_texts, without_embedding
from extractor.data.prompts import AnswerMismatch, TaskBatch, with_answer
from extractor.errors import UsageError
from extractor.results.held_out import HeldOutPrompt
from extractor.results.prompt_run import NodeEdits, PromptRun, run_prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.circuits.graph import CircuitMask

Value = str | HeldOutPrompt | float | Tensor  # of a node: that in another prompt, a number, or numbers (T,)
_UNCALIBRATED = Calibration(1.0, 0.0)


@dataclass(frozen=True)
class Asked:
    """Runs of one circuit. means: {site: (width,)} what an ablated node is."""

    circuit: Circuit
    tokenizer: Tokenizer
    graph: CircuitMask
    means: Mapping[str, Tensor]

    def run(
        self,
        prompt: str | HeldOutPrompt,
        off: str | Node | Iterable[str | Node],
        patch: Mapping[str, Value] | Mapping[Node, Value] | None,
        scale: Mapping[str, float] | Mapping[Node, float] | None,
        answers: tuple[str, str] | None,
    ) -> PromptRun:
        """See `Result.run`."""
        if isinstance(prompt, HeldOutPrompt):
            answers = answers or (None if self.circuit.answer_ids else prompt.answers)
            prompt = prompt.prompt
        ids, circuit = self._ids(prompt), self.circuit
        without = [circuit[node].id for node in node_ids_of(off)]
        changed, factors = ({circuit[node_id_of(node)].id: value for node, value in _pairs(some).items()} for some in (patch, scale))
        edited = [*without, *changed, *factors]
        if twice := next((node for node in edited if edited.count(node) > 1), None):
            raise UsageError(f"node {twice} is edited twice: a node can be off, patched or scaled")
        values = {node: self._values(node, value, len(ids), answers) for node, value in changed.items()}
        scales = {node: float(_finite(node, factor)) for node, factor in factors.items()}
        return self._run(prompt, answers, NodeEdits(frozenset(without), values, scales))

    def _ids(self, prompt: str) -> list[int]:
        if not isinstance(prompt, str):
            raise UsageError(f"a prompt is one text, not {type(prompt).__name__}; run several one by one")
        ids, longest = text_ids(self.tokenizer, prompt), self.graph.model.config.n_ctx
        if not 0 < len(ids) <= longest:
            raise UsageError(f"the prompt has {len(ids)} tokens, the model takes 1 to {longest}")
        if missing := without_embedding(max(ids), self.tokenizer, self.graph.model.config.vocab_size):
            raise UsageError(f"the prompt cannot be run: {missing}")
        return ids

    def _run(self, prompt: str, answers: tuple[str, str] | None, edits: NodeEdits) -> PromptRun:
        ids = self._ids(prompt)
        (first, second), calibration = self._answers(prompt, answers)
        last = torch.tensor([len(ids) - 1])
        batch = TaskBatch(torch.tensor([ids]), last, torch.tensor([first]), torch.tensor([second]), torch.ones(1))
        one, other = token_texts(self.tokenizer, [first, second])
        tokens = tuple(token_texts(self.tokenizer, ids))
        return run_prompt(self.graph, self.means, self.circuit.nodes, calibration, batch, tokens, (one, other), edits)

    def _answers(self, prompt: str, answers: tuple[str, str] | None) -> tuple[tuple[int, int], Calibration]:
        """The tokens of first and second answer, and the calibration that belongs to them in this order."""
        circuit = self.circuit
        if answers is None:
            if not circuit.answer_ids:
                raise UsageError(
                    f"the answers of {circuit.task!r} vary from pair to pair: name two, as in run(prompt, answers=(' a', ' b'))"
                )
            return circuit.answer_ids, circuit.calibration
        asked = self._answer_ids(prompt, answers)
        if asked == circuit.answer_ids or not circuit.answer_ids:
            return asked, circuit.calibration
        if asked[::-1] == circuit.answer_ids:
            return asked, Calibration(circuit.calibration.scale, -circuit.calibration.shift)
        return asked, _UNCALIBRATED

    def _answer_ids(self, prompt: str, answers: tuple[str, str]) -> tuple[int, int]:
        if isinstance(answers, str) or len(answers) != 2 or not all(isinstance(answer, str) for answer in answers):
            raise UsageError("answers are two texts, as in answers=(' a', ' b')")
        first, second = (self._answer_id(prompt, answer) for answer in answers)
        if first == second:
            raise UsageError(f"the answers {answers[0]!r} and {answers[1]!r} are the same token")
        return first, second

    def _answer_id(self, prompt: str, answer: str) -> int:
        try:
            return with_answer(prompt, answer, self.tokenizer)[1]
        except AnswerMismatch as mismatch:
            raise UsageError(f"after this prompt the answer {answer!r} is not one token: {mismatch}") from None

    def _values(self, node: str, given: Value, length: int, answers: tuple[str, str] | None) -> Tensor:
        """The values (T,) that a node is given at the `length` tokens of a prompt."""
        given = given.prompt if isinstance(given, HeldOutPrompt) else given
        if isinstance(given, str):
            other = len(self._ids(given))
            if other != length:
                raise UsageError(f"the prompt has {length} tokens, {given!r} has {other}: a node is patched token by token")
            return self._run(given, None if self.circuit.answer_ids else answers, NodeEdits()).activations[node]
        values = _finite(node, given)
        if values.dim() and values.shape != (length,):
            raise UsageError(f"values of {node} have the shape {tuple(values.shape)}; give a number, or one for each of {length} tokens")
        return values.expand(length)


def _pairs(edits: Mapping | None) -> Mapping:
    if edits is not None and not isinstance(edits, Mapping):
        raise UsageError(f"patch and scale are given as {{node: value}}, not as {type(edits).__name__}")
    return edits or {}


def _finite(node: str, value: object) -> Tensor:
    """A number or numbers as a tensor. Raises UsageError for anything else, and for values that are not finite."""
    try:
        found = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"the value of {node} is a number, values for each token, or a prompt; not {type(value).__name__}") from None
    if not bool(found.isfinite().all()):
        raise UsageError(f"the value of {node} is not finite")
    return found


def batched_ids(given: object) -> Tensor:
    """Token ids (B, T) from a tensor or lists, of several prompts or (T,) of one. Raises UsageError for a text and anything else."""
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        ids = torch.empty(0)
    if not ids.numel() or ids.dim() not in (1, 2) or ids.is_floating_point():
        raise UsageError(
            "a compiled circuit reads token ids (B, T) or (T,), such as result.tokenizer.encode(text).ids; result.run(text) reads a text"
        )
    return ids.view(-1, ids.shape[-1])
