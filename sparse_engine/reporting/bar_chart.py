"""Bars: how much is left of each of some wholes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparse_engine.reporting.chart import COLOURS, GRID, WIDTH, Chart, Table, clean_axes, plain
from sparse_engine.reporting.line_chart import MARKED


@dataclass(frozen=True)
class BarChart(Chart):
    """A bar for each whole, filled as far as it is left.

    Attributes:
        names: of the wholes.
        wholes: their sizes.
        parts: what is left of them.
    """

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    names: tuple[str, ...]
    wholes: tuple[int, ...]
    parts: tuple[int, ...]

    @property
    def size(self) -> tuple[float, float]:
        """Names that stand on end need space of their own."""
        return WIDTH, 2.7 + (0.065 * min(max(map(len, self.names), default=0), 24))

    def draw(self, figure: Any) -> None:
        """The wholes in grey, and in front of them what is left."""
        axes = figure.subplots()
        at = range(len(self.names))
        axes.bar(at, self.wholes, color=GRID)
        axes.bar(at, self.parts, color=COLOURS[0])
        every = -(-len(self.names) // MARKED)
        names = [plain(name, 24) for name in self.names[::every]]
        turned = sum(map(len, names)) > 44
        axes.set_xticks(at[::every], names, rotation=90 if turned else 0)
        axes.set(xlabel=plain(self.x_label), ylabel=plain(self.y_label))
        axes.yaxis.get_major_locator().set_params(integer=True)
        clean_axes(axes)

    def table(self) -> Table:
        """A row for each whole."""
        rows = zip(self.names, self.parts, self.wholes, strict=True)
        return Table(
            (self.x_label, self.y_label, "of"),
            tuple((name, f"{part:,}", f"{whole:,}") for name, part, whole in rows),
        )
