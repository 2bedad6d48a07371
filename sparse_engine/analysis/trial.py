"""One trial of `sensitivity`, and the metric that all trials are measured by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """The model with one layer, or all layers, pruned.

    Attributes:
        layer: the dotted name of the layer that was pruned; "" for all of them.
        granularity: its text form.
        requested: the fraction of groups that was to be removed; None if the criterion decides it.
        sparsity: the fraction of the weights of the pruned layers that is zero.
        metric: the metric; None if it was not finite.
        ms: milliseconds of a call with the sparse kernels, if it was timed.
        dense_ms: the same in dense torch, timed in turn.
    """

    layer: str
    granularity: str
    requested: float | None
    sparsity: float
    metric: float | None
    ms: float | None = None
    dense_ms: float | None = None

    @property
    def setting(self) -> str:
        """Granularity and sparsity, as "4x1 70 %"."""
        if self.requested is None:
            return self.granularity
        return f"{self.granularity} {100 * self.requested:g} %"


@dataclass(frozen=True)
class Scale:
    """What a metric is called, which direction is better, and its value for the dense model."""

    metric: str
    higher_is_better: bool
    dense: float

    def loss(self, value: float) -> float:
        """How much worse a value is than that of the dense model; negative if it is better."""
        return self.dense - value if self.higher_is_better else value - self.dense


def show(value: float | None) -> str:
    """A metric in four significant digits; "-" for one that was not finite."""
    return "-" if value is None else f"{value:.4g}"
