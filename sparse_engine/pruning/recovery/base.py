"""The interface of a recovery: it changes the kept weights of a layer to reduce the error."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparse_engine.named import Named
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.plan import Layer
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
        is_fitted: whether `pruned` is already the least-squares fit to the target on the mask.
    """

    dense: Tensor
    bias: Tensor | None
    pruned: Tensor
    keep: Tensor
    is_fitted: bool = False


@dataclass(frozen=True)
class Block:
    """One module of a stack whose layers have been pruned, and what the dense one computes.

    Attributes:
        name: the dotted name of the module.
        module: the module, with its pruned weights.
        layers: the pruned layers in it.
        inputs: its calibration inputs in the model that has been pruned so far.
        targets: [tokens, features] each, its outputs in the dense model, without padding.
    """

    name: str
    module: nn.Module
    layers: list[Layer]
    inputs: list[Batch]
    targets: list[Tensor]


@dataclass(frozen=True)
class BlockReport:
    """One block that was fitted as a whole.

    Attributes:
        name: the dotted name of the module.
        error_before: |B(x) - Bd(xd)| / |Bd(xd)| of its outputs, with every layer refitted alone.
        error_after: the same at the end.
        seconds: time spent.
    """

    name: str
    error_before: float
    error_after: float
    seconds: float


class Recovery(Named):
    """Makes up for the weights that a criterion removes, one layer at a time.

    Attributes:
        needs: the statistics that calibration collects for it.
        fits_dense_model: whether the statistics compare the inputs of the model that has been
            pruned so far with those of the dense model.
        tunes_blocks: whether `tune` is called for every module of a stack.
    """

    kind = "recovery"
    needs: ClassVar[tuple[Statistic, ...]] = ()
    fits_dense_model: ClassVar[bool] = False
    tunes_blocks: ClassVar[bool] = False

    def centres(self, has_bias: bool) -> bool:
        """Whether statistics are centred, for a layer with or without a bias."""
        return False

    def note(self, has_bias: bool) -> str:
        """How the recovery of a layer with or without a bias differs from others, or ""."""
        return ""

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

    def tune(
        self, block: Block, generator: torch.Generator, working: Callable[[str], None]
    ) -> BlockReport:
        """Change the kept weights of a block together, in place, once all its layers are pruned.

        Args:
            block: the block.
            generator: the source of random numbers, on the CPU.
            working: receives what is being computed.
        """
        raise NotImplementedError(f"recovery {self.name} works on one layer at a time")
