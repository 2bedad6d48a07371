"""The chart of README.md: speed-up over dense by sparsity, from the published grid.

    python bench/chart.py                       # docs/images/speedup-light.svg and speedup-dark.svg

Reads `results/suite-*.jsonl` beside this file and measures nothing. Each point is a geometric mean
over the layer shapes of the grid; dense is the fastest of torch, ONNX Runtime and OpenVINO in the
same dtype.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

from sparse_engine.reporting.pyplot import load_pyplot

HERE = Path(__file__).parent
EMERALD, GRANITE = "suite-emerald-rapids.jsonl", "suite-granite-rapids.jsonl"
BERT_FEED_FORWARD = {(3072, 768), (768, 3072)}  # the shapes for which Emerald Rapids has all points
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


class Line(NamedTuple):
    """One line of a panel; of several formats the faster one counts, shape by shape."""

    label: str
    dtype: str
    formats: tuple[str, ...]


class Panel(NamedTuple):
    """One chart: the points of a file at one number of tokens."""

    title: str
    file: str
    tokens: int
    lines: tuple[Line, ...]
    shapes: set[tuple[int, int]] | None = None  # None: all


UNSTRUCTURED = tuple(
    Line(f"{dtype}, unstructured", dtype, ("csr",)) for dtype in ("float32", "bfloat16", "int8")
)
BLOCKS = Line("int8, 4x4 blocks", "int8", ("bsr:4x4",))
ONE_TOKEN = tuple(line._replace(formats=("sellp", "bitmask")) for line in UNSTRUCTURED)
PANELS = (
    Panel(
        "128 tokens, AVX-512\n(Emerald Rapids)",
        EMERALD,
        128,
        (*UNSTRUCTURED, BLOCKS),
        BERT_FEED_FORWARD,
    ),
    Panel("128 tokens, dense uses AMX\n(Granite Rapids)", GRANITE, 128, (*UNSTRUCTURED, BLOCKS)),
    Panel("1 token, dense uses AMX\n(Granite Rapids)", GRANITE, 1, ONE_TOKEN),
)
COLOURS = {"float32": "#1f77b4", "bfloat16": "#e07b00", "int8": "#2a9d4a"}
DARK_COLOURS = {"float32": "#58a6ff", "bfloat16": "#f0a04b", "int8": "#56d364"}


def read_points(file: str) -> list[dict[str, Any]]:
    """The measured points of a file of the grid, without its lines of conditions."""
    rows = [json.loads(line) for line in (HERE / "results" / file).read_text().splitlines()]
    return [row for row in rows if "target" in row]


def speedups(
    points: list[dict[str, Any]],
    line: Line,
    tokens: int,
    shapes: set[tuple[int, int]] | None = None,
) -> dict[float, float]:
    """Sparsity -> geometric mean over the shapes of the speed-up over the fastest dense engine."""
    best: dict[float, dict[tuple[int, int], float]] = defaultdict(dict)
    for point in points:
        shape = (point["n"], point["k"])
        if (
            point["dtype"] == line.dtype
            and point["format"] in line.formats
            and point["m"] == tokens
            and (shapes is None or shape in shapes)
        ):
            row = best[point["target"]]
            row[shape] = max(row.get(shape, 0.0), point["speedup"])
    return {s: geometric_mean(best[s].values()) for s in SPARSITIES if s in best}


def draw(path: Path, dark: bool) -> None:
    """Three panels on a transparent ground, in colours for a light or a dark page."""
    pyplot = load_pyplot()
    ink = "#e6edf3" if dark else "#1f2328"
    colours = DARK_COLOURS if dark else COLOURS
    style = {
        "svg.fonttype": "path",
        "svg.hashsalt": "sparse_engine",
        "font.size": 10,
        **{f"{part}.color": ink for part in ("text", "xtick", "ytick")},
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            1, len(PANELS), figsize=(9.6, 3.5), sharey=True, layout="constrained"
        )
        for axis, panel in zip(axes, PANELS, strict=True):
            points = read_points(panel.file)
            for line in panel.lines:
                values = speedups(points, line, panel.tokens, panel.shapes)
                axis.plot(
                    [100 * sparsity for sparsity in values],
                    list(values.values()),
                    "--" if line is BLOCKS else "-",
                    color=colours[line.dtype],
                    marker="o",
                    markersize=3.5,
                    label=line.label,
                )
            _finish(axis, panel.title, ink)
        axes[0].set_ylabel("speed-up over dense")
        axes[1].set_xlabel("zeros in the weight, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def _finish(axis: Any, title: str, ink: str) -> None:
    """Ticks, the line of equal speed, and the shaded half where dense is faster."""
    axis.set_title(title, fontsize=10)
    axis.set_yscale("log", base=2)
    ticks = (0.25, 0.5, 1, 2, 4, 8)
    axis.set_ylim(0.17, 13)
    axis.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    axis.set_yticks([], minor=True)
    axis.set_xticks([0, 30, 50, 70, 90])
    axis.axhline(1.0, color=ink, linewidth=1.0)
    axis.axhspan(0.17, 1.0, color=ink, alpha=0.07, linewidth=0)
    axis.text(99, 0.185, "dense is faster", fontsize=8, alpha=0.8, ha="right")
    axis.grid(True, linewidth=0.4, alpha=0.35)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "docs" / "images", help="Folder of the pictures."
    )
    folder = parser.parse_args().out
    for name, dark in (("light", False), ("dark", True)):
        draw(folder / f"speedup-{name}.svg", dark)


if __name__ == "__main__":
    main()
