"""Schedules: what is removed when, against tables that were computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_engine.errors import UsageError
from sparse_engine.training import SCHEDULES, Prune
from sparse_engine.training.schedules import find_schedule

# Events and sparsities of a window from step 4 to step 12, sparsity 0.8 from 0.2.
TABLES: dict[str, dict[int, float]] = {
    "one_shot": {4: 0.8},
    "linear": {4: 0.2, 6: 0.35, 8: 0.5, 10: 0.65, 12: 0.8},
    # 0.8 - 0.6 (1 - p)^3 at p = 0, 1/4, 1/2, 3/4, 1
    "cubic": {4: 0.2, 6: 0.546875, 8: 0.725, 10: 0.790625, 12: 0.8},
    # 1 - 0.8 (1/4)^p
    "exponential": {4: 0.2, 6: 0.4343146, 8: 0.6, 10: 0.7171573, 12: 0.8},
    "multi_step": {4: 0.35, 7: 0.5, 10: 0.65, 12: 0.8},
    "multi_step(levels=2)": {4: 0.5, 12: 0.8},
    "multi_step(levels=1)": {4: 0.8},
    "multi_step(milestones=(0.25, 0.5, 0.75))": {6: 0.4, 8: 0.6, 10: 0.8},
    "acdc(cycles=1)": {4: 0.8, 8: 0.0, 12: 0.8},
    "acdc(cycles=2)": {4: 0.8, 6: 0.0, 8: 0.8, 10: 0.0, 12: 0.8},
}


def resolved(**options: Any) -> Prune:
    prune = Prune(**{"sparsity": 0.8, "initial": 0.2, "start": 4, "end": 12, **options})
    prune.resolve(None, None)
    return prune


@pytest.mark.parametrize("text", TABLES)
def test_events_and_sparsities(text: str) -> None:
    rises = text in ("linear", "cubic", "exponential")
    prune = resolved(schedule=text, **({"every": 2} if rises else {}))
    assert prune.events == tuple(TABLES[text])
    for step, sparsity in TABLES[text].items():
        assert prune.sparsity_at(step) == pytest.approx(sparsity, abs=1e-7)
        assert prune.sparsity_at(step + 1) == prune.sparsity_at(step) or step + 1 in TABLES[text]
    assert prune.sparsity_at(3) == 0
    assert prune.sparsity_at(1000) == 0.8


def test_every_schedule_has_a_table() -> None:
    assert {find_schedule(text).name for text in TABLES} == {cls.name for cls in SCHEDULES}


def test_a_layer_with_a_sparsity_of_its_own_rises_to_it() -> None:
    prune = resolved(schedule="linear", every=4)
    assert [prune.sparsity_at(step, 0.5) for step in (4, 8, 12)] == [0.2, 0.35, 0.5]
    assert [prune.sparsity_at(step, 0.1) for step in (4, 8, 12)] == [0.1, 0.1, 0.1]


def test_by_default_the_window_has_ten_intervals() -> None:
    assert resolved(start=0, end=100).events == tuple(range(0, 101, 10))
    assert resolved(start=0, end=3).events == (0, 1, 2, 3)
    assert resolved(start=3, end=3).events == (3,)
    assert resolved(start=5, end=None).events == (5,)


def test_moments_of_a_short_window_end_with_the_last() -> None:
    prune = resolved(schedule="acdc(cycles=8)", start=0, end=3)
    assert prune.events == (0, 1, 2, 3)
    assert prune.sparsity_at(3) == 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "acdc", "every": 2}, "has its own events"),
        ({"schedule": "linear", "end": None}, "needs an end"),
        ({"schedule": "acdc(cycles=0)"}, "not from 1 to 1000"),
        ({"schedule": "multi_step(levels=0)"}, "not from 1 to 1000"),
        ({"schedule": "multi_step(levels=10000000000)"}, "not from 1 to 1000"),
        ({"schedule": "linear", "every": 0}, "less than one step"),
        ({"schedule": "linear", "every": 1, "end": 10**12}, "give a longer distance"),
        ({"schedule": "multi_step(milestones=(0.5, 0.2))"}, "ascending shares"),
        ({"schedule": "multi_step(milestones=())"}, "ascending shares"),
        ({"schedule": "multi_step(milestones=(0, 2))"}, "ascending shares"),
        ({"schedule": "multi_step(milestones=('a', 'b'))"}, "ascending shares"),
        ({"schedule": "quartic"}, "not known"),
        ({"start": 13}, "before it starts"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=message):
        resolved(**options)
