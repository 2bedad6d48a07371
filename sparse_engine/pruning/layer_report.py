"""What pruning did to one layer, to the heads of one attention, and what it left alone."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_engine.reporting.density_map import DensityMap


@dataclass(frozen=True)
class LayerReport:
    """One pruned layer.

    Attributes:
        name: its dotted name.
        shape: (out, in).
        granularity: the text form of its granularity.
        sparsity: fraction of its weights that are zero.
        error_before: |V X - Y| / |Y| with the mask alone; None if no second moments were collected.
        error_after: the same with the final weights.
        seconds: time spent on this layer, without running the model.
        note: how the method differs from the one that was requested, or "".
        rows_kept: number of rows (outputs) that have a weight which is not zero.
        columns_kept: number of columns (inputs) that have one.
        density: where the weights are that are not zero.
        criterion: the text form of its own criterion, or "" for that of the model.
        warning: what criterion, recovery or allocator could not do for this layer, or "".
    """

    name: str
    shape: tuple[int, int]
    granularity: str
    sparsity: float
    error_before: float | None
    error_after: float | None
    seconds: float
    note: str = ""
    rows_kept: int | None = None
    columns_kept: int | None = None
    density: DensityMap | None = None
    criterion: str = ""
    warning: str = ""


@dataclass(frozen=True)
class Left:
    """A module that was left as it was.

    Attributes:
        name: its dotted name.
        weights: number of elements of its weights.
        multiply_adds: its share of the model's multiply-adds for one token, 0..1.
        reason: why it was left.
    """

    name: str
    weights: int
    multiply_adds: float
    reason: str


@dataclass(frozen=True)
class HeadsReport:
    """The heads of one attention.

    Attributes:
        name: of the layer that computes its queries.
        kept: for each head, the share of weights that are not zero among those of its queries and
            those by which the output projection reads it, 0..1.
    """

    name: str
    kept: tuple[float, ...]
