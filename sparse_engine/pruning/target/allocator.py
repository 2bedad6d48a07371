"""The allocator of a target: the levels of all layers within the budget that lose least."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.target.adjust import fit, refill
from sparse_engine.pruning.target.budget import DENSE, Budget, Bytes, Counts, Times
from sparse_engine.pruning.target.controlled import control_levels
from sparse_engine.pruning.target.levels import Level, affordable, level_of, total, worthwhile
from sparse_engine.pruning.target.machine import Machine, Weights
from sparse_engine.pruning.target.report import TargetLayer, TargetReport, cost_text
from sparse_engine.pruning.target.search import search
from sparse_engine.pruning.target.solve import solve
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.target.trial import trying

# A prediction that differs by more from what is measured is corrected, up to ROUNDS times.
TOLERANCE = 0.04
ROUNDS = 3


class OutOfReachError(UsageError):
    """A target that even the cheapest levels miss.

    Attributes:
        best: what the model then costs.
    """

    def __init__(self, message: str, best: float) -> None:
        super().__init__(message)
        self.best = best


class ByTarget(Allocator):
    """Chooses granularity and sparsity of each layer so that the model meets a target.

    Args:
        target: the goal.
        granularities: what may be chosen for a layer, besides leaving it dense.
        machine: measures layers and whole models; None until it is known.
        seed: of the search.
        progress: called with (done, total, text).

    Attributes:
        predicted: what the model should cost, once the levels were chosen.
        error: of the outputs of the whole model with these levels, each layer refitted alone; None
            if the whole model cannot be run.
    """

    name = "target"
    needs = ("hessian",)

    def __init__(
        self,
        target: Target,
        granularities: Sequence[Granularity],
        machine: Machine | None = None,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.target = target
        self.granularities = granularities
        self._machine = machine
        self.seed = seed
        self._report = progress or (lambda done, total, text: None)
        self._budget: Budget
        self._chosen: dict[str, Level] = {}
        self._evaluations = 0
        self.predicted = 0.0
        self.error: float | None = None

    def __str__(self) -> str:
        return f"target({self.target})"

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        if self._chosen:
            return self.settings
        layers = list(dense.layers)
        settings = [Setting(g, s) for g in self.granularities for s in self._sparsities(g)]
        budget = self._budget = self._make_budget(layers, settings)
        tables = self._tables(dense, settings)
        picks = solve(tables, budget.of_layers)
        assert picks is not None  # the cheapest levels are within the budget
        output_error = dense.output_error()
        if self.target.search_seconds and output_error:
            picks = self._search(layers, tables, self._check(layers, tables, picks), output_error)
        picks = self._check(layers, tables, picks)
        if output_error:
            with trying(layers, tables, output_error) as error_of:
                self.error = error_of(picks)
        chosen = [table[pick] for table, pick in zip(tables, picks, strict=True)]
        self._chosen = {layer.name: level for layer, level in zip(layers, chosen, strict=True)}
        self.predicted = budget.predict(total(tables, picks))
        return self.settings

    @property
    def is_bound(self) -> bool:
        """Whether it can measure."""
        return self._machine is not None

    @property
    def settings(self) -> dict[str, Setting]:
        """What was chosen for each layer."""
        return {name: level.setting for name, level in self._chosen.items()}

    def finish(self, layers: Sequence[Layer], report: PruneReport) -> None:
        """Measure the pruned model, and fill in the report of the target."""
        weights: dict[str, tuple[Tensor, Tensor | None]] = {
            layer.name: (layer.weight.detach(), layer.linear._parameters.get("bias"))
            for layer in layers
        }
        budget = self._budget
        measured, formats = budget.measure(weights)
        rows = [
            TargetLayer(
                name,
                str(level.setting.granularity),
                level.setting.sparsity,
                formats.get(name, level.format),
                budget.slope * level.cost,
                level.error**0.5,
            )
            for name, level in self._chosen.items()
        ]
        report.target = TargetReport(
            str(self.target),
            budget.unit,
            budget.limit,
            self.predicted,
            measured,
            budget.dense,
            budget.fixed,
            self.target.tokens if self.target.is_time else 0,
            self._evaluations,
            tuple(rows),
            self.error,
        )

    def _sparsities(self, granularity: Granularity) -> tuple[float, ...]:
        fixed = granularity.fixed_sparsity
        return self.target.sparsities if fixed is None else (fixed,)

    def _make_budget(self, layers: Sequence[Layer], settings: Sequence[Setting]) -> Budget:
        machine = self._machine
        assert machine is not None
        if self.target.goal == "size_mb":
            return Bytes(machine, layers)
        if not self.target.is_time:
            return Counts(machine.model, self.target, layers, machine.dense)
        budget = Times(machine, layers)
        budget.prepare(settings, self._report)
        return budget

    def _tables(self, dense: DenseModel, settings: Sequence[Setting]) -> list[list[Level]]:
        """By layer, in the order of `dense.layers`, its levels."""
        price = self._budget.price
        tables: dict[str, list[Level]] = {}
        tried: dict[str, dict[Granularity, list[float]]] = {}
        least = 0.0
        for layer in dense.layers:
            fitting = [s for s in settings if s.granularity.fits(*layer.shape)]
            prices = {setting: price(layer, setting)[1] for setting in (DENSE, *fitting)}
            tables[layer.name] = [Level(DENSE, *price(layer, DENSE), 0.0)]
            tried[layer.name] = affordable(prices)
            least += min(prices.values())
        if least > self._budget.of_layers:
            raise self._out_of_reach(least)
        for done, (layer, candidates) in enumerate(dense.candidates(tried)):
            for candidate in candidates:
                setting = candidate.setting
                text = f"{layer.name}: {setting.granularity} at {setting.sparsity:.0%}"
                self._report(done, len(tables), text)
                tables[layer.name].append(level_of(candidate, *price(layer, setting)))
        found = [worthwhile(tables[layer.name]) for layer in dense.layers]
        if self._budget.needs_a_sparse_layer:
            _keep_one_sparse(found)
        return found

    def _out_of_reach(self, costs: float) -> OutOfReachError:
        """The error for a budget that even the cheapest levels exceed."""
        budget = self._budget
        best = budget.predict(costs)
        reached = f"{cost_text(best)} {budget.unit}"
        if self.target.goal == "speedup":
            reached = f"{budget.dense / best:.2f} ({reached})"
        return OutOfReachError(
            f"target {self.target} is out of reach: the best is {reached}; nothing was pruned", best
        )

    def _check(self, layers: list[Layer], tables: list[list[Level]], picks: list[int]) -> list[int]:
        """Measure the choice; where the prediction is wrong, correct it and fit the choice."""
        if not self.target.is_time:
            return picks
        budget = self._budget
        for done in range(ROUNDS):
            self._report(done, ROUNDS, "measuring the choice")
            costs = total(tables, picks)
            measured = self._if_wrong(pruned_weights(layers, tables, picks), budget.predict(costs))
            if measured is None:
                break
            budget.correct(costs, measured)
            fitted = fit(tables, picks, budget.of_layers)
            if fitted is None:
                raise self._out_of_reach(sum(table[0].cost for table in tables))
            picks = refill(tables, fitted, budget.of_layers)
        return picks

    def _if_wrong(self, weights: Weights, predicted: float) -> float | None:
        """What a choice costs if that differs from the prediction, also a second time."""
        measured = predicted
        for _ in range(2):  # another program may have slowed down the first
            measured, _formats = self._budget.measure(weights)
            if abs(measured / predicted - 1) <= TOLERANCE:
                return None
        return measured

    def _search(
        self,
        layers: list[Layer],
        tables: list[list[Level]],
        picks: list[int],
        output_error: Callable[[], float],
    ) -> list[int]:
        """Improve the choice by the error of the model's outputs, as long as the target allows."""
        began, seconds = time.monotonic(), self.target.search_seconds

        def proceed(least: float) -> bool:
            spent = min(time.monotonic() - began, seconds)
            text = f"searching: output error {least:.4g}, {seconds - spent:.0f} s left"
            self._report(int(spent), max(int(seconds), 1), text)
            return spent < seconds

        with trying(layers, tables, output_error) as error_of:

            def evaluate(picks: Sequence[int]) -> float:
                self._evaluations += 1
                return error_of(picks)

            find = control_levels if self.target.search == "controller" else search
            return find(tables, picks, self._budget.of_layers, evaluate, proceed, self.seed)


def _keep_one_sparse(tables: list[list[Level]]) -> None:
    """Take the dense level from the layer that loses least without it, in place."""
    several = [table for table in tables if len(table) > 1]
    if several:
        min(several, key=lambda table: table[-2].error).pop()


def pruned_weights(
    layers: Sequence[Layer], tables: Sequence[Sequence[Level]], picks: Sequence[int]
) -> Weights:
    """The weights and biases of the chosen levels, by layer; none for a layer that stays dense."""
    chosen = {la.name: table[pick] for la, table, pick in zip(layers, tables, picks, strict=True)}
    return {
        name: (level.stored.to_dense(), level.bias)
        for name, level in chosen.items()
        if level.stored is not None
    }
