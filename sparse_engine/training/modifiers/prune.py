"""Prune: at every event of a schedule the model is pruned as `prune` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PrivateAttr

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import Allocator
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.driver import prune
from sparse_engine.pruning.granularity import Granularity, parse_granularity
from sparse_engine.pruning.method import make_method
from sparse_engine.pruning.overrides import Override
from sparse_engine.pruning.plan import Selection
from sparse_engine.pruning.recovery import Recovery
from sparse_engine.pruning.zeros import plan_of
from sparse_engine.training.layers import TrainedLayer, trained_layers
from sparse_engine.training.modifiers.scheduled import Scheduled
from sparse_engine.training.training import Training


class Prune(Scheduled):
    """Weights are set to zero by a criterion, and stay zero while the others are trained.

    The options that `Scheduled` does not have are the arguments of `se.prune`. At each event the
    criterion, and the recovery if there is one, see the weights as they are then; calibration
    inputs are those of the `Pruner`.

    Example:
        Prune(sparsity=0.9, granularity="4x1", criterion="magnitude", start="1ep", end="3ep")
    """

    name: ClassVar[str] = "prune"
    granularity: str | Granularity = "element"
    criterion: str | Criterion = "magnitude"
    recovery: str | Recovery | None = None
    allocator: str | Allocator = "uniform"
    layers: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    overrides: tuple[Override | Mapping[str, Any], ...] = ()
    seed: int = 0

    _layers: list[TrainedLayer] = PrivateAttr(default_factory=list)

    def begin(self, training: Training) -> None:
        self._layers = self._plan(training)
        training.masks.add(self._layers)

    def _plan(self, training: Training) -> list[TrainedLayer]:
        """The layers that will be pruned; raises UsageError."""
        if parse_granularity(self.granularity).fixed_sparsity is not None:
            raise UsageError(
                f"{self.name}: {self.granularity} has a sparsity of its own, which no schedule can "
                "reach step by step; prune with se.prune, and then train with hold in the recipe"
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
            overrides=self.overrides,
            loss=training.loss,
        )
        training.synchronise()
        training.masks.take(self._layers, training.optimizer)
        training.note(self.name, f"{self.granularity} by {self.criterion} to {sparsity:.3g}")
