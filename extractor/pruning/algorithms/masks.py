"""Learned masks (Sec. 2.2, App. A.5), their hyper-parameters searched for this model and task.

The paper re-tunes them with CARBS, 32 rounds of 8 runs. Here Optuna's TPE proposes a population of trials, which are learned together; the
value of a trial is the number of edges of the smallest prefix of its ranking that reaches the target. Trials that look bad half-way stop.
Every round is stored: an interrupted search resumes after its last finished round, or from the checkpoint of the current one.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor import files
from extractor.circuits.graph import CircuitMask
from extractor.pruning.bisection import smallest
from extractor.pruning.elements import Nodes
from extractor.pruning.mask_sets import MaskTrial, learn_scores
from extractor.pruning.problem import PruningProblem

if TYPE_CHECKING:
    import optuna

TRIAL_PAIRS = 256  # of the select split, by which trials are compared
# Factors round the spec's values, searched evenly in logs.
_RANGE = {"k_coef": 10.0, "lr": 4.0, "weight_decay": 10.0, "temperature": 3.0}


def rank(problem: PruningProblem) -> Tensor:
    """Scores (N,) of the best trial; of a model without a live node all are -inf."""
    search = Search(problem)
    return search.run() if len(search.nodes) else torch.full((len(problem.index),), -torch.inf, device=problem.model.device)


class Search:
    """Trials so far: their parameters, values (edges at the target; None: stopped half-way) and the best one's scores."""

    def __init__(self, problem: PruningProblem):
        self.problem = problem
        self.graph = problem.full_mask().without_dead()
        self.nodes = Nodes(self.graph)
        self.trials: list[dict[str, Any]] = []
        self.best = torch.zeros(len(self.nodes))
        pairs = max(1, min(TRIAL_PAIRS, problem.select.pairs) // problem.standard.copies)
        self._scorer = problem.scorer(problem.select.pick(torch.arange(pairs)))

    def run(self) -> Tensor:
        """Scores (N,); nodes that are dead in the full model come last."""
        spec, began = self.problem.spec, time.monotonic()
        self._restore()
        while len(self.trials) < self._wanted() and not self._is_late(began):
            self._round(len(self.trials) // spec.population)
        scores = torch.full((len(self.problem.index),), -torch.inf, device=self.problem.model.device)
        scores[self.nodes.nodes] = self.best.to(scores.device)
        return scores

    def _wanted(self) -> int:
        return len(self.problem.spec.k_coefs) or self.problem.spec.trials

    def _is_late(self, began: float) -> bool:
        minutes = self.problem.spec.minutes
        return minutes is not None and bool(self.trials) and time.monotonic() - began > 60 * minutes

    def _round(self, number: int) -> None:
        problem = self.problem
        count = min(problem.spec.population, self._wanted() - len(self.trials))
        trials = self._fixed(count) if problem.spec.k_coefs else self._proposed(number, count)
        env = problem.env(f"round{number}")
        scores, alive = learn_scores(problem, self.nodes, trials, problem.spec.steps, env, self._edges_at_target)
        values = self._edges_at_target(scores)
        lowest = min((t["value"] for t in self.trials if t["value"] is not None), default=float("inf"))
        for row, (trial, value, lives) in enumerate(zip(trials, values.tolist(), alive.tolist(), strict=True)):
            self.trials.append({"parameters": asdict(trial), "value": value if lives else None, "edges": value})
            if lives and value < lowest:
                lowest, self.best = value, scores[row]
        self._save()

    def _edges_at_target(self, scores: Tensor) -> Tensor:
        """Edges (P,) of the smallest prefix of each ranking (P, E) that reaches the target; more than all edges where none does."""
        place = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)

        def graphs(k: Tensor) -> list[CircuitMask]:
            return [self.nodes.graph(row < most) for row, most in zip(place, k, strict=True)]

        target = self.problem.select_target(self.problem.target)
        # A set that collapsed needs most of the model: a search beyond twice its own size is not worth the time.
        most = (2 * (scores > 0).sum(-1).cpu()).clamp(min(32, scores.shape[1]), scores.shape[1])
        k = smallest(lambda k: self._scorer.losses(graphs(k)).to(k.device) <= target, most)
        every = self.graph.edge_count()
        found = [
            graph.without_dead().edge_count() if reached else every + 1 for graph, reached in zip(graphs(k), (k > 0).tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.float64)

    # proposals

    def _centre(self, **changes: float) -> MaskTrial:
        spec = self.problem.spec
        values = {"k_coef": spec.k_coef, "lr": spec.lr, "weight_decay": spec.weight_decay, "temperature": spec.temperature}
        return MaskTrial(**{**values, "beta2": spec.beta2, "warmup": spec.warmup, "seed": self.problem.seed, **changes})  # type: ignore[arg-type]

    def _fixed(self, count: int) -> list[MaskTrial]:
        return [self._centre(k_coef=k) for k in self.problem.spec.k_coefs[len(self.trials) :][:count]]

    def _proposed(self, number: int, count: int) -> list[MaskTrial]:
        """The first round spreads k_coef evenly round the centre; the others ask Optuna, which sees all trials so far."""
        if number == 0:
            steps = [2 * (i + 0.5) / count - 1 for i in range(count)]
            return [self._centre(k_coef=self.problem.spec.k_coef * 10 ** (step / 2), seed=self._seed(i)) for i, step in enumerate(steps)]
        study = self._study(number)
        asked = [study.ask(self._space()) for _ in range(count)]
        return [self._centre(**one.params, seed=self._seed(len(self.trials) + i)) for i, one in enumerate(asked)]

    def _seed(self, trial: int) -> int:
        return self.problem.seed * 10_007 + trial

    def _space(self) -> dict[str, Any]:
        import optuna

        spec = self.problem.spec
        space: dict[str, Any] = {
            name: optuna.distributions.FloatDistribution(getattr(spec, name) / factor, getattr(spec, name) * factor, log=True)
            for name, factor in _RANGE.items()
            if getattr(spec, name) > 0
        }
        return space

    def _study(self, number: int) -> optuna.Study:
        """A study with all trials so far. Its proposals depend only on them and the seed, so that an interrupted search repeats them."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self._seed(number), n_startup_trials=1, multivariate=True, constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        space = self._space()
        for trial in self.trials:
            chosen = {name: trial["parameters"][name] for name in space}
            study.add_trial(optuna.trial.create_trial(params=chosen, distributions=space, value=trial["edges"]))
        return study

    # state of the search

    def _save(self) -> None:
        work = self.problem.work
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            files.write_tensors(work / f"search-{len(self.trials)}.safetensors", {"best": self.best})
            files.write_json(work / "search.json", {"trials": self.trials})

    def _restore(self) -> None:
        work = self.problem.work
        if work is not None and (work / "search.json").is_file():
            self.trials = files.read_json(work / "search.json")["trials"]
            self.best = files.read_tensors(work / f"search-{len(self.trials)}.safetensors")["best"]
