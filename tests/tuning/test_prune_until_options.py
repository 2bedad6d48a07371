"""prune_until: targets, methods, structures, Retrain, and wrong arguments."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tuning_cases import ALL, Watched, network, same, zeros

import sparse_engine as se
from sparse_engine.errors import UsageError


def test_a_target_is_measured_on_the_converted_copy() -> None:
    model = network()
    whole = sum(p.numel() for p in model.parameters())
    target = se.Target(params=whole - 300)
    report = se.prune_until(model, Watched(1), sparsities=ALL, target=target)
    assert report.stop == "target"
    assert report.sparsity == 0.4  # of 864 weights 345 are zero
    assert [one.cost for one in report.rounds] == [
        whole - sum(int((m.weight == 0).sum()) for m in pruned(s)) for s in (0.2, 0.4)
    ]
    assert report.rounds[1].less == pytest.approx(whole / report.rounds[1].cost)
    assert "parameters" in str(report)


def pruned(sparsity: float) -> list[Any]:
    model = network()
    se.prune(model, sparsity)
    return [module for module in model if isinstance(module, nn.Linear)]


@pytest.mark.parametrize(
    ("goal", "head"),
    [({"speedup": 1000.0}, "speed-up"), ({"latency_ms": 1e-9}, "ms"), ({"size_mb": 1e-9}, "MB")],
)
def test_targets_that_are_not_reached_are_in_the_table(goal: Any, head: str) -> None:
    model = network()
    report = se.prune_until(
        model,
        Watched(1),
        sparsities=[0.5],
        target=se.Target(**goal, tokens=4),
        calibration=[torch.randn(4, 12)],
    )
    assert report.stop == "list"
    [only] = report.rounds
    assert only.cost is not None
    assert only.cost > 0
    assert only.less is not None
    assert head in str(report).splitlines()[0]


def test_of_several_methods_each_round_takes_the_best() -> None:
    def metric(model: nn.Module) -> float:
        """The energy that is left, which magnitude keeps best."""
        return float(model[0].weight.detach().square().sum())

    model = network()
    report = se.prune_until(
        model,
        metric,
        0.9,
        relative=True,
        sparsities=[0.3, 0.6],
        methods=[{"criterion": "random"}, {"criterion": "magnitude"}, {"granularity": "4x1"}],
        seed=3,
    )
    assert [one.method.split(",")[0] for one in report.rounds] == ["magnitude", "magnitude"]
    expected = network()
    se.prune(expected, 0.3)
    se.prune(expected, 0.6)
    assert same(model, expected)


def test_structures_are_shares_of_the_dense_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 100), nn.ReLU(), nn.Linear(100, 4))
    report = se.prune_until(
        model, lambda m: -float(m[0].out_features < 30), sparsities=ALL, granularity="unit"
    )
    assert [one.passed for one in report.rounds] == [True, True, True, False]
    assert model[0].out_features == 40
    assert model(torch.randn(2, 6)).shape == (2, 4)


def test_retrain_distils_from_the_dense_model_and_holds_the_zeros() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(16, 12) for _ in range(8)]
    expected = [network()(x) for x in inputs]

    def error(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(
                float((model(x) - y).square().mean()) for x, y in zip(inputs, expected, strict=True)
            )

    reports = []
    for train in (None, se.Retrain(inputs, steps=60, learning_rate=0.01)):
        model = network()
        report = se.prune_until(
            model, error, 1e9, higher_is_better=False, sparsities=[0.5, 0.7], train=train
        )
        assert zeros(model) == pytest.approx(0.7, abs=0.01)
        reports.append(report)
    without, with_training = (report.rounds[-1].metric for report in reports)
    assert with_training < 0.7 * without


def test_a_recipe_of_retrain_begins_anew_in_each_round() -> None:
    inputs = [torch.randn(4, 12) for _ in range(3)]
    tracked: list[tuple[float, float]] = []

    class Optimizer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            tracked.append((self.param_groups[0]["lr"], zeros(model)))
            return super().step(closure)

    recipe = [
        {"hold": {}},
        {"prune": {"sparsity": 0.8, "start": 2, "granularity": "4x1"}},
        {"distil": {}},
        {"learning_rate": {"schedule": "linear"}},
    ]
    model = network()
    train = se.Retrain(inputs, 4, recipe=recipe, optimizer=lambda p: Optimizer(p, lr=0.04))
    report = se.prune_until(model, Watched(1), sparsities=[0.2, 0.4], train=train)
    assert report.stop == "list", report.reason
    rates = [rate for rate, _ in tracked]
    assert rates == pytest.approx([0.04, 0.03, 0.02, 0.01] * 2)
    assert tracked[1][1] == pytest.approx(0.2, abs=0.02)
    assert tracked[3][1] >= 0.79
    assert zeros(model) >= 0.79


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.filterwarnings("error")
def test_dropout_in_retrain(dropout: bool) -> None:
    modes: list[bool] = []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        modes.append(model.training)
        return model(batch).square().mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    train = se.Retrain([torch.randn(4, 12)], 2, loss=loss, dropout=dropout)
    report = se.prune_until(model, Watched(1), sparsities=[0.5], train=train)
    assert report.stop == "list", report.reason
    assert modes == [dropout, dropout]
    assert model.training


def test_modes_are_those_before(tmp_path: Path) -> None:
    model = network()
    model[1].eval()
    modes = []

    def metric(model: nn.Module) -> float:
        modes.append([m.training for m in model.modules()])
        return 1.0

    def train(model: nn.Module, number: int) -> None:
        assert [m.training for m in model] == [True, False, True, True, True]
        model.eval()

    se.prune_until(model, metric, sparsities=ALL, train=train)
    assert not any(map(any, modes))
    assert [m.training for m in model] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": 3}, "metric is 3"),
        ({"max_drop": -1}, "max_drop -1"),
        ({"max_drop": math.nan}, "max_drop nan"),
        ({"sparsities": []}, "sparsities is"),
        ({"sparsities": [0.5, 0.4]}, "ascending"),
        ({"sparsities": [0.5, 1.0]}, "below 1"),
        ({"patience": 0}, "patience 0"),
        ({"budget": "2 days"}, "budget '2 days'"),
        ({"budget": 0}, "budget 0"),
        ({"budget": 10**400}, "budget 1000"),
        ({"progress": 5}, "progress is 5"),
        ({"loss": 5}, "loss is a int"),
        ({"higher_is_better": None}, "higher_is_better is None"),
        ({"folder": 5}, "folder is 5"),
        ({"folder": ""}, "folder is ''"),
        ({"folder": "a\0b"}, "folder is 'a"),
        ({"metric": lambda m: "1.0"}, "metric gives a str"),
        ({"metric": lambda m: 10**400}, "metric gives a int"),
        ({"target": 2}, "target is 2"),
        ({"train": 1}, "train is 1"),
        ({"sparsity": 0.5}, "sparsity is decided here"),
        ({"granuality": "4x1"}, "the nearest are granularity"),
        ({"granularity": "2:4"}, "2:4 has a sparsity of its own"),
        ({"criterion": "magnitude(sigma=1.0)"}, "decides what is removed"),
        ({"criterion": "obs"}, "obs needs calibration inputs"),
        ({"methods": {"criterion": "random"}}, "give a list of mappings"),
        ({"methods": ["random"]}, "is no mapping"),
        ({"methods": [{"granularity": "unit"}, {}]}, "must all have the same granularity"),
        ({"layers": ("none",)}, "none"),
        ({"calibration": torch.zeros(2, 12)}, "calibration is a single Tensor"),
        ({"metric": lambda m: math.inf}, "metric gives inf"),
        ({"metric": lambda m: 0.0, "relative": True}, "of the dense model is 0"),
    ],
)
def test_wrong_arguments_change_nothing(options: Any, message: str) -> None:
    model = network()
    dense = copy.deepcopy(model)
    metric = options.pop("metric", Watched(1))
    with pytest.raises(UsageError, match=message):
        se.prune_until(model, metric, **options)
    assert same(model, dense)


def test_a_model_without_gradients_cannot_be_trained() -> None:
    model = network().requires_grad_(False)
    with pytest.raises(UsageError, match=r"call model\.requires_grad_"):
        se.prune_until(model, Watched(1), train=se.Retrain([torch.zeros(1, 12)]))


@pytest.mark.parametrize(
    "options",
    [{"start": 0}, {"step": 1.0}, {"start": 0.9, "most": 0.8}, {"least": 0.2}, {"most": "much"}],
)
def test_wrong_steps(options: Any) -> None:
    with pytest.raises(UsageError, match="Widen"):
        se.Widen(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"batches": []},
        {"batches": 3},
        {"steps": 0},
        {"learning_rate": 0},
        {"recipe": [{"nothing": {}}]},
        {"recipe": {"end": "3ep", "modifiers": [{"distil": {}}]}},
        {"loss": 3},
    ],
)
def test_wrong_retraining(options: Any) -> None:
    with pytest.raises(UsageError):
        se.Retrain(**{"batches": [torch.zeros(1, 12)], **options})


def test_a_loader_is_refused_with_the_way_to_give_it() -> None:
    loader = torch.utils.data.DataLoader([torch.zeros(12)])
    with pytest.raises(UsageError, match=r"such as list\(loader\)"):
        se.Retrain(loader)  # type: ignore[arg-type]


# --- folders
