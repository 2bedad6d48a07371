"""Lines over numbers: sparsity or error by block, a metric by sparsity."""

from __future__ import annotations

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

LEGEND_COLUMNS = 2
FEW = 8
"""So many numbers below the axis are all written."""
MARKED = 40
"""A line with more points has no markers, and of more names below it some are left out."""


@dataclass(frozen=True)
class Line:
    """Points (x, y) in the order of x, and how they are named; a faint line has no marker."""

    label: str
    points: tuple[tuple[float, float], ...]
    faint: bool = False


@dataclass(frozen=True)
class LineChart(Chart):
    """Lines with a legend below.

    Attributes:
        lines: what to draw. A faint line has the colour of the line before it, and no entry in the
            legend.
        level: a label and a y: a horizontal line, such as that of the dense model.
        x_names: what stands below each whole x instead of the number.
        percent: whether y is a share, to be written in percent.
        whole_x: whether ticks stand at whole numbers only.
        from_zero: whether the axis of y begins at zero.
    """

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    level: tuple[str, float] | None = None
    x_names: tuple[str, ...] = ()
    percent: bool = False
    whole_x: bool = False
    from_zero: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """A row of the legend needs space of its own."""
        rows = -(-self._entries // LEGEND_COLUMNS)
        names = 0.065 * min(max(map(len, self.x_names), default=0), 24) if self._turned else 0
        return WIDTH, 2.7 + names + 0.17 * rows

    @property
    def _entries(self) -> int:
        """Entries of the legend, which a single line does not need."""
        return sum(not line.faint for line in self.lines) + (self.level is not None)

    @property
    def _turned(self) -> bool:
        """Whether the names below the axis stand on end."""
        return sum(map(len, self.x_names)) > 44

    def draw(self, figure: Any) -> None:
        """Lines, each with a colour and a marker of its own."""
        axes = figure.subplots()
        number = -1
        for line in self.lines:
            number += not line.faint
            x, y = zip(*line.points, strict=True) if line.points else ((), ())
            turn = number + number // len(COLOURS)  # the ninth line has another marker
            marker = "" if len(x) > MARKED or line.faint else MARKERS[turn % len(MARKERS)]
            axes.plot(
                x,
                y,
                ":" if line.faint else "-",
                color=COLOURS[number % len(COLOURS)],
                marker=marker,
                markersize=4,
                linewidth=1 if line.faint else 1.4,
                label=None if line.faint else plain(line.label),
            )
        if self.level is not None:
            axes.axhline(self.level[1], color=INK, linewidth=0.9, linestyle="--")
            axes.plot([], [], "--", color=INK, linewidth=0.9, label=plain(self.level[0]))
        axes.set(xlabel=plain(self.x_label), ylabel=plain(self.y_label))
        if self.x_names:
            every = -(-len(self.x_names) // MARKED)
            names = [plain(name, 24) for name in self.x_names[::every]]
            at = range(0, len(self.x_names), every)
            axes.set_xticks(at, names, rotation=90 if self._turned else 0)
        elif len(xs := sorted({x for line in self.lines for x, _ in line.points})) <= FEW:
            axes.set_xticks(xs)
        elif self.whole_x:
            axes.xaxis.get_major_locator().set_params(integer=True, steps=[1, 2, 5, 10])
        if self.percent:
            axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g} %")
        if self.from_zero:
            axes.set_ylim(bottom=0)
        clean_axes(axes)
        if self._entries > 1:
            figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS)

    def show(self, y: float) -> str:
        """A value as the table has it."""
        return f"{100 * y:.1f} %" if self.percent else f"{y:.3f}"

    def table(self) -> Table:
        """A row for each x, a column for each line."""
        xs = sorted({x for line in self.lines for x, _ in line.points})
        columns = [dict(line.points) for line in self.lines]
        rows = tuple(
            (
                self.x_names[int(x)] if self.x_names else f"{x:g}",
                *(self.show(column[x]) if x in column else "" for column in columns),
            )
            for x in xs
        )
        return Table((self.x_label, *(line.label for line in self.lines)), rows)
