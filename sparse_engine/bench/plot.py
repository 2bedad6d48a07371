"""Charts of speed-ups, for `bench kernel --plot` and bench/suite.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log2
from pathlib import Path
from typing import Any

from sparse_engine.bench.rows import LinearRow
from sparse_engine.reporting.pyplot import load_pyplot

PANELS = " on panels"
"""Marks the op as native layers call it, without row-major tensors: a dashed line."""
COLOURS = 10  # in matplotlib's own cycle


@dataclass(frozen=True)
class Chart:
    """What `draw_speedups` draws.

    panels: title of a panel -> label of a line -> x -> speed-up over dense.
    log_x: a logarithmic x-axis, for numbers of tokens.
    """

    title: str
    x_label: str
    panels: Mapping[str, Mapping[str, Mapping[float, float]]]
    log_x: bool = False


def draw_speedups(chart: Chart, path: Path) -> None:
    """Draw panels side by side, with one scale of speed-ups and one legend beside them."""
    pyplot = load_pyplot()
    labels = list(dict.fromkeys(label for lines in chart.panels.values() for label in lines))
    # A format and its dashed line on panels share a colour.
    bases = list(dict.fromkeys(label.removesuffix(PANELS) for label in labels))
    width = 1.2 + 0.07 * max(map(len, labels)) + max(3.2 * len(chart.panels), 4.5)
    figure, axes = pyplot.subplots(
        1,
        len(chart.panels),
        figsize=(width, max(3.8, 0.9 + 0.2 * len(labels))),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    drawn: dict[str, Any] = {}
    for axis, (title, lines) in zip(axes[0], chart.panels.items(), strict=True):
        axis.set(title=title, xlabel=chart.x_label)
        axis.set_yscale("log", base=2)
        axis.axhline(1.0, color="grey", linewidth=1.2)
        axis.grid(True, linewidth=0.4, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        for label, points in lines.items():
            number = bases.index(label.removesuffix(PANELS))
            (drawn[label],) = axis.plot(
                sorted(points),
                [points[x] for x in sorted(points)],
                "--" if label.endswith(PANELS) else "-",
                color=f"C{number % COLOURS}",
                marker="osD^v"[number // COLOURS % 5],
                markersize=4,
                label=label,
            )
        _x_ticks(axis, sorted({x for points in lines.values() for x in points}), chart.log_x)
    _y_ticks(
        axes[0][0], [v for ls in chart.panels.values() for p in ls.values() for v in p.values()]
    )
    axes[0][0].set_ylabel("speed-up over dense")
    figure.suptitle(chart.title, fontsize=10)
    figure.legend(
        [drawn[label] for label in labels],
        labels,
        loc="outside right center",
        fontsize=8,
        handlelength=3.2,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _y_ticks(axis: Any, values: Sequence[float]) -> None:
    """0.5x, 1x, 2x, ... around all values; in between where they are close together."""
    low = floor(log2(min([*values, 1.0])) - 0.05)
    high = max(ceil(log2(max([*values, 1.0])) + 0.05), low + 2)
    ticks = [2.0**power for power in range(low, high + 1)]
    if len(ticks) <= 3:
        ticks = sorted([*ticks, *((a + b) / 2 for a, b in pairwise(ticks))])
    axis.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    axis.set_yticks([], minor=True)
    axis.set_ylim(ticks[0] * 0.95, ticks[-1] * 1.05)


def _x_ticks(axis: Any, values: Sequence[float], log: bool) -> None:
    if log:
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.set_xticks([], minor=True)
        return
    least = 0.07 * (values[-1] - values[0])  # width of a number on the axis
    ticks: list[float] = []
    for value in reversed(values):
        if not ticks or ticks[-1] - value >= least:
            ticks.append(value)
    axis.set_xticks(ticks, [f"{100 * tick:.4g}" for tick in ticks], fontsize=8)


def plot_kernels(rows: Sequence[LinearRow], path: Path) -> None:
    """Speed-up over dense: by sparsity, a panel for each number of tokens.

    Rows of one sparsity, such as those of the user's own matrix, are drawn by tokens instead.
    """
    by_tokens = len({(row.source, row.sparsity) for row in rows}) <= len({r.source for r in rows})
    parts = {name: {_part(row, name) for row in rows} for name in PARTS}
    varies = [name for name in PARTS if len(parts[name]) > 1 or name == "format"]
    fixed = [next(iter(parts[name])) for name in PARTS if name not in varies]
    panels: dict[str, dict[str, dict[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row.m):
        panel = "" if by_tokens else f"{row.m} token{'s' if row.m > 1 else ''}"
        x = row.m if by_tokens else row.sparsity
        label = ", ".join(_part(row, name) for name in varies)
        panels.setdefault(panel, {}).setdefault(label, {})[x] = row.speedup
        if row.panels_time_us:
            on_panels = panels[panel].setdefault(label + PANELS, {})
            on_panels[x] = row.dense_time_us / row.panels_time_us
    names = ", ".join(sorted({row.dense_engine for row in rows}))
    title = ", ".join([*fixed, f"over {names}, median of {rows[0].samples}"])
    x_label = "tokens" if by_tokens else "% of zeros"
    draw_speedups(Chart(title, x_label, panels, log_x=by_tokens), path)


PARTS = ("source", "shape", "format", "dtype", "isa")


def _part(row: LinearRow, name: str) -> str:
    if name == "shape":
        return f"{row.n} x {row.k}"
    if name == "format":
        return row.format.partition(":")[0] if row.format.startswith("auto") else row.format
    return str(getattr(row, name))
