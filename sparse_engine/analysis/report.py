"""What `sensitivity` measured, as values, tables, a page and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sparse_engine.analysis.sections import (
    front_of,
    layer_table,
    layers_section,
    model_section,
    model_table,
    ranking,
    speed_up,
)
from sparse_engine.analysis.trial import Scale, Trial, show
from sparse_engine.reporting.chart import Table
from sparse_engine.reporting.page import Page, footer
from sparse_engine.reporting.report import Report


@dataclass
class SensitivityReport(Report):
    """Result of `sensitivity`.

    Attributes:
        metric: what was measured.
        higher_is_better: whether a larger value is better.
        dense: the metric of the dense model.
        criterion, recovery: how layers were pruned.
        trials: one layer at a time first, then all layers together.
        timed_on: where and on what times were taken; "" without times.
        seconds: the whole time.
    """

    made_by: ClassVar[str] = "sensitivity"
    heading: ClassVar[str] = "Sensitivity to pruning"

    metric: str
    higher_is_better: bool
    dense: float
    criterion: str
    recovery: str | None = None
    trials: list[Trial] = field(default_factory=list)
    timed_on: str = ""
    seconds: float = 0.0

    @property
    def by_layer(self) -> list[Trial]:
        """The trials of one layer."""
        return [trial for trial in self.trials if trial.layer]

    @property
    def by_model(self) -> list[Trial]:
        """The trials of all layers together."""
        return [trial for trial in self.trials if not trial.layer]

    @property
    def scale(self) -> Scale:
        """The metric with its direction and its dense value."""
        return Scale(self.metric, self.higher_is_better, self.dense)

    @property
    def ranking(self) -> dict[str, float]:
        """Each layer with its mean loss over all settings, the most sensitive first."""
        return ranking(self.by_layer, self.scale)

    @property
    def front(self) -> list[Trial]:
        """The timed settings that no other one beats in both time and metric, by rising time."""
        return front_of(self.by_model, self.higher_is_better)

    @property
    def summary(self) -> str:
        """Lines: how it was measured, and the layers that are the most and the least sensitive."""
        method = ", ".join(filter(None, (self.criterion, self.recovery)))
        lines = [
            f"{len(self.trials)} trials ({method}), {self.seconds:.1f} s; {self.metric} of the "
            f"dense model: {show(self.dense)}"
        ]
        if ranked := list(self.ranking):
            lines.append(f"most sensitive: {ranked[0]}; least: {ranked[-1]}")
        if self.timed_on:
            lines.append(f"timed on {self.timed_on}")
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Tables of the settings of all layers together, and of each layer."""
        tables = []
        if self.by_model:
            tables.append(_markdown(model_table(self.by_model, self.scale)))
        if self.by_layer:
            tables.append(_markdown(layer_table(self.by_layer, self.scale)))
        return "\n\n".join(tables)

    def __str__(self) -> str:
        return f"{self.summary}\n\n{self.to_markdown()}"

    def _page(self, title: str) -> Page:
        method = ", ".join(filter(None, (self.criterion, self.recovery)))
        figures = [(str(len(self.trials)), "trials"), (f"{self.seconds:.0f} s", "for all of them")]
        if self.front:
            fastest = self.front[0]
            figures.append((f"{fastest.ms:.3g} ms", f"a call, the fastest: {fastest.setting}"))
            figures.append((speed_up(fastest), "as fast as dense torch, timed in turn"))
        return Page(
            title,
            f"{self.metric}; {method}",
            tuple(figures),
            (),
            (
                model_section(self.by_model, self.scale, self.timed_on),
                layers_section(self.by_layer, self.scale),
            ),
            footer(),
        )


def _markdown(table: Table) -> str:
    lines = [table.head, tuple(":--" if i < table.left else "--:" for i in range(len(table.head)))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (*lines, *table.rows))
