"""prune(target=...) with structures: the share of them whose outputs are best within the target."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, mlp, same, state
from target_cases import FormulaMachine
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune, read_recipe
from sparse_engine.pruning.mixed import mixed_method
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.target import method
from sparse_engine.pruning.target.allocator import ByTarget
from sparse_engine.pruning.target.target import Target
from sparse_engine.structures import Head, Unit

KINDS = ["head", "unit(keep=2)"]
FINE = ["element", "4x1"]


@pytest.fixture(autouse=True)
def formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "Machine", FormulaMachine)


def target(**options: Any) -> Target:
    """A target with few settings, and no search unless it is asked for."""
    defaults = {"search_seconds": 0, "sparsities": (0.3, 0.6, 0.9), "shares": (0.0, 0.5)}
    return Target(**{**defaults, **options})


def pruned(model: nn.Module, goal: Target, **options: Any) -> PruneReport:
    defaults = {
        "granularity": [*KINDS, *FINE],
        "criterion": "magnitude",
        "calibration": bert_batches(),
    }
    return prune(model, target=goal, **{**defaults, **options})


@pytest.mark.parametrize("speedup", [1.5, 2.5])
def test_the_best_share_is_that_of_runs_in_steps(speedup: float) -> None:
    """The reference: each share removed in a step of its own, and the target met in the next."""
    goal = target(speedup=speedup, shares=(0.0, 0.25, 0.5))
    model = bert()
    report = pruned(model, goal)
    assert report.target is not None
    runs = {}
    for share in goal.shares:
        steps: list[dict[str, Any]] = [{"granularity": FINE, "target": goal}]
        if share:
            steps.insert(0, {"granularity": KINDS, "sparsity": share})
        reference = bert()
        found = prune(
            reference,
            steps=steps,
            criterion="magnitude",
            recovery="least_squares",
            calibration=bert_batches(),
        )
        assert found.target is not None
        runs[share] = found, reference
    best = min(runs, key=lambda share: runs[share][0].target.error)
    for row in report.target.shares:
        reference_target = runs[row.share][0].target
        assert row.error == pytest.approx(reference_target.error, rel=1e-6)
        assert row.predicted == pytest.approx(reference_target.predicted)
        assert row.is_chosen == (row.share == best)
    assert same(state(model), state(runs[best][1]))
    assert report.target.layers == runs[best][0].target.layers
    assert report.target.measured <= 1.05 * report.target.limit


def test_the_error_is_that_of_the_outputs() -> None:
    """Without a refit and by magnitude the layers are the same alone and after one another."""
    dense, model = bert().eval(), bert().eval()
    report = pruned(model, target(speedup=2.0, shares=(0.5,)), recovery="none")
    lost = size = 0.0
    with torch.no_grad():
        for batch in bert_batches():
            real = batch["attention_mask"] != 0
            wanted = dense(**batch).last_hidden_state[real].double()
            found = model(**batch).last_hidden_state[real].double()
            lost += float((found - wanted).square().sum())
            size += float(wanted.square().sum())
    assert report.target is not None
    (row,) = report.target.shares
    assert row.error == pytest.approx(lost / size, rel=1e-4)
    assert row.error == report.target.error


def test_the_recipe_holds_the_steps_and_repeats_them(tmp_path: Any) -> None:
    first, second = bert(), bert()
    report = pruned(first, target(speedup=2.0, shares=(0.5,)))
    (cut,) = report.steps
    assert {site.kind for site in cut.sites} == {"head", "unit"}
    assert [step["granularity"] for step in report.recipe["steps"]] == [KINDS, "element"]
    path = tmp_path / "pruning.json"
    path.write_text(json.dumps(report.to_dict()))
    assert PruneReport.from_dict(json.loads(path.read_text())) == report
    again = prune(second, **read_recipe(path).arguments, calibration=bert_batches())
    assert again.target is None
    assert same(state(first), state(second))


def test_a_target_that_the_dense_model_meets_removes_no_structure() -> None:
    model = bert()
    report = pruned(model, target(latency_ms=1e6), recovery="none")
    assert report.target is not None
    assert report.sparsity == 0
    assert report.steps == []
    assert "steps" not in report.recipe
    assert [row.share for row in report.target.shares if row.is_chosen] == [0.0]


def test_structures_reach_what_zeros_alone_do_not() -> None:
    """With a third of zeros at most, a target is met only where structures go too."""
    model = bert()
    limit = 0.6 * sum(p.numel() for p in model.encoder.parameters())
    limit += sum(p.numel() for p in model.embeddings.parameters())
    limit += sum(p.numel() for p in model.pooler.parameters())
    report = pruned(model, target(params=limit, sparsities=(0.3,)))
    assert report.target is not None
    alone, half = report.target.shares
    assert alone.error is None
    assert alone.predicted > limit
    assert half.is_chosen
    assert half.predicted <= limit
    assert report.target.measured <= limit
    assert "out of reach" in str(report)
    assert "| 50.0% |" in str(report)
    assert report.page().html().count("Shares of structures") == 1


def test_the_search_is_shared_out() -> None:
    goal = target(speedup=2.0, search_seconds=30, shares=(0.0, 0.25, 0.5))
    given = {"sparsity": None, "criterion": None, "recovery": None, "has_calibration": True}
    found = mixed_method(goal, (Head(), Unit()), ["4x1"], **given, allocator="raw")
    assert isinstance(found.zeros.allocator, ByTarget)
    assert found.zeros.allocator.target.search_seconds == 10
    assert [str(cut.of_layers.allocator) for cut in found.cuts] == ["raw"] * 3
    assert [cut.of_layers.sparsity for cut in found.cuts] == [0.0, 0.25, 0.5]
    assert str(found.zeros.criterion) == "obs"


@pytest.mark.parametrize("criterion", ["obs", "fisher"])
def test_criteria_of_structures_and_zeros(criterion: str) -> None:
    report = pruned(bert(), target(speedup=2.0), criterion=criterion, allocator="raw")
    assert report.target is not None
    assert report.target.predicted == pytest.approx(report.target.limit, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": target(speedup=50)}, "speedup 50 at 128 tokens is out of reach: the best is"),
        ({"granularity": KINDS}, "a target needs zeros beside structures: add a granularity"),
        ({"granularity": ["layer", "4x1"]}, "structure layer reads no target: leave it out"),
        ({"granularity": ["filter", "4x1"]}, "there is no filter to remove"),
        ({"sparsity": 0.5}, "a sparsity or a target, not both"),
        ({"criterion": "sparsegpt"}, "sparsegpt removes single weights in turn"),
        ({"allocator": "owl"}, "allocator owl does not share out structures"),
        ({"calibration": None}, "needs calibration inputs"),
        ({"overrides": [{"match": "*", "sparsity": 0.5}]}, "leave out overrides"),
        ({"granularity": [*KINDS, "9by1"]}, "9by1"),
    ],
)
def test_refusals_change_nothing(options: dict[str, Any], message: str) -> None:
    model = bert()
    before = state(model)
    goal = options.pop("target", target(speedup=2.0))
    with pytest.raises(UsageError) as error:
        pruned(model, goal, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert same(before, state(model))


def test_a_model_without_the_structure_is_refused_at_once() -> None:
    told: list[object] = []
    with pytest.raises(UsageError, match="there is no head to remove"):
        pruned(mlp(), target(params=100), calibration=batches(), progress=lambda *a: told.append(a))
    assert not told


@pytest.mark.parametrize("moment", ["without 50.0% of head", "scores of", "encoder.layer.1"])
def test_an_interrupt_leaves_the_model_as_it_was(moment: str) -> None:
    model = bert()
    before = state(model)

    def interrupt(done: int, total: int, text: str) -> None:
        if text.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(model, target(speedup=2.0, shares=(0.5,)), progress=interrupt)
    assert same(before, state(model))
