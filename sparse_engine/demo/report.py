"""The demo's results as one table and one chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sparse_engine.reporting.pyplot import load_pyplot


@dataclass(frozen=True)
class DemoRow:
    """One variant of the model; times in ms a call, sizes in MB."""

    pattern: str
    sparsity: float
    format: str
    dense_ms: float
    sparse_ms: float
    dense_disk_mb: float
    disk_mb: float
    dense_linear_mb: float
    linear_mb: float
    dense_resident_mb: float
    resident_mb: float
    cosine: float
    max_rel_err: float
    prune_seconds: float

    @property
    def speedup(self) -> float:
        """Dense time over sparse time."""
        return self.dense_ms / self.sparse_ms


def table(rows: Sequence[DemoRow]) -> Table:
    """One line a variant, in 80 columns; a > b is dense torch > sparse_engine."""
    result = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="a > b: dense torch > sparse_engine"
    )
    result.add_column("zeros", no_wrap=True)
    result.add_column("layers", no_wrap=True)
    for name in ("ms", "speed\n-up", "MB on\ndisk", "MB of\nlinears", "MB\nresident", "cosine"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(
            f"{row.sparsity:.0%} {row.pattern}",
            row.format.replace(", ", "\n"),
            f"{row.dense_ms:.0f} > {row.sparse_ms:.0f}",
            f"[bold]{row.speedup:.2f}x",
            f"{row.dense_disk_mb:.0f} > {row.disk_mb:.0f}",
            f"{row.dense_linear_mb:.0f} > {row.linear_mb:.0f}",
            f"{row.dense_resident_mb:.0f} > {row.resident_mb:.0f}",
            f"{row.cosine:.3f}",
        )
    return result


def chart(rows: Sequence[DemoRow], path: Path, title: str) -> None:
    """Three bar charts side by side: milliseconds, megabytes of the linear layers, cosine."""
    pyplot = load_pyplot()
    labels = [f"{row.sparsity:.0%}\n{row.pattern}" for row in rows]
    panels = (
        ("ms a call", [r.dense_ms for r in rows], [r.sparse_ms for r in rows], "{:.1f}"),
        (
            "MB of linear layers",
            [r.dense_linear_mb for r in rows],
            [r.linear_mb for r in rows],
            "{:.0f}",
        ),
        ("cosine to dense", [1.0 for _ in rows], [r.cosine for r in rows], "{:.2f}"),
    )
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.8))
    for axis, (name, dense, sparse, form) in zip(axes, panels, strict=True):
        positions = range(len(rows))
        bars = (
            axis.bar(
                [p - 0.2 for p in positions], dense, 0.38, label="dense torch", color="#b8bfc8"
            ),
            axis.bar(
                [p + 0.2 for p in positions], sparse, 0.38, label="sparse_engine", color="#1f6feb"
            ),
        )
        for group in bars:
            axis.bar_label(group, fmt=form, fontsize=8)
        axis.set_xticks(list(positions), labels)
        axis.set_title(name)
        axis.margins(y=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, loc="upper center", ncols=2, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
