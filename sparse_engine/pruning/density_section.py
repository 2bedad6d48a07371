"""Density maps of the pruned matrices: small images on a page, one picture as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_engine.pruning.layer_report import LayerReport
from sparse_engine.reporting.chart import Chart, Table
from sparse_engine.reporting.density_map import SIDE, DensityMap
from sparse_engine.reporting.names import short_names, split_name
from sparse_engine.reporting.page import Section, Tile, TileRow

IN_FULL = 100
"""More maps than this have half as many cells along each side."""
MOST = 500
"""Maps on a page; of more layers as many are chosen, evenly spread."""
PIXELS = 112
"""Width of the longer side of a map on a page."""
PICTURE_ROWS, PICTURE_COLUMNS = 12, 8

Mapped = tuple[LayerReport, DensityMap]


def density_section(layers: Sequence[LayerReport]) -> Section:
    """A map for each matrix, grouped by block, with one scale of colours for all."""
    mapped = _mapped(layers)
    if not mapped:
        return Section("")
    chosen = spread(mapped, MOST)
    high = scale(chosen)
    side = SIDE if len(chosen) <= IN_FULL else SIDE // 2
    short = short_names(split_name(layer.name)[1] for layer, _ in chosen)
    blocks: dict[str, list[Tile]] = {}
    for layer, density in chosen:
        block, role = split_name(layer.name)
        blocks.setdefault(block, []).append(_tile(layer, density.smaller(side), high, short[role]))
    text = [
        "Each image is a matrix, rows are outputs. A point is the share of weights kept in one "
        f"part of the matrix: dark for none, bright for {100 * high:.0f} %"
        f"{' and more' if high < 1 else ''}."
    ]
    if len(chosen) < len(mapped):
        text.append(f"{len(chosen)} of {len(mapped)} layers are shown, evenly spread.")
    rows = tuple(TileRow(block or "layers", tuple(tiles)) for block, tiles in blocks.items())
    return Section("Density of the matrices", tuple(text), tiles=rows)


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly spread, with the first and the last."""
    picks = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[i] for i in picks]


def scale(mapped: Sequence[Mapped]) -> float:
    """The density of the brightest colour: all but the densest 0.5 % of the cells are below it."""
    cells = np.concatenate([density.values.ravel() for _, density in mapped])
    return max(float(np.quantile(cells, 0.995)), 0.01)


def _mapped(layers: Sequence[LayerReport]) -> list[Mapped]:
    return [(layer, layer.density) for layer in layers if layer.density is not None]


def _tile(layer: LayerReport, density: DensityMap, high: float, role: str) -> Tile:
    rows, columns = layer.shape
    width = PIXELS if columns >= rows else max(8, round(PIXELS * columns / rows))
    kept = f"{100 * (1 - layer.sparsity):.1f} % kept"
    return Tile(
        density.png(high),
        width,
        role or split_name(layer.name)[0],
        f"{rows} x {columns}",
        f"density of {layer.name}, {rows} x {columns}: {kept}",
    )


@dataclass(frozen=True)
class DensityChart(Chart):
    """Maps of at most PICTURE_ROWS blocks, evenly spread, a row each."""

    layers: tuple[LayerReport, ...]
    name: str = "density"
    title: str = "Share of weights kept in each part of a matrix"
    description: str = "Density maps of the pruned matrices."

    @property
    def size(self) -> tuple[float, float]:
        """A square for each map."""
        blocks = self._blocks
        columns = max((len(row) for row in blocks.values()), default=1)
        return 1.1 + 1.15 * columns, 0.9 + 1.3 * len(blocks)

    @property
    def _blocks(self) -> dict[str, list[Mapped]]:
        blocks: dict[str, list[Mapped]] = {}
        for layer, density in _mapped(self.layers):
            block, _ = split_name(layer.name)
            blocks.setdefault(block, []).append((layer, density))
        chosen = spread(list(blocks), PICTURE_ROWS)
        return {block: blocks[block][:PICTURE_COLUMNS] for block in chosen}

    def draw(self, figure: Any) -> None:
        """The maps of a block side by side, with one scale of colours below."""
        blocks = self._blocks
        mapped = [one for row in blocks.values() for one in row]
        high = scale(mapped)
        short = short_names(split_name(layer.name)[1] for layer, _ in mapped)
        columns = max(len(row) for row in blocks.values())
        grid = figure.subplots(len(blocks), columns, squeeze=False)
        for axes_row, (block, row) in zip(grid, blocks.items(), strict=True):
            for axes in axes_row:
                axes.set_axis_off()
            for axes, (layer, density) in zip(axes_row, row, strict=False):
                role = short[split_name(layer.name)[1]] or layer.name
                image = axes.imshow(density.values, vmin=0, vmax=high, interpolation="nearest")
                axes.set_title(role.replace(".", ".\n") if len(role) > 18 else role, fontsize=6.5)
            axes_row[0].text(
                -0.15, 0.5, block, rotation=90, ha="right", va="center", fontsize=7,
                transform=axes_row[0].transAxes,
            )  # fmt: skip
        bar = figure.colorbar(image, ax=grid, location="bottom", aspect=50, shrink=0.6, pad=0.01)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7)

    def table(self) -> Table:
        """The layers that have a map, and the share of weights that each keeps."""
        rows = tuple((layer.name, f"{1 - layer.sparsity:.3f}") for layer, _ in _mapped(self.layers))
        return Table(("layer", "kept"), rows)
