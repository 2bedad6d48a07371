"""The rounds of `prune_until`: what happens in each, and what is kept of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import SparseEngineError, UsageError, one_line
from sparse_engine.pruning import PruneReport
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.pruning.target.target import Target
from sparse_engine.tuning.clock import BudgetSpent, Clock, duration
from sparse_engine.tuning.cost import Costs
from sparse_engine.tuning.journal import Journal
from sparse_engine.tuning.method import RoundMethod
from sparse_engine.tuning.report import UntilReport
from sparse_engine.tuning.retrain import Retrain
from sparse_engine.tuning.rounds import FAILED, PASSED, Round, Stop
from sparse_engine.tuning.rules import Rules
from sparse_engine.tuning.state import State, zeros_of_matrices

MAY_RETURN = 1e-3
"""Share of the zeros that a training may lose, such as those of an embedding that began at zero."""


class MetricError(UsageError):
    """The metric fails, or is no finite number."""


class Run:
    """A run of `prune_until`, whose arguments are validated.

    Args:
        model: is changed in place.
        rules: see there.
        methods: what every round tries.
        train: as `prune_until` takes it.
        batches: calibration inputs.
        journal: of the folder, if there is one.
        budget: in seconds; None for no limit.
        progress: as `prune_until` takes it.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Rules,
        methods: Sequence[RoundMethod],
        train: Any,
        batches: Sequence[Batch],
        journal: Journal | None,
        budget: float | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._model, self._rules, self._methods, self._train = model, rules, methods, train
        self._journal = journal
        self._progress = progress or (lambda done, total, text: None)
        self._seed = int(methods[0].arguments.get("seed", 0))
        self._modes = [(module, module.training) for module in model.modules()]
        self._rounds = list(journal.rounds) if journal is not None else []
        rules.check(self._rounds)
        self._budget = budget
        self._clock = Clock(budget, sum(one.seconds for one in self._rounds))
        known = None if journal is None else journal.dense
        self._dense_metric = rules.quality.measure(model) if known is None else known
        rules.quality.check_dense(self._dense_metric)
        target = rules.target if isinstance(rules.target, Target) else None
        needs_dense = target is not None or isinstance(train, Retrain)
        self._dense = copy.deepcopy(model).eval() if needs_dense else model
        self._costs = None if target is None else Costs(target, self._dense, batches)
        self._best = State(model)
        if journal is not None and any(one.passed for one in self._rounds):
            journal.restore(model)
            self._best = State(model)
        elif journal is not None and known is None:
            journal.save([], self._dense_metric)

    def report(self) -> UntilReport:
        """Run all rounds; the model is the best one afterwards."""
        began = monotonic()
        stop, unfinished = self._until_stopped()
        quality = self._rules.quality
        return UntilReport(
            metric=quality.name,
            higher_is_better=quality.higher_is_better,
            dense=self._dense_metric,
            max_drop=quality.max_drop,
            relative=quality.relative,
            target="" if self._rules.target is None else str(self._rules.target),
            unit=self._rules.target.goal if isinstance(self._rules.target, Target) else "",
            rounds=[*self._rounds, *unfinished],
            stop=stop.kind,
            reason=stop.reason,
            seconds=monotonic() - began,
        )

    def _until_stopped(self) -> tuple[Stop, list[Round]]:
        """Why the run ended, and the round that did not get to its end, if there is one."""
        while not isinstance(decision := self._next(), Stop):
            current = Round(len(self._rounds) + 1, decision)
            round_began = monotonic()
            try:
                self._round(current)
                continue
            except BudgetSpent:
                assert self._budget is not None
                stop = Stop("budget", f"{duration(self._budget)} were over inside of a round")
            except KeyboardInterrupt:
                stop = Stop("interrupt", "the run was interrupted")
            except MetricError as error:
                stop = Stop("metric", str(error))
            except Exception as error:
                kind = "" if isinstance(error, SparseEngineError) else f"{type(error).__name__}: "
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                stop = Stop("error", f"{kind}{first[:300]}")
            finally:
                self._restore()
            if any(one.number == current.number for one in self._rounds):
                return stop, []  # it is complete, and could not be written
            return stop, [replace(current, seconds=monotonic() - round_began)]
        return decision, []

    def _next(self) -> float | Stop:
        """The sparsity of the next round, or why there is none."""
        decision = self._rules.next(self._rounds)
        if isinstance(decision, float) and not self._clock.has_time_for_another(self._rounds):
            budget = duration(self._budget or 0)
            return Stop("budget", f"no further round fits into the budget of {budget}")
        return decision

    def _round(self, current: Round) -> None:
        """Prune, train, evaluate; the best state and the rounds are what they are afterwards."""
        began = monotonic()
        tried: list[tuple[float, Round, State | None]] = []
        for index, method in enumerate(self._methods):
            if index:
                self._best.restore()
            self._set_modes()
            with torch.random.fork_rng():
                torch.manual_seed(self._seed + current.number)
                report = self._prune_and_train(method, current)
                value = self._measure()
            drop = self._rules.quality.drop(value, self._dense_metric)
            found = replace(current, method=report.method, metric=value, drop=drop)
            is_only = len(self._methods) == 1
            tried.append((drop, found, None if is_only else State(self._model)))
        drop, found, state = min(tried, key=lambda one: one[0])
        if state is not None:
            state.restore()
        passed = drop <= self._rules.quality.max_drop
        if passed and self._costs is not None:
            cost = self._costs.measure(self._model)
            found = replace(found, cost=cost.value, less=cost.less)
        best = (state or State(self._model)) if passed else self._best
        found = replace(found, verdict=PASSED if passed else FAILED, seconds=monotonic() - began)
        self._best, self._rounds = best, [*self._rounds, found]
        if self._journal is not None:
            self._journal.save(self._rounds, self._dense_metric, self._model if passed else None)

    def _prune_and_train(self, method: RoundMethod, current: Round) -> PruneReport:
        before = max((one.sparsity for one in self._rounds if one.passed), default=0.0)
        progress = self._telling(current)
        report = method.prune(self._model, current.sparsity, before, progress)
        zeros = zeros_of_matrices(self._model)
        if isinstance(self._train, Retrain):
            has_zeros = bool(report.layers)
            seed = self._seed + current.number
            self._train.run(self._model, self._dense, has_zeros, seed, progress)
        elif self._train is not None:
            with one_line("the function given as train fails"):
                self._train(self._model, current.number)
        self._clock.check()
        if zeros_of_matrices(self._model) < (1 - MAY_RETURN) * zeros:
            raise UsageError(
                "train fills weights that were pruned: hold them with se.Pruner and a recipe with "
                "hold"
            )
        return report

    def _measure(self) -> float:
        try:
            return self._rules.quality.measure(self._model)
        except UsageError as error:
            raise MetricError(str(error)) from error

    def _telling(self, current: Round) -> ProgressCallback:
        """The caller's progress, which also watches the budget."""
        where = f"round {current.number}, sparsity {current.sparsity:g}"

        def tell(done: int, total: int, text: str) -> None:
            self._clock.check()
            self._progress(done, total, f"{where}: {text}")

        return tell

    def _set_modes(self) -> None:
        for module, training in self._modes:
            module.training = training

    def _restore(self) -> None:
        self._best.restore()
        self._set_modes()
