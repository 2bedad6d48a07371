"""Prune: at every event of a schedule the model is pruned as `prune` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import PrivateAttr, model_validator

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import Allocator
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.driver import prune
from sparse_engine.pruning.granularity import Granularity, parse_granularity
from sparse_engine.pruning.method import make_method
from sparse_engine.pruning.overrides import Override, find_overrides
from sparse_engine.pruning.plan import Selection
from sparse_engine.pruning.recovery import Recovery
from sparse_engine.pruning.zeros import plan_of
from sparse_engine.training.layers import TrainedLayer, trained_layers
from sparse_engine.training.modifiers.scheduled import Scheduled, Seed
from sparse_engine.training.training import Training


class Prune(Scheduled):
    """Weights are set to zero by a criterion, and stay zero while the others are trained.

    The options that `Scheduled` does not have are the arguments of `se.prune`. At each event the
    criterion, and the recovery if there is one, see the weights as they are then; calibration
    inputs are those of the `Pruner`. Overrides with a sparsity of their own rise with the schedule
    too. N:M fixes the sparsity, so it is removed at once: by one_shot, which is its default, or in
    the sparse phases of acdc.

    Example:
        Prune(sparsity=0.9, granularity="4x1", criterion="magnitude", start="1ep", end="3ep")
        Prune(granularity="2:4", start="1ep")
    """

    name: ClassVar[str] = "prune"
    granularity: str | Granularity = "element"
    criterion: str | Criterion = "magnitude"
    recovery: str | Recovery | None = None
    allocator: str | Allocator = "uniform"
    layers: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    overrides: tuple[Override | Mapping[str, Any], ...] = ()
    seed: Seed = 0

    _layers: list[TrainedLayer] = PrivateAttr(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _with_fixed_sparsity(cls, values: Any) -> Any:
        """N:M gives the sparsity, if the recipe does not."""
        if not isinstance(values, Mapping) or "granularity" not in values:
            return values
        fixed = parse_granularity(values["granularity"]).fixed_sparsity
        return values if fixed is None else {"sparsity": fixed, **values}

    @property
    def default_schedule(self) -> str:
        return "one_shot" if _fixes(self.granularity) else super().default_schedule

    def begin(self, training: Training) -> None:
        self._find_layers(training)
        training.followers.append(lambda change: self._find_layers(training))

    def _find_layers(self, training: Training) -> None:
        self._layers = self._plan(training)
        training.masks.add(self._layers)

    def _plan(self, training: Training) -> list[TrainedLayer]:
        """The layers that will be pruned; raises UsageError."""
        between = {self.sparsity_at(event) for event in self.events} - {0.0, self.sparsity}
        if between and _fixes(self.granularity):
            raise UsageError(
                f"{self.name}: {self.granularity} has a sparsity of its own, which no schedule can "
                "reach step by step; choose one_shot or acdc"
            )
        method = make_method(
            self.sparsity,
            self.granularity,
            self.criterion,
            self.recovery,
            self.allocator,
            bool(training.calibration),
            self.overrides,
        )
        selection = Selection.of(self.layers, self.ignore)
        return trained_layers(
            training.model, lambda model: plan_of(model, method, selection, filter_fn=None)
        )

    def at_step(self, training: Training) -> None:
        if not self.is_due(training):
            return
        sparsity = self.sparsity_at(training.step)
        if sparsity <= 0:
            if self.sparsity_at(training.step - 1) > 0:
                training.masks.release(self._layers)
                training.note(self.name, "removed weights are trained again")
            return
        prune(
            training.model,
            sparsity,
            self.granularity,
            self.criterion,
            self.recovery,
            training.calibration or None,
            self.allocator,
            seed=self.seed,
            layers=self.layers,
            ignore=self.ignore,
            overrides=self._overrides_at(training.step),
            loss=training.loss,
        )
        training.synchronise()
        training.masks.take(self._layers, training.optimizer)
        training.note(self.name, f"{self.granularity} by {self.criterion} to {sparsity:.3g}")

    def _overrides_at(self, step: int) -> list[Override]:
        """The overrides with the sparsities that they have after some steps."""
        return [
            replace(override, sparsity=self.sparsity_at(step, override.sparsity))
            if override.sparsity is not None and not _fixes(override.granularity)
            else override
            for override in find_overrides(self.overrides)
        ]


def _fixes(granularity: str | Granularity | None) -> bool:
    """Whether a granularity has a sparsity of its own."""
    return granularity is not None and parse_granularity(granularity).fixed_sparsity is not None
