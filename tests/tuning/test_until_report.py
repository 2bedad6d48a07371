"""UntilReport: a table of 80 columns, plain values, and a page with the numbers of the rounds."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.tuning import Round, UntilReport
from sparse_engine.tuning.clock import duration, seconds_of


def report(**options: Any) -> UntilReport:
    cost = (12.5, 2.0) if options.get("unit") else (None, None)
    rounds = [
        Round(1, 0.5, "obs", 80.5, 0.5, *cost, 61.2, "passed"),
        Round(2, 0.75, "obs", 78.25, 2.75, None, None, 3700.0, "failed"),
        Round(3, 0.625, seconds=5.0),
    ]
    values: dict[str, Any] = {
        "metric": "accuracy",
        "higher_is_better": True,
        "dense": 81.0,
        "max_drop": 1.0,
        "rounds": rounds,
        "stop": "interrupt",
        "reason": "the run was interrupted",
    }
    return UntilReport(**{**values, **options})


def test_the_table() -> None:
    assert str(report()).splitlines() == [
        "round  sparsity  accuracy  drop     time     verdict",
        "    1       0.5      80.5   0.5     1m1s      passed",
        "    2      0.75     78.25  2.75  1h1m40s      failed",
        "    3     0.625                       5s  unfinished",
        "",
        "round 1 is kept: sparsity 0.5, accuracy 80.5; dense accuracy 81",
        "stopped: the run was interrupted",
    ]


@pytest.mark.parametrize(
    ("unit", "head", "cell"),
    [("speedup", "speed-up", "2"), ("latency_ms", "ms", "12.5"), ("size_mb", "MB", "12.5")],
)
def test_a_column_of_costs(unit: str, head: str, cell: str) -> None:
    text = str(report(unit=unit, relative=True, metric="a metric with a long name"))
    lines = text.splitlines()
    assert max(map(len, lines[:4])) <= 80
    assert lines[0].split()[4] == head
    assert lines[1].split()[3:5] == ["50.00%", cell]
    assert "2.00 times less than dense" in text


def test_plain_values() -> None:
    given = report()
    assert UntilReport.from_dict(given.to_dict()) == given
    with pytest.raises(InvalidFileError, match="report of prune_until"):
        UntilReport.from_dict({"metric": 3})


def test_the_page() -> None:
    page = report().page("Model")
    assert page.warnings == ("the run was interrupted",)
    [chart] = page.charts
    assert chart.table().rows == (
        ("0", "81.000", ""),
        ("50", "80.500", ""),
        ("75", "", "78.250"),
    )
    assert chart.level == ("limit", 80.0)  # type: ignore[attr-defined]
    lower = report(higher_is_better=False, relative=True, max_drop=0.1, dense=10.0)
    assert lower.page().charts[0].level == ("limit", 11.0)  # type: ignore[attr-defined]
    assert "<svg" in page.html()
    assert report(stop="limit").page().warnings == ()
    assert "unfinished" in report(rounds=[Round(1, 0.5)]).page().html()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("1h30m", 5400), ("90s", 90), ("1.5m", 90), (7, 7), (0.5, 0.5), (None, None)],
)
def test_budgets(text: Any, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2d", "-2h", "1h ", -1, True, float("inf"), "0s"])
def test_wrong_budgets(text: Any) -> None:
    with pytest.raises(UsageError, match="budget"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1234, "0.123s"), (59.96, "60s"), (60, "1m"), (3661, "1h1m1s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
