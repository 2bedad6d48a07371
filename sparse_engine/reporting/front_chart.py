"""What is gained against what it costs: points, and the line of those that no other one beats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sparse_engine.reporting.chart import (
    COLOURS,
    INK,
    MARKERS,
    WIDTH,
    Chart,
    Table,
    clean_axes,
    plain,
)

SPREAD = 3
"""The largest cost over the smallest one from which on their axis is logarithmic."""


@dataclass(frozen=True)
class Point:
    """A setting: what it costs (x, less is better) and gives (y); its series and its label."""

    x: float
    y: float
    series: str
    label: str


def pareto_front(points: Iterable[Point], higher_is_better: bool) -> list[Point]:
    """The points that no other one beats or equals in both x and y, by rising x."""
    sign = 1 if higher_is_better else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -sign * p.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return front


@dataclass(frozen=True)
class FrontChart(Chart):
    """Points of several series, the Pareto front as a line, and one point to compare with.

    Attributes:
        reference: such as the dense model; it takes part in the front.
    """

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    reference: Point
    higher_is_better: bool
    show: Callable[[float], str] = "{:.3f}".format

    @property
    def size(self) -> tuple[float, float]:
        """Rows of the legend have space of their own."""
        return WIDTH, 2.9 + 0.17 * ((len(self._series) + 3) // 2)

    @property
    def _series(self) -> list[str]:
        return list(dict.fromkeys(point.series for point in self.points))

    @property
    def front(self) -> list[Point]:
        """The settings worth using, by rising cost."""
        return pareto_front((*self.points, self.reference), self.higher_is_better)

    def draw(self, figure: Any) -> None:
        """Each series with a colour and a marker of its own; labels beside the points."""
        axes = figure.subplots()
        front = self.front
        axes.plot(
            [p.x for p in front],
            [p.y for p in front],
            color=INK,
            linewidth=0.9,
            alpha=0.6,
            label="no other is better in both",
        )
        for number, series in enumerate(self._series):
            own = [point for point in self.points if point.series == series]
            axes.plot(
                [p.x for p in own],
                [p.y for p in own],
                MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                markersize=5,
                label=plain(series),
            )
        axes.plot(
            [self.reference.x],
            [self.reference.y],
            "*",
            color=INK,
            markersize=9,
            label=plain(self.reference.label),
        )
        above, below = (5, -11) if self.higher_is_better else (-11, 5)
        for point in self.points:
            on_front = point in front
            axes.annotate(
                plain(point.label, 12),
                (point.x, point.y),
                xytext=(0, above if on_front else below),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                fontweight="bold" if on_front else "normal",
            )
        axes.set(xlabel=plain(self.x_label), ylabel=plain(self.y_label))
        axes.margins(x=0.08, y=0.12)
        times = [p.x for p in (*self.points, self.reference)]
        if max(times) > SPREAD * min(times) > 0:
            axes.set_xscale("log")
            ticks = [n * 10**e for e in range(-4, 7) for n in (1, 2, 5)]
            axes.set_xticks([t for t in ticks if 0.8 * min(times) <= t <= 1.25 * max(times)])
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.set_xlim(left=0)
        clean_axes(axes)
        axes.grid(True, axis="x")
        figure.legend(loc="outside lower center", ncols=2)

    def table(self) -> Table:
        """A row for each point, those of the front marked."""
        front = self.front
        rows = tuple(
            (p.series, p.label, f"{p.x:.3f}", self.show(p.y), "yes" if p in front else "")
            for p in sorted((*self.points, self.reference), key=lambda p: p.x)
        )
        head = ("setting", "zeros", self.x_label, self.y_label, "on the front")
        return Table(head, rows, left=2)
