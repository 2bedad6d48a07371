"""The one style of all tables, in 80 columns, and the reports of commands in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sparse_engine.io import Inspection
    from sparse_engine.pruning import PruneReport
    from sparse_engine.sparsify import SparsifyReport

NAME_WIDTH = 30


def new_table(title: str | None = None, caption: str | None = None, tight: bool = False) -> Table:
    """An empty table: a line under the head, nothing else; `tight` for many columns."""
    return Table(
        title=None if title is None else Text(title),
        caption=None if caption is None else Text(caption),
        box=SIMPLE_HEAD,
        padding=(0, 0 if tight else 1, 0, 0),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )


def add_columns(table: Table, left: str = "", right: str = "") -> None:
    """Columns named in two strings with "|" between names: of text, then of numbers."""
    for names, justify in ((left, "left"), (right, "right")):
        for name in filter(None, names.split("|")):
            table.add_column(
                name,
                justify=justify,  # type: ignore[arg-type]
                no_wrap=True,
                vertical="bottom",
            )


def show(*tables: Table) -> None:
    """Print on stdout; as wide as the terminal, 80 columns where there is none."""
    console = Console()
    for table in tables:
        console.print(table)


def fold(name: str, width: int = NAME_WIDTH) -> str:
    """A dotted name over several lines of at most `width`, broken behind dots only.

    >>> fold("encoder.layer.0.attention.self.query", 24)
    'encoder.layer.0.\\n  attention.self.query'
    """
    lines = [""]
    for part in _parts(name):
        if lines[-1].strip() and len(lines[-1]) + len(part) > width:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def _parts(name: str) -> Iterator[str]:
    *before, last = name.split(".")
    yield from (f"{part}." for part in before)
    yield last


def prune_table(report: PruneReport) -> Table:
    """A row a layer: zeros, and the error of its outputs before and after the weights were refitted."""
    table = new_table()
    add_columns(table, "layer", "shape|zeros|error\nbefore|error\nafter|seconds")
    for row in report.layers:
        errors = (row.error_before, row.error_after)
        table.add_row(
            Text(fold(row.name)),
            f"{row.shape[0]}x{row.shape[1]}",
            f"{row.sparsity:.1%}",
            *("-" if error is None else f"{error:.3f}" for error in errors),
            f"{row.seconds:.2f}",
        )
    return table


def sparsify_table(report: SparsifyReport) -> Table:
    """A row a layer: what it was stored as, what that saves, and why."""
    table = new_table()
    add_columns(table, "layer", "shape|zeros")
    add_columns(table, "format", "MB > dense")
    table.add_column("why", ratio=1, vertical="bottom")
    for row in report.rows:
        table.add_row(
            Text(fold(row.name, 26)),
            f"{row.shape[0]}x{row.shape[1]}",
            f"{row.sparsity:.1%}",
            row.format,
            f"{row.bytes / 1e6:.2f} > {row.dense_bytes / 1e6:.2f}",
            Text(row.reason),
        )
    return table


def inspection_table(found: Inspection) -> Table:
    """A row a layer: what it is stored as, what that saves, and its measured time over dense."""
    table = new_table(found.title(), f"{found.totals()}\n{found.kernels()}")
    add_columns(table, "layer", "shape|zeros")
    add_columns(table, "format", "MB > dense")
    table.add_column("time of dense", justify="right", vertical="bottom", max_width=9)
    for row in found.rows:
        table.add_row(
            Text(fold(row.name)),
            f"{row.shape[0]}x{row.shape[1]}",
            f"{row.sparsity:.1%}",
            row.format if row.dtype == "float32" else f"{row.format}\n{row.dtype}",
            f"{row.bytes / 1e6:.2f} > {row.dense_bytes / 1e6:.2f}",
            row.time_of_dense() or Text(row.reason),
        )
    return table
