"""Every candidate of `search` in every fold: prune, train, evaluate, and back again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import one_line
from sparse_engine.pruning import prune
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.tuning.candidate import Candidate, label_of
from sparse_engine.tuning.cost import Cost, Costs, parameters_of
from sparse_engine.tuning.folds import Fold
from sparse_engine.tuning.quality import is_finite, measured
from sparse_engine.tuning.state import State


@dataclass(frozen=True)
class Trials:
    """How candidates are compared.

    Attributes:
        model: is changed and restored.
        metric: metric(model), or metric(model, items) with folds.
        train: train(model, items); None for no training.
        options: arguments of `prune` for all candidates, without calibration inputs.
        calibration: model inputs, or a function that makes them of the items of the other folds.
        folds: None alone stands for no data.
        seed: of torch in every trial.
        costs: measures size or time; None for neither.
    """

    model: nn.Module
    metric: Callable[..., float]
    train: Callable[[nn.Module, list[Any]], Any] | None
    options: Mapping[str, Any]
    calibration: Any
    folds: Sequence[Fold | None]
    seed: int
    costs: Costs | None

    def dense(self) -> tuple[float, ...]:
        """The metric of the model as it is, in each fold."""
        return tuple(self._evaluate(fold) for fold in self.folds)

    def run(
        self, combinations: Sequence[dict[str, Any]], progress: ProgressCallback | None
    ) -> list[Candidate]:
        """All candidates; the model is as before afterwards, whatever happens."""
        found: list[Candidate] = []
        total = len(combinations) * len(self.folds)
        whole = parameters_of(self.model)
        with self._restored() as restore:
            for arguments in combinations:
                scores: list[float | None] = []
                removed: list[float] = []
                cost: Cost | None = None
                for index, fold in enumerate(self.folds):
                    score = self._score(arguments, fold, index)
                    scores.append(score if is_finite(score) else None)
                    removed.append(1 - parameters_of(self.model) / whole)
                    if self.costs is not None and index == 0:
                        cost = self.costs.measure(self.model)
                    restore()
                    if progress is not None:
                        done = len(found) * len(self.folds) + index + 1
                        progress(done, total, label_of(arguments))
                share = math.fsum(removed) / len(removed)
                values = (None, None) if cost is None else (cost.value, cost.less)
                found.append(Candidate(arguments, tuple(scores), share, *values))
        return found

    def _score(self, arguments: Mapping[str, Any], fold: Fold | None, index: int) -> float:
        calibration = self.calibration
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + index)
            if fold is not None and callable(calibration):
                with one_line("the function given as calibration fails"):
                    calibration = list(calibration(fold.training))
            values = {"seed": self.seed, **self.options, **arguments, "calibration": calibration}
            prune(self.model, **values)
            if self.train is not None and fold is not None:
                with one_line("the function given as train fails"):
                    self.train(self.model, fold.training)
            return self._evaluate(fold)

    def _evaluate(self, fold: Fold | None) -> float:
        items = () if fold is None else (fold.held_out,)
        return measured(self.model, self.metric, *items)

    @contextmanager
    def _restored(self) -> Iterator[Callable[[], None]]:
        """A function that makes the model what it was; called at the end in any case."""
        state = State(self.model)
        try:
            yield state.restore
        finally:
            state.restore()
