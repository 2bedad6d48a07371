"""Sensitivity against a loop by hand, and that the model is as before whatever happens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, hooks, mlp, same, state
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.analysis.report import SensitivityReport
from sparse_engine.analysis.sensitivity import sensitivity
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.pruning import prune

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(9))


def norm(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model(X).norm())


def two_layers() -> nn.Sequential:
    return mlp().eval()


def test_agrees_with_a_loop_by_hand() -> None:
    model = two_layers()
    report = sensitivity(
        model,
        norm,
        (0.7, 0.25),
        ("element", "4x1", "2:4"),
        calibration=batches(),
        criterion="wanda",
        recovery="least_squares",
    )
    expected = []
    for layer in ("0", "2", ""):
        for granularity, sparsity in (
            ("element", 0.25), ("element", 0.7), ("4x1", 0.25), ("4x1", 0.7), ("2:4", None),
        ):  # fmt: skip
            own = two_layers()
            pruned = prune(
                own, sparsity, granularity, "wanda", "least_squares", batches(),
                filter_fn=(lambda module, name, layer=layer: name == layer) if layer else None,
            )  # fmt: skip
            row = (layer, granularity, sparsity or 0.5, pruned.sparsity, norm(own))
            expected.append(row)
    found = [(t.layer, t.granularity, t.requested, t.sparsity, t.metric) for t in report.trials]
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert [row[3] for row in found] == [row[3] for row in expected]
    assert [row[4] for row in found] == pytest.approx([row[4] for row in expected])
    assert report.dense == norm(two_layers())
    assert report.metric == "norm"
    assert same(state(model), state(two_layers()))


def test_default_filter_and_layers_that_do_not_fit() -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 2))
    report = sensitivity(model, norm, (0.5,), ("element", "4x1"), filter_fn=lambda m, n: True)
    assert [(t.layer, t.granularity) for t in report.by_layer] == [
        ("0", "element"), ("0", "4x1"), ("2", "element"), ("2", "4x1"), ("3", "element"),
    ]  # fmt: skip
    assert len(report.by_model) == 2


def test_a_criterion_that_decides_the_sparsity_is_tried_once() -> None:
    report = sensitivity(two_layers(), norm, (0.5, 0.9), criterion="magnitude(sigma=1.0)")
    assert [(t.layer, t.requested) for t in report.trials] == [("0", None), ("2", None), ("", None)]
    assert [t.setting for t in report.trials] == ["element"] * 3
    assert all(0.3 < t.sparsity < 0.95 for t in report.trials)
    assert len(report.page().html()) > 1000


def test_by() -> None:
    model = two_layers()
    only = sensitivity(model, norm, (0.5,), by=("layer",))
    assert [t.layer for t in only.trials] == ["0", "2"]
    whole = sensitivity(model, norm, (0.5,), by=["model"])
    assert [t.layer for t in whole.trials] == [""]


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("recovery", [None, "least_squares"])
def test_an_error_puts_everything_back(error: Any, recovery: str | None) -> None:
    model = bert().train()
    model.encoder.layer[0].eval()
    modes = [m.training for m in model.modules()]
    before = state(model)
    calls = []

    def metric(pruned: nn.Module) -> float:
        calls.append(sum(int((p == 0).sum()) for p in pruned.parameters()))
        if len(calls) == 4:
            raise error
        return 1.0

    with pytest.raises(error):
        sensitivity(
            model, metric, (0.5,), calibration=bert_batches(), recovery=recovery, by=["layer"]
        )
    assert calls[1] > calls[0]  # the metric saw pruned models
    assert same(before, state(model))
    assert [m.training for m in model.modules()] == modes
    assert hooks(model) == 0


def test_an_error_inside_of_prune_and_in_progress_puts_everything_back() -> None:
    model, before = two_layers(), state(two_layers())

    def stop(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        sensitivity(model, norm, (0.5,), progress=stop)
    assert same(before, state(model))
    bad = [*batches(), torch.full((2, 12), torch.nan)]
    with pytest.raises(UsageError, match="NaN"):
        sensitivity(model, norm, (0.5,), calibration=bad, criterion="wanda")
    assert same(before, state(model))


def test_success_puts_everything_back() -> None:
    model = bert().train()
    before, parameters = state(model), [id(p) for p in model.parameters()]
    calls: list[tuple[int, int, str]] = []
    report = sensitivity(
        model,
        None,
        (0.5,),
        calibration=bert_batches(),
        criterion="sparsegpt",
        recovery="least_squares",
        progress=lambda *call: calls.append(call),
    )
    assert same(before, state(model))
    assert [id(p) for p in model.parameters()] == parameters
    assert all(m.training for m in model.modules())
    assert [c[:2] for c in calls] == [(i + 1, 13) for i in range(13)]
    assert calls[-1][2] == "all layers"
    assert report.metric == "cosine to dense"
    assert report.dense == pytest.approx(1)
    assert report.higher_is_better
    assert all(0 < trial.metric < 1 for trial in report.trials if trial.metric is not None)


def test_recurrent_networks_are_restored() -> None:
    model: Any = nn.ModuleDict({"lstm": nn.LSTM(12, 8), "fc": nn.Linear(8, 40)})
    model.forward = lambda x: model["fc"](model["lstm"](x)[0])
    before = state(model)
    report = sensitivity(model, norm, (0.5,))
    assert {"lstm.ih_l0", "lstm.hh_l0", ""} <= {trial.layer for trial in report.trials}
    assert len({trial.metric for trial in report.trials}) == len(report.trials)
    assert same(before, state(model))


def test_ranking_and_front() -> None:
    report = sensitivity(two_layers(), norm, (0.5, 0.9), higher_is_better=True)
    ranked = report.ranking
    losses = {
        layer: sum(report.dense - t.metric for t in report.by_layer if t.layer == layer) / 2  # type: ignore[operator]
        for layer in ("0", "2")
    }
    assert ranked == pytest.approx(losses)
    assert list(ranked) == sorted(losses, key=losses.__getitem__, reverse=True)
    assert report.front == []  # nothing was timed
    less = sensitivity(two_layers(), norm, (0.5, 0.9), higher_is_better=False)
    assert list(less.ranking) == list(reversed(ranked))


def test_times() -> None:
    model = bert()
    before = state(model)
    report = sensitivity(
        model, None, (0.9,), calibration=bert_batches(), by=("layer", "model"), tokens=8
    )
    assert all(t.ms is None for t in report.by_layer)
    assert all(t.ms > 0 and t.dense_ms > 0 for t in report.by_model)  # type: ignore[operator]
    assert "a call of 8 tokens" in report.timed_on
    assert report.front
    assert set(report.front) <= set(report.by_model)
    assert same(before, state(model))
    assert not any("Sparse" in type(m).__name__ for m in model.modules())


def test_times_of_a_model_without_token_ids() -> None:
    report = sensitivity(two_layers(), norm, (0.9,), calibration=batches(), by=["model"], tokens=24)
    assert report.trials[0].ms > 0  # type: ignore[operator]
    assert "a call of 24 tokens" in report.timed_on


def test_an_infinite_metric_is_a_gap() -> None:
    values = iter([1.0, float("nan"), 2.0, float("inf")])
    report = sensitivity(two_layers(), lambda model: next(values), (0.5,))
    assert [trial.metric for trial in report.trials] == [None, 2.0, None]
    assert list(report.ranking) == ["0", "2"]
    json.dumps(report.to_dict(), allow_nan=False)
    assert "| - |" in report.to_markdown()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": 0.5}, "sparsities is a list"),
        ({"sparsities": ()}, "no sparsities to try"),
        ({"sparsities": (1.5,)}, "1.5 is not a fraction"),
        ({"granularities": "element"}, "granularities is a list"),
        ({"granularities": ()}, "granularities is a list"),
        ({"granularities": ("4by1",)}, "4by1"),
        ({"by": "layer"}, "by is 'layer'"),
        ({"by": ("heads",)}, "by is"),
        ({"criterion": "wanda"}, "needs calibration"),
        ({"criterion": "none such"}, "none such"),
        ({"metric": None}, "give metric="),
        ({"metric": lambda model: "good"}, "gives a str"),
        ({"metric": lambda model: torch.ones(2)}, "gives a Tensor"),
        ({"metric": lambda model: float("nan")}, "dense model is nan"),
        ({"filter_fn": lambda module, name: False}, "leaves out every layer"),
        ({"metric": None, "calibration": []}, "calibration is empty"),
        ({"metric": None, "calibration": 5}, "calibration is a int"),
        ({"metric": None, "calibration": {"x": 1}}, "calibration is a single dict"),
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 10**9}, "at most 1,048,576 tokens"),
        ({"tokens": 8, "by": ["layer"]}, "add 'model' to by"),
        ({"tokens": 8}, "calibration"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    model, before = two_layers(), state(two_layers())
    with pytest.raises(UsageError, match=message):
        sensitivity(model, **{"metric": norm, "sparsities": (0.5,), **options})
    assert same(before, state(model))


def outputs(model: nn.Module, item: dict[str, Tensor], of: Callable[[Any], Tensor]) -> Tensor:
    with torch.no_grad():
        return of(model(**item)).double()[item["attention_mask"] != 0]


def test_the_default_metric() -> None:
    dense, items = bert(), bert_batches()
    pruned = copy.deepcopy(dense)
    prune(pruned, 0.6)

    def hidden(output: Any) -> Tensor:
        return output.last_hidden_state

    cosines = torch.cat(
        [
            torch.cosine_similarity(outputs(dense, i, hidden), outputs(pruned, i, hidden), dim=-1)
            for i in items
        ]
    )
    (trial,) = sensitivity(dense, None, (0.6,), calibration=items, by=["model"]).trials
    assert trial.metric == pytest.approx(float(cosines.mean()), abs=1e-5)


def test_the_default_metric_of_logits_and_of_one_feature() -> None:
    dense, items = bert("BertForMaskedLM"), bert_batches()
    pruned = copy.deepcopy(dense)
    prune(pruned, 0.6)

    def logs(output: Any) -> Tensor:
        return output.logits.double().log_softmax(-1)

    pairs = [(outputs(dense, i, logs), outputs(pruned, i, logs)) for i in items]
    divergences = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs])
    report = sensitivity(dense, None, (0.6,), calibration=items, by=["model"])
    assert report.metric == "KL divergence to dense"
    assert not report.higher_is_better
    assert report.dense == pytest.approx(0, abs=1e-6)
    assert report.trials[0].metric == pytest.approx(float(divergences.mean()), rel=1e-4)

    torch.manual_seed(0)
    regression = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1)).requires_grad_(False)
    before = torch.cat([regression(x) for x in batches()])
    report = sensitivity(regression, None, (0.6,), calibration=batches(), by=["model"])
    prune(regression, 0.6)
    after = torch.cat([regression(x) for x in batches()])
    assert report.metric == "relative error"
    expected = float((after - before).norm() / before.norm())
    assert report.trials[0].metric == pytest.approx(expected, rel=1e-4)


def test_values_for_json_and_back(tmp_path: Path) -> None:
    report = se.sensitivity(two_layers(), norm, (0.5,))
    again = SensitivityReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert str(again) == str(report)
    with pytest.raises(InvalidFileError, match="no report of sensitivity: metric"):
        SensitivityReport.from_dict({})
