"""SearchReport: the candidates of `search` as values, a table, a page and a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar

from sparse_engine.reporting.chart import Table
from sparse_engine.reporting.line_chart import Line, LineChart
from sparse_engine.reporting.page import Page, Section, footer
from sparse_engine.reporting.report import Report
from sparse_engine.tuning.candidate import Candidate
from sparse_engine.tuning.quality import drop_of
from sparse_engine.tuning.table import number, text_table

BY = ("quality", "size", "time")
UNITS = {"size": "MB", "time": "ms"}
WIDEST = 26  # letters of a candidate in the table


@dataclass
class SearchReport(Report):
    """Result of `search`.

    The choice is the sparsest, smallest or fastest candidate that is good enough. By default that
    is one standard error below the best mean, the rule of Breiman et al. 1984, "Classification and
    Regression Trees", section 3.4.3.

    Attributes:
        metric: the name of the metric.
        higher_is_better: whether a larger value is better.
        by: "quality", "size" or "time".
        dense: the metric of the dense model in each fold; one value without data.
        max_drop: how much worse than that a mean may be; None for the standard error.
        relative: whether `max_drop` is a fraction of the dense model's metric.
        candidates: in the order of the grid.
        seconds: the whole time.
    """

    made_by: ClassVar[str] = "search"
    heading: ClassVar[str] = "Search"

    metric: str
    higher_is_better: bool
    by: str
    dense: tuple[float, ...]
    max_drop: float | None = None
    relative: bool = False
    candidates: list[Candidate] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> Candidate | None:
        """The candidate with the best mean; None if no metric was finite."""
        known = [one for one in self.candidates if one.mean is not None]
        return min(known, key=self._drop, default=None)

    @property
    def good_enough(self) -> list[Candidate]:
        """The candidates that may be chosen."""
        best = self.best
        if best is None:
            return []
        limit = self.max_drop
        if limit is None:
            sign = -1 if self.higher_is_better else 1
            least = (best.mean or 0.0) + sign * best.standard_error
            limit = drop_of(least, fmean(self.dense), self.higher_is_better, self.relative)
        known = [one for one in self.candidates if one.mean is not None]
        return [one for one in known if self._drop(one) <= limit]

    @property
    def choice(self) -> Candidate | None:
        """The one that is chosen; of equal ones the better one. None if none is good enough."""
        if self.by == "quality":
            return min(self.good_enough, key=lambda o: (-o.removed, self._drop(o)), default=None)
        return min(self.good_enough, key=lambda o: (o.cost, self._drop(o)), default=None)

    def _drop(self, one: Candidate) -> float:
        """How much worse a mean is than that of the dense model."""
        assert one.mean is not None
        return drop_of(one.mean, fmean(self.dense), self.higher_is_better, self.relative)

    @property
    def table(self) -> Table:
        """A row for each candidate."""
        spread = ("spread",) if len(self.dense) > 1 else ()
        unit = (UNITS[self.by],) if self.by in UNITS else ()
        head = ("candidate", "removed", "metric", *spread, "drop", *unit, "verdict")
        return Table(head, tuple(map(self._row, self.candidates)))

    def _row(self, one: Candidate) -> tuple[str, ...]:
        label = ", ".join(map(str, one.arguments.values()))
        label = label if len(label) <= WIDEST else f"{label[: WIDEST - 1]}…"
        good = "good" if one in self.good_enough else ""
        drop = None if one.mean is None else self._drop(one)
        return (
            label,
            f"{one.removed:.1%}",
            number(one.mean),
            *((number(one.spread),) if len(self.dense) > 1 else ()),
            number(drop),
            *((number(one.cost),) if self.by in UNITS else ()),
            "chosen" if one is self.choice else good,
        )

    @property
    def summary(self) -> str:
        """Lines: the choice and why, and how it was measured."""
        choice = self.choice
        chosen = "no candidate is good enough" if choice is None else f"chosen: {choice.label}"
        over = f", mean over {len(self.dense)} folds" if len(self.dense) > 1 else ""
        dense = f"dense {self.metric}: {number(fmean(self.dense))}{over}"
        return f"{chosen}\nrule: {self._rule}\n{dense}"

    @property
    def _rule(self) -> str:
        what = {"quality": "the sparsest", "size": "the smallest", "time": "the fastest"}[self.by]
        if self.max_drop is None:
            return f"{what} within one standard error of the best"
        most = f"{self.max_drop:.2%}" if self.relative else number(self.max_drop)
        return f"{what} with a drop of at most {most}"

    def __str__(self) -> str:
        return f"{text_table(self.table)}\n\n{self.summary}"

    def _page(self, title: str) -> Page:
        choice = self.choice
        figures = [(number(fmean(self.dense)), f"{self.metric} of the dense model")]
        if choice is not None:
            figures = [(number(choice.mean), f"with {choice.label}"), *figures]
            figures.append((f"{choice.removed:.1%}", "of all parameters are gone"))
        points = tuple(
            sorted((100 * o.removed, o.mean) for o in self.candidates if o.mean is not None)
        )
        chart = LineChart(
            "search",
            f"{self.metric} by parameters removed",
            f"The mean of {self.metric} of {len(points)} candidates by percent of all parameters "
            "that are gone, and a dashed line for the dense model. The table has the numbers.",
            "% of all parameters removed",
            self.metric,
            (Line("candidates", points),),
            level=("dense", fmean(self.dense)),
        )
        section = Section(
            "Candidates",
            (f"Chosen is {self._rule}.",),
            (chart,) if points else (),
            table=self.table,
            table_title="All candidates",
        )
        return Page(title, self.summary.splitlines()[0], tuple(figures), (), (section,), footer())
