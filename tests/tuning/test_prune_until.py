"""prune_until: its rounds, how they end, and what an error leaves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from tuning_cases import ALL, FakeClock, Watched, network, same, zeros

import sparse_engine as se


def test_the_limit_is_found_to_the_least_step() -> None:
    model = network()
    dense = copy.deepcopy(model)
    report = se.prune_until(model, Watched(0.731), sparsities=se.Widen(0.5, 0.1, 0.0125, 0.98))
    tried = [(one.sparsity, one.passed) for one in report.rounds]
    assert tried == [
        (0.5, True),
        (0.6, True),
        (0.7, True),
        (0.8, False),
        (0.75, False),
        (0.725, True),
        (0.7375, False),
    ]
    assert report.stop == "limit"
    assert report.sparsity == 0.725
    expected = copy.deepcopy(dense)
    for sparsity in (0.5, 0.6, 0.7, 0.725):
        se.prune(expected, sparsity)
    assert same(model, expected)


def test_a_first_round_that_fails_is_halved() -> None:
    model = network()
    report = se.prune_until(model, Watched(0.3), sparsities=se.Widen(0.8, 0.1, 0.05))
    assert [one.sparsity for one in report.rounds] == [0.8, 0.4, 0.2, 0.3, 0.35]
    assert report.sparsity == 0.3
    assert zeros(model) == pytest.approx(0.3, abs=0.01)


def test_without_a_round_that_passes_the_model_is_the_dense_one() -> None:
    model = network()
    dense = copy.deepcopy(model)
    report = se.prune_until(model, Watched(0.0), sparsities=ALL)
    assert same(model, dense)
    assert (report.best, report.sparsity, report.stop) == (None, 0.0, "patience")
    assert "no round passed" in str(report)


@pytest.mark.parametrize(
    ("options", "stop", "sparsity", "rounds"),
    [
        ({"sparsities": ALL}, "patience", 0.4, 3),
        ({"sparsities": [0.2, 0.4]}, "list", 0.4, 2),
        ({"sparsities": ALL, "patience": 2}, "patience", 0.4, 4),
        ({"sparsities": [*ALL[:3], 0.65], "patience": 9}, "list", 0.4, 4),
        ({"sparsities": se.Widen(0.1, 0.2, 0.1, 0.3)}, "most", 0.3, 2),
        ({"sparsities": se.Widen(0.1, 0.2), "patience": 1}, "patience", 0.5, 4),
        ({"sparsities": ALL, "target": 0.3}, "target", 0.4, 2),
        ({"target": 0.45}, "target", 0.45, 1),
    ],
)
def test_ends_of_a_run(options: Any, stop: str, sparsity: float, rounds: int) -> None:
    model = network()
    report = se.prune_until(model, Watched(0.51), **options)
    assert (report.stop, report.sparsity, len(report.rounds)) == (stop, sparsity, rounds)
    assert zeros(model) == pytest.approx(sparsity, abs=0.01)
    assert report.is_complete


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(("relative", "max_drop"), [(False, 4.0), (True, 0.1)])
def test_drops_are_absolute_or_relative_up_or_down(
    higher: bool, relative: bool, max_drop: float
) -> None:
    def metric(model: nn.Module) -> float:
        lost = 10 * round(zeros(model), 1)
        return 40 - lost if higher else 40 + lost

    model = network()
    report = se.prune_until(
        model,
        metric,
        max_drop,
        relative=relative,
        higher_is_better=higher,
        sparsities=[0.2, 0.4, 0.6],
    )
    assert report.sparsity == 0.4
    expected = [0.05, 0.1, 0.15] if relative else [2, 4, 6]
    assert [one.drop for one in report.rounds] == expected


def fails_at(round: int, error: Callable[[], Any]) -> Callable[[nn.Module, int], None]:
    def train(model: nn.Module, number: int) -> None:
        with torch.no_grad():
            model[0].weight.mul_(1.5)
        if number == round:
            model.add_module("rest", nn.Linear(2, 2))
            error()

    return train


def interrupt() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise RuntimeError("out of\nluck")


@pytest.mark.parametrize(
    ("error", "stop", "reason"),
    [
        (interrupt, "interrupt", "the run was interrupted"),
        (fail, "error", "the function given as train fails: RuntimeError: out of"),
    ],
)
def test_an_error_in_train_keeps_the_best_state(error: Any, stop: str, reason: str) -> None:
    model = network()
    report = se.prune_until(model, Watched(1), sparsities=ALL, train=fails_at(3, error))
    expected = network()
    se.prune_until(expected, Watched(1), sparsities=ALL[:2], train=fails_at(3, error))
    assert same(model, expected)
    assert (report.stop, report.reason, report.sparsity) == (stop, reason, 0.4)
    assert [one.verdict for one in report.rounds] == ["passed", "passed", "unfinished"]
    assert not report.is_complete
    assert reason in str(report)


class Broken(Watched):
    """A metric that does something else at its fourth call."""

    def __init__(self, then: Callable[[], Any]) -> None:
        super().__init__(1.0)
        self.then, self.calls = then, 0

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        value = self.then() if self.calls == 4 else super().__call__(model)
        return value  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("then", "stop", "reason"),
    [
        (lambda: math.nan, "metric", "metric gives nan; it has to give a finite number"),
        (lambda: "much", "metric", "metric gives a str, which is no number"),
        (fail, "metric", "the function given as metric fails: RuntimeError: out of"),
        (interrupt, "interrupt", "the run was interrupted"),
    ],
)
def test_a_broken_metric_keeps_the_best_state(then: Any, stop: str, reason: str) -> None:
    model = network()
    report = se.prune_until(model, Broken(then), sparsities=ALL)
    assert (report.stop, report.reason, report.sparsity) == (stop, reason, 0.4)
    expected = network()
    se.prune(expected, 0.2)
    se.prune(expected, 0.4)
    assert same(model, expected)


def test_other_exceptions_leave_through_prune_until_with_the_best_state() -> None:
    model = network()

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        se.prune_until(model, Broken(leave), sparsities=ALL)
    assert zeros(model) == pytest.approx(0.4, abs=0.01)


def test_a_training_that_fills_the_zeros_is_refused() -> None:
    def train(model: nn.Module, number: int) -> None:
        with torch.no_grad():
            model[0].weight.add_(0.1)

    model = network()
    dense = copy.deepcopy(model)
    report = se.prune_until(model, Watched(1), sparsities=ALL, train=train)
    assert report.stop == "error"
    assert report.reason.startswith("train fills weights that were pruned: hold them")
    assert same(model, dense)


@pytest.mark.parametrize(
    ("budget", "seconds", "rounds", "reason"),
    [
        # Three rounds of 10 s leave 5 of 35 s.
        ("35s", [10, 10, 10, 10], 3, "no further round fits into the budget of 35s"),
        # The second round is longer than the first one promised.
        (25, [10, 20, 10, 10], 1, "25s were over inside of a round"),
        ("1m", [10, 25, 10, 10], 2, "no further round fits into the budget of 1m"),
    ],
)
def test_a_budget(
    budget: Any, seconds: list[int], rounds: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeClock(monkeypatch)

    def train(model: nn.Module, number: int) -> None:
        fake.now += seconds[number - 1]

    model = network()
    report = se.prune_until(model, Watched(1), sparsities=ALL, train=train, budget=budget)
    assert (report.stop, report.reason) == ("budget", reason)
    assert sum(one.passed for one in report.rounds) == rounds
    assert zeros(model) == pytest.approx(ALL[rounds - 1], abs=0.01)


@pytest.mark.parametrize("phase", ["training", "prun"])
def test_a_budget_ends_inside_of_a_round(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeClock(monkeypatch)
    texts: list[str] = []

    def tell(done: int, total: int, text: str) -> None:
        texts.append(text)
        fake.now += 10 * (("training" in text) == (phase == "training"))

    inputs = [torch.randn(4, 12) for _ in range(3)]
    train = se.Retrain(inputs, steps=5)
    model = network()
    dense = copy.deepcopy(model)
    report = se.prune_until(model, Watched(1), sparsities=ALL, train=train, budget=5, progress=tell)
    assert (report.stop, report.rounds[0].verdict) == ("budget", "unfinished")
    assert texts[0] == "round 1, sparsity 0.2: 0"
    assert len(texts) == (4 if phase == "training" else 1)  # of 3 layers and 5 steps
    assert same(model, dense)
