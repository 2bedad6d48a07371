"""A value for each row and column, as colour: heads of blocks, sensitivity of layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparse_engine.reporting.chart import WIDTH, Chart, Table, plain

COLOUR_MAP = "viridis"
WRITTEN = 150
"""A map with more cells than this has no numbers in its cells."""


@dataclass(frozen=True)
class HeatMap(Chart):
    """Rows x columns of values, None where there is none.

    Attributes:
        low, high: the ends of the colour scale.
        show: how a value is written.
    """

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    low: float
    high: float
    show: Callable[[float], str] = "{:.3f}".format

    @property
    def size(self) -> tuple[float, float]:
        """As high as its rows; letters of column names stand on end if they are long."""
        longest = max(map(len, self.columns), default=0)
        names = 0.065 * longest if self._turned else 0.2
        return WIDTH, min(max(0.19 * len(self.rows), 0.6), 6.5) + names + 1.0

    @property
    def _turned(self) -> bool:
        return sum(len(name) + 2 for name in self.columns) > 44

    def draw(self, figure: Any) -> None:
        """Cells with their values, if these can be read, and a colour scale below."""
        axes = figure.subplots()
        cells = [[math.nan if v is None else v for v in row] for row in self.values]
        image = axes.imshow(
            cells,
            cmap=COLOUR_MAP,
            vmin=self.low,
            vmax=self.high,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_xticks(*_ticks(self.columns, 40), rotation=90 if self._turned else 0)
        axes.set_yticks(*_ticks(self.rows, 36))
        axes.set(xlabel=plain(self.x_label), ylabel=plain(self.y_label))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if len(self.columns) * len(self.rows) <= WRITTEN and len(self.columns) <= 12:
            self._write(axes)
        bar = figure.colorbar(image, ax=axes, location="bottom", aspect=40, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2)
        bar.locator.set_params(nbins=5)
        bar.formatter = lambda value, _: self.show(value)
        bar.update_ticks()

    def _write(self, axes: Any) -> None:
        middle = (self.low + self.high) / 2
        for y, row in enumerate(self.values):
            for x, value in enumerate(row):
                if value is not None:
                    colour = "#ffffff" if value < middle else "#000000"
                    axes.text(
                        x, y, self.show(value), ha="center", va="center", color=colour, fontsize=7
                    )

    def table(self) -> Table:
        """The same rows and columns."""
        rows = tuple(
            (name, *("" if v is None else self.show(v) for v in row))
            for name, row in zip(self.rows, self.values, strict=True)
        )
        return Table((self.y_label or "", *self.columns), rows)


def _ticks(names: tuple[str, ...], most: int) -> tuple[list[int], list[str]]:
    """Positions and names of at most `most` ticks."""
    step = max(1, -(-len(names) // most))
    return list(range(0, len(names), step)), [plain(name, 32) for name in names[::step]]
