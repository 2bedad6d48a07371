"""Sensitivity: the least sum of the layers' squared errors, from the measured curve of each layer.

Every layer is pruned by itself to several sparsities. Its error is that of its output,
|(V - W) X|^2 / |W X|^2, after criterion and recovery. The sum of the errors is least, for a fixed
total, where the next group costs the same in every layer: the slopes of the lower convex hulls of
the curves are taken in ascending order until the total is reached.

The relaxation by Lagrange multipliers of Everett 1963, "Generalized Lagrange Multiplier Method for
Solving Problems of Optimum Allocation of Resources", as rate-distortion allocation uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting, settings
from sparse_engine.pruning.allocators.bounds import Bounds

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""Sparsities at which a layer's error is measured, besides its bounds."""


@dataclass(frozen=True)
class Point:
    """The error of a layer that has lost a number of groups."""

    removed: int
    error: float


class Sensitivity(Allocator):
    """Layers whose output suffers less lose more."""

    name = "sensitivity"
    needs = ("hessian",)

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        bounds = self.bounds(dense.layers, requested)
        granularity, groups = requested.granularity, bounds.groups.tolist()
        counts = [grid(bounds, index) for index in range(len(groups))]
        names = [layer.name for layer in dense.layers]
        wanted = {
            name: {granularity: [count / total for count in measured]}
            for name, total, measured in zip(names, groups, counts, strict=True)
        }
        curves: dict[str, list[Point]] = {}
        measured = dict(zip(names, counts, strict=True))
        for layer, candidates in dense.candidates(wanted):
            errors = [candidate.error**2 for candidate in candidates]
            pairs = zip(measured[layer.name], errors, strict=True)
            curves[layer.name] = [Point(0, 0.0), *(Point(*pair) for pair in pairs)]
        hulls = [
            convex(curves[name], int(low)) for name, low in zip(names, bounds.least, strict=True)
        ]
        return settings(dense.layers, requested, equal_slopes(hulls, bounds))


def grid(bounds: Bounds, layer: int) -> list[int]:
    """The numbers of removed groups at which a layer is measured: ascending, above 0."""
    groups, least, most = (int(t[layer]) for t in (bounds.groups, bounds.least, bounds.most))
    inner = {round(sparsity * groups) for sparsity in GRID}
    return sorted({least, most, *(count for count in inner if least < count < most)} - {0})


def convex(points: list[Point], least: int) -> list[Point]:
    """The lower convex hull of a curve from `least` on, with errors that never fall.

    Args:
        points: ascending.
        least: the lower bound of the layer, one of the points.
    """
    hull: list[Point] = []
    highest = 0.0
    for point in points:
        highest = max(highest, point.error)
        if point.removed < least:
            continue
        point = Point(point.removed, highest)
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def equal_slopes(hulls: list[list[Point]], bounds: Bounds) -> Tensor:
    """Take the pieces of all hulls in the order of their slopes until the total is reached.

    Args:
        hulls: of each layer, from its lower to its upper bound.
        bounds: of the layers.

    Returns:
        int64 [layers], how many groups each layer loses; the last piece is taken in part.
    """
    pieces = sorted(
        (_slope(start, end), layer, end.removed - start.removed)
        for layer, hull in enumerate(hulls)
        for start, end in pairwise(hull)
    )
    removed = bounds.least.clone()
    left = bounds.total - int(removed.sum())
    for _, layer, size in pieces:
        taken = min(size, left)
        removed[layer] += taken
        left -= taken
    return removed


def _slope(start: Point, end: Point) -> float:
    return (end.error - start.error) / (end.removed - start.removed)
