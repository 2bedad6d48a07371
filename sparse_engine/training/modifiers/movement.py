"""Movement: weights that training moves towards zero are removed, and may come back.

The model computes with W' = W * M. The score of a weight is S = -sum_t W dL/dW', which is what
descent on S gives where the gradient passes the mask M straight through; the best scores have M =
1. A removed weight keeps its value, which does not change, and its score goes on. A block or
structure has one score, the sum over its weights.

Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv:2005.07683; blocks:
Lagunas et al. 2021, "Block Pruning For Faster Transformers", arXiv:2109.04838.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import PrivateAttr
from torch import Tensor

from sparse_engine.training.learned.groups import Values, WeightGroups, combined
from sparse_engine.training.learned.removed import RemovedValues
from sparse_engine.training.modifiers.learned import products
from sparse_engine.training.modifiers.scored import Scored
from sparse_engine.training.training import Training
from sparse_engine.training.window import Moment


class Movement(Scored):
    """The share of the schedule is removed, the lowest scores of each layer.

    Attributes:
        every: from one renewal of the masks to the next, in steps or epochs.

    Example:
        Movement(sparsity=0.9, granularity="4x1", start="1ep", end="4ep")
    """

    name: ClassVar[str] = "movement"
    every: Moment | None = 1

    _removed: RemovedValues | None = PrivateAttr(default=None)

    def begin(self, training: Training) -> None:
        super().begin(training)
        self._removed = RemovedValues(
            (layer for own in self._groups for layer in own.layers), training
        )

    def contributions(self, training: Training) -> Values:
        removed = self._removed
        assert removed is not None
        return products(training, lambda layer: removed.full(layer, training))

    def updated(self, scores: Tensor, groups: WeightGroups, values: Values) -> Tensor:
        return scores - groups.sums(values)

    def renew(self, training: Training) -> None:
        assert self._removed is not None
        for layer, keep in combined(self._groups, self._keeps):
            self._removed.renew(layer, keep, training)

    def settle(self, training: Training, keeps: Sequence[Tensor]) -> None:
        super().settle(training, keeps)
        assert self._removed is not None
        self._removed.clear()

    def state_dict(self) -> dict[str, Any]:
        assert self._removed is not None
        return super().state_dict() | {"removed": self._removed.state_dict()}

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        super().load_state_dict(training, state)
        assert self._removed is not None
        self._removed.load_state_dict(state["removed"])
