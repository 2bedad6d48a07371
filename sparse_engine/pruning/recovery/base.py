"""The interface of a recovery: it changes the kept weights of a layer to reduce the error."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparse_engine.pruning.named import Named
from sparse_engine.pruning.statistics.needs import Statistic
from sparse_engine.pruning.statistics.system import System


@dataclass(frozen=True)
class Problem:
    """What the weight of one layer should be, before weights are removed.

    Attributes:
        target: [out, in], T.
        rhs: [out, in], T (H + lambda I).
    """

    target: Tensor
    rhs: Tensor


@dataclass(frozen=True)
class PrunedLayer:
    """A layer whose mask is known.

    Attributes:
        dense: [out, in], the dense weight in float32.
        bias: [out] in float32, or None.
        pruned: [out, in], the weight as the criterion returned it.
        keep: bool [out, in], the keep mask.
    """

    dense: Tensor
    bias: Tensor | None
    pruned: Tensor
    keep: Tensor


class Recovery(Named):
    """Makes up for the weights that a criterion removes, one layer at a time.

    Attributes:
        needs: the statistics that calibration collects for it.
        fits_dense_model: whether the statistics compare the inputs of the model that has been
            pruned so far with those of the dense model.
    """

    kind = "recovery"
    needs: ClassVar[tuple[Statistic, ...]] = ()
    fits_dense_model: ClassVar[bool] = False

    def centres(self, has_bias: bool) -> bool:
        """Whether statistics are centred, for a layer with or without a bias."""
        return False

    def problem(self, dense: Tensor, system: System | None) -> Problem:
        """The target of a dense weight [out, in]: by default the weight itself."""
        return Problem(dense, dense)

    @abstractmethod
    def repair(
        self, layer: PrunedLayer, problem: Problem, system: System | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the final weight and bias of a layer.

        Args:
            layer: the layer and its mask.
            problem: as `problem` returned it.
            system: second moments of the input; None if they are not needed.

        Returns:
            The weight [out, in], whose values outside of the mask are ignored, and the bias [out],
            None if the bias does not change.
        """
