"""Rows of figures as a Markdown table, CSV, JSON, or a chart."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparse_engine.bench.kernel import KernelRow
from sparse_engine.errors import UsageError

OUTPUTS = ("md", "csv", "json")


def render(rows: Sequence[Any], output: str) -> str:
    """Dataclass rows as text: "md", "csv" or "json"."""
    plain = [asdict(row) for row in rows]
    if output == "json":
        return json.dumps(plain, indent=1)
    plain = [_flat(row) for row in plain]
    names = list(dict.fromkeys(name for row in plain for name in row))
    if output == "md":  # for people: a column that is empty tells them nothing
        names = [name for name in names if any(row.get(name, "") != "" for row in plain)]
    if output == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain)
        return text.getvalue().rstrip("\n")
    if output != "md":
        raise UsageError(f"output {output!r}: use one of {', '.join(OUTPUTS)}")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in plain]
    return "\n".join(lines)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a column for each peer; reasons are for JSON, and for whoever prints a table."""
    peers: dict[str, float] = row.pop("peers", {})
    row.pop("refused", None)
    row.pop("problem", None)
    row = {name: "" if value is None else value for name, value in row.items()}
    return row | {f"{name}_us": time for name, time in peers.items()}


def reasons(rows: Sequence[Any]) -> list[str]:
    """Why peers did not run, each reason once."""
    told = (f"{name} ({r.dtype}) {why}" for r in rows for name, why in r.refused.items())
    return list(dict.fromkeys(told))


def plot_kernels(rows: Sequence[KernelRow], path: Path) -> None:
    """Speed-up over dense against sparsity, a panel per token count, a line per format and dtype."""
    pyplot = load_pyplot()
    tokens = sorted({row.m for row in rows})
    figure, axes = pyplot.subplots(
        1, len(tokens), figsize=(4.2 * len(tokens), 3.6), squeeze=False, sharey=True
    )
    for axis, m in zip(axes[0], tokens, strict=True):
        lines = sorted({(r.n, r.k, r.format, r.dtype) for r in rows if r.m == m})
        for line in lines:
            points = [r for r in rows if r.m == m and (r.n, r.k, r.format, r.dtype) == line]
            points.sort(key=lambda r: r.sparsity)
            axis.plot(
                [r.sparsity for r in points],
                [r.speedup for r in points],
                marker="o",
                label=f"{line[0]}x{line[1]} {line[2]} {line[3]}",
            )
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set(title=f"{m} token{'s' if m > 1 else ''}", xlabel="sparsity", yscale="log")
    axes[0][0].set_ylabel("speed-up over dense")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def check_chart(path: Path) -> None:
    """Refuse, before anything is measured, a chart that could not be written afterwards."""
    load_pyplot()
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--plot {path}: name a .png, .pdf or .svg file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: {path.absolute().parent} is not a folder")


def load_pyplot() -> Any:
    """matplotlib.pyplot without a display, or a UsageError naming the extra."""
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install sparse-engine[bench]") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
