"""No recovery: kept weights stay as the criterion left them."""

from __future__ import annotations

from torch import Tensor

from sparse_engine.pruning.recovery.base import Problem, PrunedLayer, Recovery
from sparse_engine.pruning.statistics.system import System


class NoRecovery(Recovery):
    """Keeps the weights as they are."""

    name = "none"

    def repair(
        self, layer: PrunedLayer, problem: Problem, system: System | None
    ) -> tuple[Tensor, Tensor | None]:
        return layer.pruned, None
