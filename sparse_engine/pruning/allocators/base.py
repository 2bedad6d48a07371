"""The interface of an allocator: how much of each layer is removed, and in which groups."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from sparse_engine.named import Named
from sparse_engine.pruning.allocators.bounds import Bounds, check_bounds
from sparse_engine.pruning.criteria import Inputs
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.statistics.needs import Statistic


@dataclass(frozen=True)
class Setting:
    """How one layer is pruned.

    Attributes:
        granularity: which of its weights are removed together.
        sparsity: fraction of its groups to remove, 0 <= sparsity < 1.
        warning: what kept the allocator from removing more, or "".
    """

    granularity: Granularity
    sparsity: float
    warning: str = ""


@dataclass(frozen=True)
class Candidate:
    """A layer pruned to one setting, by itself.

    Attributes:
        setting: how it is pruned.
        weight: [out, in], float32, after recovery.
        bias: [out] after recovery; None if it does not change.
        error: |(V - W) X| / |W X| with the inputs X of the dense model; of an expert that no
            calibration token reaches |V - W| / |W|.
    """

    setting: Setting
    weight: Tensor
    bias: Tensor | None
    error: float


class DenseModel(Protocol):
    """The layers before they are pruned, as an allocator reads them."""

    @property
    def layers(self) -> Sequence[Layer]:
        """All layers to prune."""

    def block_of(self, layer: str) -> str:
        """The module of a stack that a layer belongs to; the layer itself outside of stacks."""

    def scores(self) -> dict[str, Tensor]:
        """By layer, the score of each group of weights by the criterion.

        Layers that do not run on the calibration inputs, which are not pruned, are missing.
        """

    def inputs(self) -> Iterator[tuple[Layer, Inputs]]:
        """Each layer with the statistics of its input that the allocator and the criterion need."""

    def candidates(
        self, settings: Mapping[str, Mapping[Granularity, Sequence[float]]]
    ) -> Iterator[tuple[Layer, Iterator[Candidate]]]:
        """Each layer with what criterion and recovery make of it; the layer does not change.

        Args:
            settings: by the name of the layer and granularity, the sparsities in ascending order.
        """

    def working(self, text: str) -> None:
        """Tell the progress bar what is being computed."""

    def output_error(self) -> Callable[[], float] | None:
        """A function that compares the model's outputs, with the layers' weights as they are now.

        Returns:
            The error of the outputs for some calibration inputs, against those of the model as it
            is when this method is called, or as it was before structures were removed. None if the
            whole model cannot be run.
        """


@dataclass(frozen=True)
class Allocator(Named):
    """Distributes the sparsity of a model over its layers.

    Every allocator has the options of this class.

    Args:
        min_sparsity: the lowest fraction of its groups that a layer loses.
        max_sparsity: the highest; None for 0.98, or the sparsity of the model if that is higher. At
            least one group of every layer remains in any case.

    Attributes:
        needs: the statistics that `allocate` reads, besides those of the criterion.
        is_uniform: whether all layers get the sparsity of the model, which is the only possibility
            if the granularity fixes it.
    """

    kind = "allocator"
    needs: ClassVar[tuple[Statistic, ...]] = ()
    is_uniform: ClassVar[bool] = False
    min_sparsity: float = 0.0
    max_sparsity: float | None = None

    def check(self, sparsity: float) -> None:
        """Refuse a sparsity of the model that the bounds of the layers put out of reach.

        Raises:
            UsageError: if it is, or a bound is no fraction.
        """
        check_bounds(str(self), sparsity, self.min_sparsity, self.max_sparsity)

    @abstractmethod
    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        """Compute the setting of each layer.

        Args:
            dense: the layers and the statistics of their inputs.
            requested: the granularity, and the sparsity of the whole model.

        Returns:
            By the name of the layer, how it is pruned.
        """

    def bounds(self, layers: Sequence[Layer], requested: Setting) -> Bounds:
        """The bounds of layers, which all have the requested granularity."""
        groups = [requested.granularity.groups(*layer.shape) for layer in layers]
        return Bounds.of(groups, requested.sparsity, self.min_sparsity, self.max_sparsity)

    def finish(self, layers: Sequence[Layer], report: PruneReport) -> None:
        """Add to the report what holds for the pruned layers; by default nothing."""
        return None


def settings(
    layers: Sequence[Layer], requested: Setting, removed: Tensor, guarded: Sequence[bool] = ()
) -> dict[str, Setting]:
    """The setting of each layer.

    Args:
        layers: all layers.
        requested: its granularity is that of every layer.
        removed: int64 [layers], how many groups each layer loses.
        guarded: which layers would have lost more, but for their upper bound; empty for none.
    """
    granularity = requested.granularity
    limited = guarded or [False] * len(layers)
    found = {}
    for layer, count, is_limited in zip(layers, removed.tolist(), limited, strict=True):
        groups = granularity.groups(*layer.shape)
        warning = f"guard: {groups - count} of {groups} groups are kept" if is_limited else ""
        found[layer.name] = Setting(granularity, count / groups, warning)
    return found
