"""The options of prune for a target, and the table of what was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from sparse_engine.errors import UsageError
from sparse_engine.reporting.tables import add_columns, fold, heading, new_table

if TYPE_CHECKING:
    from sparse_engine.pruning import PruneReport, Target
    from sparse_engine.pruning.target.report import TargetReport

NAME_WIDTH = 40  # of 80 columns, what the others leave


GOALS = ("speedup", "latency_ms", "size_mb", "params", "flops")
DETAILS = ("tokens", "dtype", "search_seconds")
OPTIONS = (*GOALS, *DETAILS)
"""The options of prune that describe a target."""


def find_target(
    goals: dict[str, float | None],
    tokens: int,
    dtype: str,
    threads: int | None,
    search_seconds: float,
) -> Target | None:
    """The target of the command line; None without a goal.

    Args:
        goals: by name, as in `Target`.
        tokens, dtype, threads, search_seconds: as in `Target`.

    Raises:
        UsageError: for more than one goal, or values out of range.
    """
    from sparse_engine.pruning import Target

    given = {name: value for name, value in goals.items() if value is not None}
    if not given:
        return None
    return Target(
        **given,  # type: ignore[arg-type]
        tokens=tokens,
        dtype=dtype,
        threads=threads,
        search_seconds=search_seconds,
    )


def check_details(ctx: typer.Context) -> None:
    """Raise UsageError for an option that describes a target, where no goal is given."""
    if any(ctx.params[goal] is not None for goal in GOALS):
        return
    for name in DETAILS:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise UsageError(f"--{option} describes a target: give --speedup or another goal too")


def target_tables(report: PruneReport) -> list[Table | Text]:
    """What was chosen for each layer, and a heading; nothing without a target."""
    target = report.target
    if target is None:
        return []
    tables: list[Table | Text] = [heading(f"target {target.target}"), _table(target)]
    return [*tables, heading("structures"), _shares(target)] if target.shares else tables


def _table(target: TargetReport) -> Table:
    table = new_table(tight=True)
    add_columns(table, "layer|granularity|format", f"zeros|{target.unit}|error")
    for row in target.layers:
        table.add_row(
            Text(fold(row.name, NAME_WIDTH)),
            row.granularity if row.sparsity else "-",
            row.format,
            f"{row.sparsity:.0%}",
            target.text(row.cost),
            f"{row.error:.3f}",
        )
    return table


def _shares(target: TargetReport) -> Table:
    table = new_table(tight=True)
    add_columns(table, "", f"removed|{target.unit}|error of the outputs")
    for row in target.share_rows:
        table.add_row(*row)
    return table


def convert_options(target: Target | None) -> str:
    """Options of convert that a target was measured with, to be added to the command."""
    if target is None:
        return ""
    format = " --format csr" if target.goal == "size_mb" else ""
    tokens = f" --tokens {target.tokens}" if target.is_time else ""
    dtype = f" --dtype {target.dtype}" if target.dtype != "float32" else ""
    return format + tokens + dtype
