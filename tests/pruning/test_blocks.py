"""Recovery of whole blocks: errors, masks, and what must not change."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, mlp, same, state
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import PruneReport, prune

TUNED = "blocks(steps=20)"


def outputs(model: nn.Module, layer: int) -> Tensor:
    """Hidden states behind one layer of a BERT, without padding, [tokens, features] in float64."""
    rows = []
    with torch.no_grad():
        for batch in bert_batches():
            states = model(**batch, output_hidden_states=True).hidden_states[layer + 1]
            rows.append(states[batch["attention_mask"].bool()])
    return torch.cat(rows).double()


def pruned(model: nn.Module, recovery: str = TUNED, **kwargs: Any) -> PruneReport:
    return prune(model, 0.6, recovery=recovery, calibration=bert_batches(), **kwargs)


def test_errors_are_those_of_the_outputs_of_each_block() -> None:
    model = bert()
    dense = deepcopy(model)
    report = pruned(model)
    assert [row.name for row in report.blocks] == ["encoder.layer.0", "encoder.layer.1"]
    for layer, row in enumerate(report.blocks):
        expected = outputs(dense, layer)
        error = float((outputs(model, layer) - expected).norm() / expected.norm())
        assert row.error_after == pytest.approx(error, rel=1e-4)
        assert row.error_after < row.error_before


def test_the_error_before_is_that_of_least_squares() -> None:
    model, refitted = bert(), bert()
    dense = deepcopy(model)
    report = pruned(model)
    pruned(refitted, "least_squares")
    expected = outputs(dense, 0)
    error = float((outputs(refitted, 0) - expected).norm() / expected.norm())
    assert report.blocks[0].error_before == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("granularity", ["element", "4x1", "2:4"])
def test_only_kept_weights_and_biases_change(granularity: str) -> None:
    model, refitted = bert(), bert()
    weight = model.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        for other in (model, refitted):
            other.encoder.layer[0].output.dense.weight[:, ::3] = 0
    sparsity = None if granularity == "2:4" else 0.6
    reports = [
        prune(m, sparsity, granularity, recovery=recovery, calibration=bert_batches())
        for m, recovery in ((model, TUNED), (refitted, "least_squares"))
    ]
    first, second = ([row.sparsity for row in report.layers] for report in reports)
    assert first == pytest.approx(second)
    assert not weight[:, ::3].any()
    changed = {n for n, p in state(model).items() if not torch.equal(p, state(refitted)[n])}
    layers = {row.name for row in reports[0].layers}
    assert {name.rpartition(".")[0] for name in changed} <= layers
    assert f"{reports[0].layers[0].name}.weight" in changed


def test_no_gradient_and_no_flag_is_left_behind() -> None:
    model = bert()
    model.requires_grad_(True).embeddings.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model.train()
    pruned(model)
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = bert(), bert()
    for model in (first, second):
        pruned(model, seed=3)
    assert same(state(first), state(second))


def test_half_precision_stays_half() -> None:
    model = bert().to(torch.bfloat16)
    report = pruned(model)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(row.error_after <= row.error_before for row in report.blocks)


def test_a_weight_that_two_blocks_share_is_tuned_once() -> None:
    model = bert()
    model.encoder.layer[1].intermediate.dense.weight = model.encoder.layer[
        0
    ].intermediate.dense.weight
    report = pruned(model)
    shared = model.encoder.layer[0].intermediate.dense.weight
    assert shared is model.encoder.layer[1].intermediate.dense.weight
    assert float((shared == 0).float().mean()) == pytest.approx(0.6, abs=0.01)
    assert len(report.blocks) == 2


def test_layers_outside_of_stacks_are_refitted_alone_and_named() -> None:
    model, refitted = mlp(), mlp()
    report = prune(model, 0.5, recovery=TUNED, calibration=batches())
    prune(refitted, 0.5, recovery="least_squares", calibration=batches())
    assert same(state(model), state(refitted))
    assert report.blocks == []
    assert any("0 and 1 more: in no stack" in line for line in report.warnings)


def test_an_interrupt_restores_the_model() -> None:
    model = bert()
    before = state(model)

    def interrupt(done: int, total: int, text: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(model, progress=interrupt)
    assert same(before, state(model))


@pytest.mark.parametrize("options", ["steps=0", "rate=0.0", "rate=2.0", "steps=-1"])
def test_options_out_of_range_are_refused(options: str) -> None:
    with pytest.raises(UsageError, match="recovery blocks: "):
        prune(mlp(), 0.5, recovery=f"blocks({options})", calibration=batches())
