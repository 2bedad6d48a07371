"""prune_until finds the limit of a known metric, and every end of a run keeps the best state."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tuning_cases import Watched, network, same, zeros

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.tuning import clock, journal

ALL = [0.2, 0.4, 0.6, 0.8]


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


class FakeClock:
    """Time that passes when something is done."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr(clock, "monotonic", lambda: self.now)
        patch.setattr("sparse_engine.tuning.run.monotonic", lambda: self.now)


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


def killed(at: int) -> Callable[[nn.Module, int], None]:
    """A training that leaves the process in a round; otherwise it changes the kept weights."""

    def train(model: nn.Module, number: int) -> None:
        if number == at:
            raise SystemExit
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + 0.1 * torch.rand(p.shape))

    return train


@pytest.mark.parametrize("at", range(1, 8))
def test_a_killed_run_goes_on_to_the_same_result(at: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sparsities": se.Widen(0.5, 0.1, 0.0125), "max_drop": 0.01}
    whole = network()
    expected = se.prune_until(whole, Watched(0.731), train=killed(0), **options)
    assert len(expected.rounds) == 7
    folder = tmp_path / "run"
    model = network()
    with pytest.raises(SystemExit):
        se.prune_until(model, Watched(0.731), train=killed(at), folder=folder, **options)
    torch.rand(3)  # another process has other random numbers
    again = network()
    report = se.prune_until(again, Watched(0.731), train=killed(0), folder=folder, **options)
    assert same(again, whole)
    for one, other in zip(report.rounds, expected.rounds, strict=True):
        assert (one.sparsity, one.metric, one.verdict) == (
            other.sparsity,
            other.metric,
            other.verdict,
        )
    assert report.stop == expected.stop
    # A run that has ended is read from its folder.
    last = network()
    called = count()
    se.prune_until(
        last, Watched(0.731), train=named_killed(lambda *a: next(called)), folder=folder, **options
    )
    assert next(called) == 0
    assert same(last, whole)
    assert sorted(path.name for path in folder.iterdir()) == ["round-006.safetensors", "run.json"]


def named_killed(function: Any) -> Any:
    function.__name__ = "train"
    return function


def test_structures_come_back_from_a_folder(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 100), nn.ReLU(), nn.Linear(100, 4))

    def metric(model: Any) -> float:
        return -float(model[0].out_features < 30)

    options: dict[str, Any] = {"granularity": "unit", "folder": tmp_path / "run"}
    model, again = build(), build()
    se.prune_until(model, metric, sparsities=ALL, **options)
    se.prune_until(again, metric, sparsities=ALL, **options)
    assert again[0].out_features == 40
    assert same(model, again)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(0.5), sparsities=ALL, folder=folder)
    before = (folder / "run.json").read_bytes()
    changed = network()
    with torch.no_grad():
        changed[0].weight[0, 0] += 1
    for model, options, key in (
        (network(), {"sparsities": [0.3]}, "sparsities"),
        (network(), {"max_drop": 0.5}, "max_drop"),
        (network(), {"granularity": "4x1"}, "methods"),
        (network(), {"train": killed(0)}, "train"),
        (changed, {}, "model"),
    ):
        dense = copy.deepcopy(model)
        arguments: dict[str, Any] = {"sparsities": ALL, "folder": folder, **options}
        with pytest.raises(UsageError, match=f"begun with another {key}"):
            se.prune_until(model, Watched(0.5), **arguments)
        assert same(model, dense)
    assert (folder / "run.json").read_bytes() == before


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, message in (
        ("texts", "is no folder of a run: it holds notes.txt"),
        ("damaged", "is no file of a run"),
        ("file", "exists"),
        ("none/run", "No such file"),
    ):
        with pytest.raises(SparseEngineError, match=message):
            se.prune_until(network(), Watched(1), folder=tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"rounds": 3},
        {"rounds": [3]},
        {"rounds": [{"number": "first"}]},
        {"dense": "1"},
        {"dense": None},
        {"dense": 10**400},
        {"rounds": []},
        {"state": None},
        {"state": "a\0b"},
        {"state": "../round-001.safetensors"},
        {"state": ".."},
        {"request": []},
    ],
)
def test_a_damaged_run_is_refused(change: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)
    values = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**values, **change}))
    model = network()
    dense = copy.deepcopy(model)
    with pytest.raises(InvalidFileError):
        se.prune_until(model, Watched(1), sparsities=[0.5], folder=folder)
    assert same(model, dense)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"sparsity": 0.6},
        {"metric": None},
        {"drop": 0.5},
        {"verdict": "failed"},
        {"verdict": "unfinished"},
        {"seconds": -1.0},
    ],
)
def test_rounds_that_do_not_follow_from_one_another_are_refused(
    change: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(1), sparsities=[0.5, 0.7], folder=folder)
    values = json.loads((folder / "run.json").read_text())
    values["rounds"][0] |= change
    (folder / "run.json").write_text(json.dumps(values))
    model = network()
    with pytest.raises(InvalidFileError, match="round 1 in the folder does not follow"):
        se.prune_until(model, Watched(1), sparsities=[0.5, 0.7], folder=folder)
    assert same(model, network())


@pytest.mark.parametrize("place", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_state_that_is_no_file_is_refused(place: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)
    (folder / "round-001.safetensors").unlink()
    place(folder / "round-001.safetensors")
    with pytest.raises(InvalidFileError, match=r"is not a regular file|is a link"):
        se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def train(model: nn.Module, number: int) -> None:
        se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)

    report = se.prune_until(network(), Watched(1), train=train, folder=folder)
    assert report.reason == f"{folder} is being written by another process"


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)
    state = folder / "round-001.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[:-8])
    for _ in range(2):
        model = network()
        dense = copy.deepcopy(model)
        with pytest.raises(SparseEngineError, match=r"round-001.safetensors"):
            se.prune_until(model, Watched(1), sparsities=[0.5], folder=folder)
        assert same(model, dense)
        state.unlink(missing_ok=True)


def test_a_full_disk_keeps_the_best_state_and_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    write = journal.write_tensors

    def full(path: Path, tensors: Any) -> dict[str, str]:
        if "round-003" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return write(path, tensors)

    monkeypatch.setattr(journal, "write_tensors", full)
    model = network()
    report = se.prune_until(model, Watched(1), sparsities=ALL, folder=folder)
    assert report.stop == "error"
    assert report.reason.endswith("round-003.safetensors: No space left on device")
    assert "\n" not in report.reason
    assert [one.verdict for one in report.rounds] == ["passed"] * 3
    assert zeros(model) == pytest.approx(0.6, abs=0.01)  # the model has what could not be written
    assert sorted(path.name for path in folder.iterdir()) == ["round-002.safetensors", "run.json"]
    assert len(json.loads((folder / "run.json").read_text())["rounds"]) == 2
    monkeypatch.undo()
    again = network()
    report = se.prune_until(again, Watched(1), sparsities=ALL, folder=folder)
    assert report.sparsity == 0.8
    whole = network()
    se.prune_until(whole, Watched(1), sparsities=ALL)
    assert same(again, whole)


def test_a_larger_budget_goes_on_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeClock(monkeypatch)

    def train(model: nn.Module, number: int) -> None:
        fake.now += 10

    options: dict[str, Any] = {"sparsities": ALL, "train": train, "folder": tmp_path / "run"}
    report = se.prune_until(network(), Watched(1), budget=25, **options)
    assert (report.stop, report.sparsity) == ("budget", 0.4)
    report = se.prune_until(network(), Watched(1), budget=25, **options)
    assert (report.stop, report.sparsity) == ("budget", 0.4)
    report = se.prune_until(network(), Watched(1), budget=60, **options)
    assert (report.stop, report.sparsity) == ("list", 0.8)
