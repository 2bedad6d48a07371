"""UntilReport: the rounds of `prune_until` as values, a table, a page and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from sparse_engine.reporting.chart import Table
from sparse_engine.reporting.line_chart import Line, LineChart
from sparse_engine.reporting.page import Page, Section, footer
from sparse_engine.reporting.report import Report
from sparse_engine.tuning.clock import duration
from sparse_engine.tuning.rounds import Round
from sparse_engine.tuning.table import number, text_table

COSTS = {"latency_ms": "ms", "size_mb": "MB", "params": "parameters", "flops": "FLOPs"}
MOST_TITLE = 16  # letters of the metric's name at the head of a column


@dataclass
class UntilReport(Report):
    """Result of `prune_until`.

    Attributes:
        metric: the name of the metric.
        higher_is_better: whether a larger value is better.
        dense: the metric of the dense model.
        max_drop: the largest drop that passes.
        relative: whether drops are fractions of the dense model's metric.
        target: its text form; "" without one.
        unit: the goal of the target, such as "speedup"; "" for a sparsity, or without a target.
        rounds: in the order in which they were tried.
        stop: what ended the run: "target", "limit" (the step is below its least), "list" (every
            sparsity was tried), "most", "patience", "budget", "metric" (it fails or is NaN),
            "error" or "interrupt".
        reason: the same as a sentence.
        seconds: the time of this call; rounds that an earlier process ran are not in it.
    """

    made_by: ClassVar[str] = "prune_until"
    heading: ClassVar[str] = "Pruned until the metric drops"

    metric: str
    higher_is_better: bool
    dense: float
    max_drop: float
    relative: bool = False
    target: str = ""
    unit: str = ""
    rounds: list[Round] = field(default_factory=list)
    stop: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def best(self) -> Round | None:
        """The round whose state the model has; None for the dense model."""
        passed = [one for one in self.rounds if one.passed]
        return max(passed, key=lambda one: one.sparsity, default=None)

    @property
    def sparsity(self) -> float:
        """That of the best round; 0 if the model is the dense one."""
        return 0.0 if self.best is None else self.best.sparsity

    @property
    def is_complete(self) -> bool:
        """Whether the run ended by its own rules, and not by an error or an interrupt."""
        return self.stop not in ("metric", "error", "interrupt")

    @property
    def summary(self) -> str:
        """Lines: the best round, and why the run ended."""
        best = self.best
        kept = "no round passed: the model is the dense one"
        if best is not None:
            kept = f"round {best.number} is kept: {self._describe(best)}"
        lines = [f"{kept}; dense {self.metric} {number(self.dense)}", f"stopped: {self.reason}"]
        return "\n".join(lines)

    def _describe(self, one: Round) -> str:
        parts = [f"sparsity {one.sparsity:g}", f"{self.metric} {number(one.metric)}"]
        if one.cost is not None:
            unit = "ms" if self.unit == "speedup" else COSTS[self.unit]
            parts.append(f"{one.cost:,.4g} {unit}, {one.less:.2f} times less than dense")
        return ", ".join(parts)

    @property
    def table(self) -> Table:
        """A row for each round."""
        return Table(self._head, tuple(map(self._row, self.rounds)), left=0)

    @property
    def _head(self) -> tuple[str, ...]:
        cost = ("speed-up" if self.unit == "speedup" else COSTS[self.unit],) if self.unit else ()
        name = self.metric if len(self.metric) <= MOST_TITLE else "metric"
        return ("round", "sparsity", name, "drop", *cost, "time", "verdict")

    def _row(self, one: Round) -> tuple[str, ...]:
        value = one.less if self.unit == "speedup" else one.cost
        drop = "" if one.drop is None else f"{one.drop:.2%}" if self.relative else number(one.drop)
        return (
            str(one.number),
            f"{one.sparsity:g}",
            number(one.metric),
            drop,
            *((number(value),) if self.unit else ()),
            duration(one.seconds),
            one.verdict,
        )

    def __str__(self) -> str:
        return f"{text_table(self.table)}\n\n{self.summary}"

    def _page(self, title: str) -> Page:
        best = self.best
        figures = [(f"{self.sparsity:g}", "sparsity that is kept"), (number(self.dense), "dense")]
        if best is not None:
            figures.insert(1, (number(best.metric), self.metric))
        figures.append((duration(sum(one.seconds for one in self.rounds)), "for all rounds"))
        section = Section(
            "Rounds",
            (f"Stopped: {self.reason}.",),
            (self._chart(),) if any(one.metric is not None for one in self.rounds) else (),
            table=self.table,
            table_title="All rounds",
        )
        subtitle = f"{self.metric}; at most {self._most} worse than the dense model"
        warnings = () if self.is_complete else (self.reason,)
        return Page(title, subtitle, tuple(figures), warnings, (section,), footer())

    @property
    def _most(self) -> str:
        return f"{self.max_drop:.2%}" if self.relative else number(self.max_drop)

    def _chart(self) -> LineChart:
        """The metric by sparsity, with the least that passes as a line."""
        measured = [one for one in self.rounds if one.metric is not None]
        passed, failed = (
            {one.sparsity: float(one.metric or 0) for one in measured if one.passed is wanted}
            for wanted in (True, False)
        )
        allowed = self.max_drop * (abs(self.dense) if self.relative else 1)
        limit = self.dense - allowed if self.higher_is_better else self.dense + allowed
        lines = [Line("passed", _points({0.0: self.dense} | passed))]
        if failed:
            lines.append(Line("failed", _points(failed)))
        return LineChart(
            "rounds",
            f"{self.metric} by sparsity",
            f"{self.metric} of every round by percent of zeros, and a dashed line at the limit "
            f"{number(limit)}. The table has the numbers.",
            "% sparsity",
            self.metric,
            tuple(lines),
            level=("limit", limit),
        )


def _points(values: Mapping[float, float]) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((100 * sparsity, value) for sparsity, value in values.items()))
