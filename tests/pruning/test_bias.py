"""The bias recovery: the bias absorbs the mean of what was removed, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, mean_square, mlp, same, state

from sparse_engine.pruning import CRITERIA, Block, prune
from sparse_engine.pruning.criteria import find_criterion


@pytest.mark.parametrize(
    "criterion", [known.name for known in CRITERIA if not known.needs_structures]
)
def test_bias_against_its_definition(criterion: str) -> None:
    model = mlp()
    dense = copy.deepcopy(model)
    granularity = "1xall" if find_criterion(criterion).needs_whole_rows else "element"
    prune(model, 0.6, granularity, criterion, "bias", batches(), loss=mean_square)
    x = torch.cat(batches()).double()
    with torch.no_grad():
        for i in (0, 2):
            before, after = dense[i], model[i]
            removed = (before.weight - after.weight).double()
            expected = before.bias.double() + removed @ x.mean(0)
            torch.testing.assert_close(after.bias.double(), expected, rtol=1e-4, atol=1e-5)
            assert not torch.equal(after.bias, before.bias)
            x = x @ before.weight.double().T + before.bias.double()
            x = x.relu()


def test_magnitude_keeps_its_weights() -> None:
    plain, shifted = mlp(), mlp()
    prune(plain, 0.6, calibration=batches())
    prune(shifted, 0.6, recovery="bias", calibration=batches())
    for i in (0, 2):
        assert torch.equal(plain[i].weight, shifted[i].weight)


def test_a_layer_without_a_bias_gets_none_and_the_report_says_so() -> None:
    without, plain = mlp(bias=False), mlp(bias=False)
    report = prune(without, 0.6, "4x1", "wanda", "bias", batches())
    prune(plain, 0.6, "4x1", "wanda", calibration=batches())
    assert same(state(without), state(plain))
    note = "no bias to absorb the mean of what was removed"
    assert [row.warning for row in report.layers] == [note] * 2
    assert f"0 and 1 more: {note}" in report.warnings
    assert not prune(mlp(), 0.6, recovery="bias", calibration=batches()).warnings


def test_it_brings_the_outputs_closer() -> None:
    dense = bert().eval()
    errors = {}
    for recovery in (None, "bias"):
        model = copy.deepcopy(dense)
        with torch.no_grad():
            prune(model, 0.5, Block("all", 1), "wanda", recovery, bert_batches())
            errors[recovery] = sum(
                float((model(**batch)[0] - dense(**batch)[0])[batch["attention_mask"] != 0].norm())
                for batch in bert_batches()
            )
    assert errors["bias"] < 0.95 * errors[None]
