"""prune(): exact counts, masks and seeds, recovery, allocators, and the report."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, mlp
from torch import Tensor

from sparse_engine.pruning import prune


def test_magnitude_is_the_naive_one() -> None:
    model = mlp()
    expected = {
        i: torch.where(w.abs() > w.abs().flatten().kthvalue(round(0.7 * w.numel())).values, w, 0)
        for i, w in ((i, model[i].weight.detach().clone()) for i in (0, 2))
    }
    prune(model, 0.7)
    for i, weight in expected.items():
        assert torch.equal(model[i].weight, weight)


def test_random_is_deterministic_for_a_seed() -> None:
    def run(seed: int) -> Tensor:
        model = mlp()
        prune(model, 0.5, criterion="random", seed=seed)
        weight: Tensor = model[0].weight
        return weight

    torch.manual_seed(99)
    first = run(4)
    assert torch.equal(first, run(4))
    assert not torch.equal(first, run(5))


def test_bert_recovery_keeps_the_outputs_closer() -> None:
    dense = bert().eval()
    calibration = bert_batches() * 4

    def error(recovery: str | None) -> float:
        model = copy.deepcopy(dense)
        prune(model, 0.5, "element", "sparsegpt", recovery, calibration)
        with torch.no_grad():
            pairs = [
                (model(**batch)[0][batch["attention_mask"] != 0] - wanted).norm() / wanted.norm()
                for batch in bert_batches()
                for wanted in [dense(**batch)[0][batch["attention_mask"] != 0]]
            ]
        return float(torch.stack(pairs).mean())

    assert error("least_squares") < 0.8 * error(None)


def test_lamp_shares_out_the_same_total() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight.pow_(5)
    for criterion in ("magnitude", "sparsegpt", "wanda"):
        copied = copy.deepcopy(model)
        report = prune(copied, 0.5, criterion=criterion, calibration=batches(), allocator="lamp")
        assert report.sparsity == pytest.approx(0.5)
        assert report.layers[1].sparsity > report.layers[0].sparsity + 0.1


def test_report() -> None:
    report = prune(mlp(), 0.5, "4x1", "sparsegpt", "least_squares", batches())
    for row in report.layers:
        assert row.error_before is not None
        assert row.error_after is not None
        assert row.error_after < row.error_before
    again = json.loads(json.dumps(report.to_dict()))
    assert again["sparsity"] == report.sparsity
    assert again["layers"][0]["shape"] == [20, 12]
    assert (again["granularity"], again["criterion"], again["recovery"]) == (
        "4x1",
        "sparsegpt",
        "least_squares",
    )
    table = report.to_markdown().splitlines()
    assert len(table) == 2 + len(report.layers)
    assert len({line.count("|") for line in table}) == 1
    assert "2 layers" in str(report)
    unread = prune(mlp(), 0.5)
    assert unread.layers[0].error_after is None
    assert "| - |" in unread.to_markdown()
