"""What `prune` must not change, and what it restores after an interrupt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, hooks, mlp, same, state

from sparse_engine.pruning import prune


def fails_after(rows: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, name: str) -> None:
        if done == rows:
            raise KeyboardInterrupt

    return progress


def test_an_interrupt_puts_everything_back() -> None:
    model = bert().train()
    model.encoder.layer[0].eval()
    before, modes = state(model), [m.training for m in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        prune(
            model,
            0.5,
            recovery="least_squares",
            calibration=bert_batches(),
            progress=fails_after(5),
        )
    assert same(before, state(model))
    assert [m.training for m in model.modules()] == modes
    assert hooks(model) == 0


def test_nothing_is_left_behind() -> None:
    model = bert(is_decoder=True).requires_grad_().train()
    model.encoder.layer[0].eval()
    modes = [m.training for m in model.modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    calls: list[tuple[int, int, str]] = []
    report = prune(
        model,
        0.5,
        criterion="sparsegpt",
        recovery="least_squares",
        calibration=bert_batches(),
        progress=lambda *call: calls.append(call),
    )
    assert hooks(model) == 0
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert model.config.use_cache
    names = [row.name for row in report.layers]
    layers = [
        call for call in calls if call[2] in names
    ]  # on a slow machine batches are reported, too
    assert layers == [(i + 1, 12, name) for i, name in enumerate(names)]


def test_sparsity_zero_changes_nothing() -> None:
    model = mlp()
    before = state(model)
    report = prune(model, 0.0, criterion="wanda", calibration=batches())
    assert report.sparsity == 0
    assert same(before, state(model))


def test_no_bias_is_created() -> None:
    model = mlp(bias=False)
    prune(model, 0.5, recovery="least_squares", calibration=batches())
    assert model[0].bias is None


def test_half_precision_stays_half() -> None:
    model = mlp().to(torch.bfloat16)
    prune(model, 0.5, "4x1", "sparsegpt", "least_squares", [b.bfloat16() for b in batches()])
    assert model[0].weight.dtype == torch.bfloat16
    assert int((model[0].weight == 0).sum()) == 120


@pytest.mark.parametrize("criterion", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.5])
def test_zeros_stay_zero_and_leave_first(sparsity: float, criterion: str) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[:, ::5] = 0
    report = prune(model, sparsity, "element", criterion, "least_squares", batches())
    assert not model[2].weight[:, ::5].any()
    if criterion == "magnitude":
        assert [row.sparsity for row in report.layers] == [sparsity, max(sparsity, 0.2)]
