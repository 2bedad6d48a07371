"""search: candidates against a loop written out, and the choice against the rule."""

from __future__ import annotations

import copy
import math
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import nn
from tuning_cases import network, same, zeros

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.tuning import Candidate, SearchReport
from sparse_engine.tuning.folds import make_folds


def left(model: nn.Module) -> float:
    """The energy of the weights that are left."""
    return float(model[0].weight.detach().square().sum())  # type: ignore[index]


@pytest.mark.parametrize(("count", "folds"), [(10, 5), (11, 3), (4, 4)])
def test_every_item_is_held_out_once(count: int, folds: int) -> None:
    made = make_folds(range(count), folds, seed=7)
    held = [fold.held_out for fold in made]
    assert sorted(item for part in held for item in part) == list(range(count))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for fold in made:
        assert sorted(fold.training + fold.held_out) == list(range(count))
    assert held == [fold.held_out for fold in make_folds(range(count), folds, seed=7)]
    if folds < count:
        assert held != [fold.held_out for fold in make_folds(range(count), folds, seed=8)]


def test_a_grid_without_data_is_evaluated_once() -> None:
    model = network()
    dense = copy.deepcopy(model)
    told: list[tuple[int, int, str]] = []
    report = se.search(
        model,
        left,
        {"sparsity": [0.5, 0.8], "granularity": ["element", se.Block(4, 1)]},
        progress=lambda *step: told.append(step),
    )
    assert same(model, dense)
    assert report.dense == (left(dense),)
    for one in report.candidates:
        pruned = network()
        se.prune(pruned, **one.arguments)
        assert one.scores == (left(pruned),)
        whole = sum(p.numel() for p in pruned.parameters())
        gone = sum(int((m.weight == 0).sum()) for m in pruned if isinstance(m, nn.Linear))
        assert one.removed == pytest.approx(gone / whole)
    assert [one.label for one in report.candidates] == [
        "sparsity 0.5, granularity element",
        "sparsity 0.5, granularity 4x1",
        "sparsity 0.8, granularity element",
        "sparsity 0.8, granularity 4x1",
    ]
    assert told[-1] == (4, 4, "sparsity 0.8, granularity 4x1")
    assert report.choice is report.best is report.candidates[0]


def test_structures_come_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 100), nn.ReLU(), nn.Linear(100, 4))
    dense = copy.deepcopy(model)
    report = se.search(
        model,
        lambda model: float(model[0].out_features),
        {"sparsity": [0.25, 0.5]},
        granularity="unit",
        max_drop=30,
    )
    assert same(model, dense)
    assert [one.scores for one in report.candidates] == [(75.0,), (50.0,)]
    units = 6 + 1 + 4  # parameters of a unit
    assert report.candidates[1].removed == pytest.approx(50 * units / (100 * units + 4))
    assert report.choice is report.candidates[0]


def test_thresholds() -> None:
    model = network()
    grid = {"criterion": ["magnitude(threshold=0.05)", "magnitude(threshold=0.2)"]}
    report = se.search(model, left, grid, max_drop=0.05, relative=True)
    assert report.choice is not None
    assert report.choice.arguments == {"criterion": "magnitude(threshold=0.05)"}
    se.prune(model, **report.choice.arguments)
    assert left(model) == report.choice.scores[0]


def test_cross_validation_is_a_loop_over_folds() -> None:
    torch.manual_seed(0)
    data = [torch.randn(12) for _ in range(12)]
    seen: list[tuple[int, ...]] = []

    def train(model: nn.Module, items: list[Any]) -> None:
        seen.append(tuple(id(item) for item in items))
        with torch.no_grad():
            model[0].weight.mul_(1 + torch.stack(items).mean() + torch.rand(()))  # type: ignore

    def metric(model: nn.Module, items: list[Any]) -> torch.Tensor:
        assert not model.training
        return model(torch.stack(items)).detach().square().mean()

    def calibration(items: list[Any]) -> list[Any]:
        return [torch.stack(items)]

    model = network()
    dense = copy.deepcopy(model)
    options: dict[str, Any] = {"data": data, "folds": 3, "train": train, "seed": 5}
    options |= {"calibration": calibration, "criterion": "wanda"}
    report = se.search(model, metric, {"sparsity": [0.5, 0.9]}, **options)
    assert same(model, dense)
    assert model.training
    folds = make_folds(data, 3, 5)
    for one in report.candidates:
        for index, (fold, score) in enumerate(zip(folds, one.scores, strict=True)):
            pruned = network()
            items = calibration(fold.training)
            se.prune(pruned, **one.arguments, criterion="wanda", calibration=items, seed=5)
            torch.manual_seed(5 + index)
            train(pruned, fold.training)
            pruned.eval()
            assert score == float(metric(pruned, fold.held_out))
        assert one.mean == pytest.approx(fmean(one.scores))  # type: ignore[arg-type]
        assert one.spread == pytest.approx(stdev(one.scores))  # type: ignore[type-var]
        assert one.standard_error == pytest.approx(one.spread / math.sqrt(3))
    assert seen[:3] == [tuple(id(item) for item in fold.training) for fold in folds]
    again = se.search(network(), metric, {"sparsity": [0.5, 0.9]}, **options)
    assert [one.scores for one in again.candidates] == [one.scores for one in report.candidates]


def report_of(*candidates: tuple[float, tuple[float | None, ...]], **options: Any) -> SearchReport:
    found = [Candidate({"sparsity": removed}, scores, removed) for removed, scores in candidates]
    values: dict[str, Any] = {"higher_is_better": True, "by": "quality", "dense": (10.0, 10.0)}
    return SearchReport(metric="f1", candidates=found, **{**values, **options})


def test_the_choice_is_the_sparsest_within_one_standard_error() -> None:
    candidates: list[tuple[float, tuple[float | None, ...]]] = [
        (0.5, (9.0, 11.0)),  # mean 10, standard error 1
        (0.7, (9.0, 9.0)),
        (0.8, (8.9, 8.9)),
        (0.9, (None, 11.0)),
    ]
    report = report_of(*candidates)
    assert report.best is report.candidates[0]
    assert [one.removed for one in report.good_enough] == [0.5, 0.7]
    assert report.choice is report.candidates[1]
    report = report_of(*candidates, max_drop=1.2)
    assert report.choice is report.candidates[2]
    report = report_of(*candidates, max_drop=0.05, relative=True)
    assert report.choice is report.candidates[0]
    lower = [(r, tuple(None if s is None else -s for s in scores)) for r, scores in candidates]
    report = report_of(*lower, higher_is_better=False, dense=(-10.0, -10.0))
    assert report.choice is report.candidates[1]
    report = report_of(*candidates, dense=(20.0, 20.0), max_drop=1.0)
    assert report.choice is None
    assert "no candidate is good enough" in str(report)
    assert report_of((0.5, (None, None))).choice is None


@pytest.mark.parametrize(("by", "unit"), [("size", "MB"), ("time", "ms")])
def test_size_and_time_are_measured_on_the_converted_copy(by: str, unit: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    dense = copy.deepcopy(model)
    report = se.search(
        model,
        lambda model: 1.0,
        {"sparsity": [0.5, 0.95]},
        by=by,
        tokens=4,
        calibration=[torch.randn(4, 64)],
    )
    assert same(model, dense)
    costs = [one.cost for one in report.candidates]
    assert all(cost is not None and cost > 0 for cost in costs)
    assert report.choice is min(report.candidates, key=lambda one: one.cost or 0)
    assert unit in str(report).splitlines()[0].split()
    if by == "size":
        assert report.choice is report.candidates[1]
        se.prune(model, 0.95)
        se.sparsify_(model, "csr")
        tensors = [*model.parameters(), *model.buffers()]
        assert costs[1] == pytest.approx(sum(t.nbytes for t in tensors) / 1e6, rel=0.01)


def test_a_metric_that_is_not_finite_is_not_chosen() -> None:
    def metric(model: nn.Module) -> float:
        return math.nan if zeros(model) > 0.8 else 1 - zeros(model)

    report = se.search(network(), metric, {"sparsity": [0.5, 0.9]})
    assert [one.mean is None for one in report.candidates] == [False, True]
    assert report.choice is report.candidates[0]
    assert report.candidates[1].scores == (None,)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_model_as_it_was(error: type[BaseException]) -> None:
    def metric(model: nn.Module) -> float:
        if zeros(model) > 0.8:
            raise error
        return 1.0

    model = network()
    dense = copy.deepcopy(model)
    with pytest.raises(UsageError if error is RuntimeError else error):
        se.search(model, metric, {"sparsity": [0.5, 0.9]})
    assert same(model, dense)


def test_reports_survive_a_dict_fit_into_80_columns_and_have_a_page() -> None:
    grid = {"sparsity": [0.5, 0.7], "granularity": ["element"], "criterion": ["magnitude(p=1)"]}
    data = list(range(6))
    report = se.search(
        network(), lambda m, items: fmean(items) - zeros(m), grid, data=data, folds=3
    )
    assert SearchReport.from_dict(report.to_dict()) == report
    table = str(report).partition("\n\n")[0]
    assert len(table.splitlines()) == 3
    assert max(map(len, table.splitlines())) <= 80
    page = report.page("Model")
    assert page.charts[0].table().rows
    html = page.html()
    assert "Candidates" in html
    assert "<svg" in html


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {}}, "grid is"),
        ({"grid": {"sparsty": [0.5]}}, "'sparsty' cannot be varied"),
        ({"grid": {"sparsity": 0.5}}, "give a list of values"),
        ({"grid": {"sparsity": [0.5, 0.5]}}, "has 0.5 twice"),
        ({"grid": {"sparsity": [0.5, 1.5]}}, "sparsity 1.5"),
        ({"grid": {"seed": list(range(1001)), "sparsity": [0.5]}}, "1001 combinations"),
        ({"metric": 3}, "metric is 3"),
        ({"progress": 3}, "progress is 3"),
        ({"higher_is_better": None}, "higher_is_better is None"),
        ({"metric": lambda m: 1e308}, r"metric gives 1e\+308"),
        ({"metric": lambda m: math.nan}, "metric gives nan"),
        ({"metric": lambda m: 0.0, "relative": True}, "of the dense model is 0"),
        ({"train": lambda m, items: None}, "give data too"),
        ({"calibration": lambda items: items}, "give data too"),
        ({"data": [1, 2]}, "5 folds need as many items"),
        ({"data": [1, 2], "folds": 1}, "folds 1"),
        ({"data": "text"}, "data is a str"),
        ({"by": "speed"}, "by is 'speed'"),
        ({"max_drop": -1}, "max_drop -1"),
        ({"seed": 0.5}, "seed 0.5"),
        ({"by": "time"}, "a call cannot be timed without calibration"),
        ({"granuality": "4x1"}, "the nearest are granularity"),
        ({"target": 3}, "target is decided here"),
    ],
)
def test_wrong_arguments_change_nothing(options: Any, message: str) -> None:
    model = network()
    dense = copy.deepcopy(model)
    given = {"metric": left, "grid": {"sparsity": [0.5]}, **options}
    with pytest.raises(UsageError, match=message):
        se.search(model, **given)
    assert same(model, dense)
