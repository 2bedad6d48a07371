"""Tables of `prune`, and of the patterns that `inspect` finds in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from sparse_engine.reporting.tables import add_columns, named_table, new_table, shortened

if TYPE_CHECKING:
    from sparse_engine.pruning import PatternReport, PruneReport

COUNTS = ("weights", "multiply_adds")


def prune_tables(report: PruneReport) -> Iterator[Table]:
    """A row for each layer: its zeros, and the error of its outputs before and after recovery.

    If structures were removed, a row for each site comes first. The last table has the modules that
    were left out, with their share of the multiply-adds of one token.
    """
    for step in (*report.steps, report):
        if step.sites:
            yield _sites_table(step)
    if report.layers or not report.sites:
        yield _layers_table(report)
    if report.left:
        yield _left_table(report)


def _sites_table(report: PruneReport) -> Table:
    """A row for each site: what is left of it, and the largest error of the layers that read it."""
    from sparse_engine.pruning.site_report import plural

    cells = [
        (
            f"{len(site.kept)} of {site.groups} {plural(site.kind)}",
            "-" if site.error_before is None else f"{site.error_before:.3f}",
            "-" if site.error_after is None else f"{site.error_after:.3f}",
        )
        for site in report.sites
    ]
    names = [site.name for site in report.sites]
    return named_table("site", "kept|error\nbefore|error\nafter", names, cells)


def _layers_table(report: PruneReport) -> Table:
    """A row for each pruned layer."""
    cells = [
        (
            f"{row.shape[0]}x{row.shape[1]}",
            f"{row.sparsity:.1%}",
            "-" if row.error_before is None else f"{row.error_before:.3f}",
            "-" if row.error_after is None else f"{row.error_after:.3f}",
            f"{row.seconds:.2f}",
        )
        for row in report.layers
    ]
    names = [row.name for row in report.layers]
    return named_table("layer", "shape|zeros|error\nbefore|error\nafter|seconds", names, cells)


def pattern_table(report: PatternReport) -> Table:
    """A row for each layer of `find_patterns`: its zeros, and what they are made of."""
    cells = [
        (
            f"{row.shape[0]}x{row.shape[1]}",
            f"{row.sparsity:.1%}",
            row.block,
            f"{row.fill:.1%}" if row.block not in ("dense", "zero", "element") else "",
            row.nm,
        )
        for row in report.layers
    ]
    names = [row.name for row in report.layers]
    return named_table("layer", "shape|zeros|block|filled|keep:of", names, cells)


def _left_table(report: PruneReport) -> Table:
    """A row for each reason, with its modules."""
    by_reason: dict[str, list[Any]] = {}
    for left in report.left:
        by_reason.setdefault(left.reason, []).append(left)
    table = new_table(tight=True)
    add_columns(table, "left alone", "million\nweights|multiply-\nadds", "top")
    table.add_column("why", vertical="top")
    for reason, found in by_reason.items():
        weights, work = (sum(getattr(left, name) for left in found) for name in COUNTS)
        names = shortened([left.name for left in found])
        table.add_row(Text(names), f"{weights / 1e6:.2f}", f"{work:.1%}", Text(reason))
    return table
