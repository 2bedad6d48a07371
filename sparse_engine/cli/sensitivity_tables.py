"""The tables of `sparse-engine sensitivity`, of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sparse_engine.analysis.sections import speed_up
from sparse_engine.analysis.trial import show
from sparse_engine.reporting.tables import WIDTH, add_columns, fold, new_table

if TYPE_CHECKING:
    from sparse_engine.analysis.report import SensitivityReport

SETTINGS = 5
"""Columns of settings in a table; more are in tables of their own."""
NUMBER = 9
"""Width of a number and the space before it."""


def sensitivity_tables(report: SensitivityReport) -> Iterator[Table]:
    """A row for each layer with the metric of each setting, and a row for all layers together.

    A star marks the settings that no other one beats in both time and metric.
    """
    settings = list(dict.fromkeys(trial.setting for trial in report.by_layer))
    ranks = {layer: str(rank) for rank, layer in enumerate(report.ranking, 1)}
    for at in range(0, len(settings), SETTINGS):
        shown = settings[at : at + SETTINGS]
        table = new_table(tight=True)
        heads = [setting.replace(" ", "\n", 1) for setting in shown]
        add_columns(table, f"{report.metric},\none layer pruned", "|".join(["rank", *heads]))
        values: dict[str, dict[str, str]] = {}
        for trial in report.by_layer:
            values.setdefault(trial.layer, {})[trial.setting] = show(trial.metric)
        width = WIDTH - 5 - NUMBER * len(shown)
        for layer, row in values.items():
            cells = (row.get(setting, "") for setting in shown)
            table.add_row(Text(fold(layer, width)), ranks[layer], *cells)
        yield table
    if report.by_model:
        table = new_table(tight=True)
        add_columns(table, "all layers\npruned", f"zeros|{report.metric}|ms|dense\nms|speed\n-up")
        front = report.front
        for trial in report.by_model:
            star = "*" if trial in front else ""
            table.add_row(
                f"{trial.granularity}{star}",
                f"{100 * trial.sparsity:.1f}%",
                show(trial.metric),
                *("" if ms is None else f"{ms:.2f}" for ms in (trial.ms, trial.dense_ms)),
                speed_up(trial),
            )
        yield table
