"""prune(target=...): budgets that are met, predictions that are corrected, models left alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, hooks, mlp, same, state
from target_cases import FormulaMachine
from torch import nn

from sparse_engine.convert.census import census
from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune, read_recipe
from sparse_engine.pruning.plan import make_plan
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.target import method
from sparse_engine.pruning.target.target import Target


@pytest.fixture(autouse=True)
def formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "Machine", FormulaMachine)
    monkeypatch.setattr(FormulaMachine, "bias", 1.0)


def pruned(model: nn.Module, **options: Any) -> PruneReport:
    """A model pruned to a target, with a cheap criterion and a short search."""
    goal = {name: options.pop(name) for name in list(options) if name in Target.__annotations__}
    target = Target(**{"search_seconds": 0, **goal})
    defaults = {"criterion": "magnitude", "calibration": bert_batches()}
    return prune(model, target=target, **(defaults | options))


@pytest.mark.parametrize("speedup", [1.3, 2.0, 3.0])
def test_speedup_is_met(speedup: float) -> None:
    report = pruned(bert(), speedup=speedup)
    found = report.target
    assert found is not None
    assert found.predicted == pytest.approx(found.measured, rel=0.05)
    assert found.dense / found.measured == pytest.approx(speedup, rel=0.05)
    assert {row.name for row in found.layers} == {row.name for row in report.layers}
    for row, layer in zip(
        sorted(found.layers, key=lambda row: row.name),
        sorted(report.layers, key=lambda row: row.name),
        strict=True,
    ):
        assert layer.sparsity == pytest.approx(row.sparsity, abs=0.03)
        assert layer.granularity == row.granularity
    assert "speedup" in report.summary
    again = PruneReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.target == found
    assert (f"{found.measured:.4g} ms", "measured") in [
        (figure, caption.partition(":")[0]) for figure, caption in again.page().figures
    ]


@pytest.mark.parametrize("bias", [0.8, 1.3])
def test_a_wrong_prediction_is_corrected(bias: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FormulaMachine.measure

    def measure(self: FormulaMachine, weights: Any, *args: Any, **kwargs: Any) -> Any:
        # Uneven settings are slower, or faster, than what uniform ones let expect.
        uniform = len({round(float((w == 0).float().mean()), 1) for w, _ in weights.values()}) == 1
        self.bias = 1.0 if uniform else bias
        return whole(self, weights, *args, **kwargs)

    monkeypatch.setattr(FormulaMachine, "measure", measure)
    found = pruned(bert(), speedup=2.0).target
    assert found is not None
    assert found.predicted == pytest.approx(found.measured, rel=0.1)
    assert found.dense / found.measured == pytest.approx(2.0, rel=0.1)


def test_the_least_errors_are_chosen() -> None:
    """Of two layers of one size, the one whose weights matter less loses more."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        for layer, spread in ((0, 0.1), (2, 3.0)):
            weights = (torch.randn(16, 16) * spread).exp()
            model[layer].weight.copy_(weights)  # type: ignore[operator]
    found = pruned(model, params=700, calibration=batches(16), granularity="element").target
    assert found is not None
    chosen = {row.name: row.sparsity for row in found.layers}
    assert chosen["2"] > chosen["0"]


@pytest.mark.parametrize("seconds", [0, 1])
def test_counts_are_met_without_a_clock(seconds: int) -> None:
    model = bert()
    limit = 0.7 * sum(p.numel() for p in model.parameters())
    before = FormulaMachine.models
    report = pruned(model, params=limit, search_seconds=seconds)
    found = report.target
    assert found is not None
    assert found.measured <= limit
    assert found.measured == pytest.approx(found.predicted, rel=1e-3)
    weights = sum(row.shape[0] * row.shape[1] for row in report.layers)
    assert report.sparsity * weights == pytest.approx(found.dense - found.measured)
    assert (found.evaluations > 0) == (seconds > 0)
    assert FormulaMachine.models == before


def test_flops_count_two_for_a_multiply_add() -> None:
    model = mlp()
    found = pruned(model, flops=400, calibration=batches()).target
    assert found is not None
    assert found.dense == 2 * (12 * 20 + 20 * 7)
    assert found.measured == 2 * sum(int(model[i].weight.count_nonzero()) for i in (0, 2))
    assert found.measured <= 400


def test_a_search_with_one_seed_gives_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_engine.pruning.target import allocator

    ticks = iter(range(10**6))
    monkeypatch.setattr(allocator.time, "monotonic", lambda: next(ticks) / 2)
    results = []
    for _ in range(2):
        model = bert()
        report = pruned(model, speedup=2.0, search_seconds=10, seed=3)
        assert report.target is not None
        assert report.target.evaluations > 10
        results.append(([row.sparsity for row in report.target.layers], state(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_the_search_is_no_worse_than_the_sum_of_errors() -> None:
    dense = bert().eval()
    errors = []
    for seconds in (0, 3):
        model = copy.deepcopy(dense)
        pruned(model, params=4000, search_seconds=seconds, recovery="none")
        with torch.no_grad():
            pairs = [
                (model(**b)[0] - dense(**b)[0])[b["attention_mask"] != 0] for b in bert_batches()
            ]
        errors.append(float(torch.cat(pairs).square().sum()))
    assert errors[1] <= errors[0] * (1 + 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speedup": 50.0}, "speedup 50 at 128 tokens is out of reach: the best is"),
        ({"speedup": 2.0, "criterion": "activation"}, "scores whole rows only: it cannot meet"),
        ({"speedup": 2.0, "criterion": "magnitude(sigma=1)"}, "decides what is removed: it cannot"),
        ({"params": 10}, "params 10 is out of reach: the best is"),
        ({"latency_ms": 1e-3}, "out of reach"),
        ({"speedup": 2.0, "sparsity": 0.5}, "a sparsity or a target, not both"),
        ({"speedup": 2.0, "allocator": "lamp"}, "leave out allocator lamp"),
        ({"speedup": 2.0, "calibration": None}, "needs calibration inputs"),
        ({"speedup": 2.0, "calibration": []}, "calibration"),
        ({"speedup": 2.0, "granularity": ()}, "granularity is empty"),
        ({"speedup": 2.0, "granularity": "9by1"}, "9by1"),
        ({"speedup": 2.0, "overrides": [{"match": "*", "sparsity": 0.5}]}, "overrides"),
    ],
)
def test_refusals_change_nothing(options: dict[str, Any], message: str) -> None:
    model = bert()
    before, hooked = state(model), hooks(model)
    with pytest.raises(UsageError) as error:
        pruned(model, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert same(before, state(model))
    assert hooks(model) == hooked


@pytest.mark.parametrize("moment", ["searching", "measuring"])
def test_an_interrupt_leaves_the_model_as_it_was(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert()
    before = state(model)

    def interrupt(done: int, total: int, text: str) -> None:
        if text.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(model, speedup=2.0, search_seconds=5, progress=interrupt)
    assert same(before, state(model))


def test_a_target_that_the_dense_model_meets_removes_nothing() -> None:
    model = bert()
    found = pruned(model, latency_ms=1e6, recovery="none")
    assert found.sparsity == 0
    assert found.target is not None
    assert {row.format for row in found.target.layers} <= {"dense", "csr"}


def test_several_granularities_need_a_target() -> None:
    with pytest.raises(UsageError, match="several granularities need a target"):
        prune(mlp(), 0.5, ("element", "4x1"))


def test_the_recipe_repeats_the_choice(tmp_path: Any) -> None:
    first, second = bert(), bert()
    report = pruned(first, speedup=2.0, recovery="least_squares")
    path = tmp_path / "pruning.json"
    path.write_text(json.dumps(report.to_dict()))
    again = prune(second, **read_recipe(path).options, calibration=bert_batches())
    assert again.target is None
    assert same(state(first), state(second))


@pytest.mark.parametrize("goal", ["speedup", "params", "flops"])
def test_a_target_after_a_structure_counts_what_it_frees(goal: str) -> None:
    model, dense = bert(), bert()
    before = census(dense)
    values = {
        "speedup": 3.0,
        "params": 0.8 * before.parameters,
        "flops": 0.8 * before.multiply_adds,
    }
    target = Target(**{goal: values[goal], "search_seconds": 0})  # type: ignore[arg-type]
    steps = [{"granularity": "unit(keep=4)", "sparsity": 0.5}, {"target": target}]
    report = prune(model, steps=steps, criterion="magnitude", calibration=bert_batches())
    found = report.target
    assert found is not None
    assert found.measured <= 1.05 * found.limit
    assert found.predicted == pytest.approx(found.measured, rel=0.05)
    if goal == "params":
        assert found.dense == before.parameters
        zeros = sum(int((layer.weight == 0).sum()) for layer in make_plan(model).layers)
        assert found.measured == sum(p.numel() for p in model.parameters()) - zeros
    if goal == "flops":
        assert found.dense == 2 * before.multiply_adds
    if goal == "speedup":
        assert found.dense / found.measured == pytest.approx(3.0, rel=0.05)
    again = bert()
    prune(again, **_arguments(report), calibration=bert_batches())
    assert same(state(model), state(again))


def _arguments(report: PruneReport) -> dict[str, Any]:
    return {name: value for name, value in report.recipe.items() if name != "version"}
