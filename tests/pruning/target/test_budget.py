"""Budgets: predictions, corrections, and counts against a census of the pruned model."""

from __future__ import annotations

import pytest
from calibration_models import bert
from driver_models import mlp

from sparse_engine.convert.census import census
from sparse_engine.pruning import prune
from sparse_engine.pruning.allocators.base import Setting
from sparse_engine.pruning.granularity import Element
from sparse_engine.pruning.plan import make_plan
from sparse_engine.pruning.target.budget import DENSE, Bytes, Counts, Times
from sparse_engine.pruning.target.machine import Machine
from sparse_engine.pruning.target.target import Target

HALF = Setting(Element(), 0.5)


def test_a_correction_moves_the_fixed_part_but_not_below_zero() -> None:
    budget = Times(Machine(mlp(), Target(latency_ms=4.0), {}), [])
    budget.fixed, budget.slope = 1.0, 2.0
    assert budget.predict(3.0) == 7.0
    assert budget.of_layers == 1.5
    budget.correct(3.0, 8.0)
    assert (budget.fixed, budget.slope) == (2.0, 2.0)
    budget.correct(3.0, 4.5)
    assert (budget.fixed, budget.slope) == (0.0, 1.5)
    assert budget.predict(3.0) == 4.5


@pytest.mark.parametrize("goal", ["params", "flops"])
def test_counts_are_those_of_a_census(goal: str) -> None:
    model = bert()
    layers = make_plan(model).layers
    budget = Counts(model, Target(**{goal: 1e4}), layers, model)
    counted = census(model)
    whole = counted.parameters if goal == "params" else 2 * counted.multiply_adds
    assert budget.dense == whole
    assert budget.predict(sum(budget.price(layer, DENSE)[1] for layer in layers)) == whole
    weights = {layer.name: (layer.weight * (layer.weight > 0), None) for layer in layers}
    measured, _ = budget.measure(weights)
    removed = sum(int((layer.weight <= 0).sum()) for layer in layers)
    assert measured == whole - removed * (1 if goal == "params" else 2)


def test_bytes_of_a_layer_are_those_that_csr_packs() -> None:
    model = bert()
    layers = make_plan(model).layers
    machine = Machine(model, Target(size_mb=1.0), {})
    budget = Bytes(machine, layers)
    dense = sum(budget.price(layer, DENSE)[1] for layer in layers)
    assert budget.predict(dense) == pytest.approx(budget.dense)
    half = sum(budget.price(layer, HALF)[1] for layer in layers)
    weights = {layer.name: (machine.random_weight(layer.shape, HALF), None) for layer in layers}
    measured, formats = budget.measure(weights)
    assert set(formats.values()) >= {"csr"}
    # Biases are stored a second time, in float32, beside each packed weight.
    assert measured == pytest.approx(budget.predict(half), rel=0.02)


def test_bytes_are_compared_with_the_model_before_structures_were_removed() -> None:
    model, dense = bert(), bert()
    prune(model, 0.5, "unit(keep=4)")
    freed = sum(p.nbytes for p in dense.parameters()) - sum(p.nbytes for p in model.parameters())
    layers = make_plan(model).layers
    budget = Bytes(Machine(model, Target(size_mb=1.0), {}, dense), layers)
    costs = sum(budget.price(layer, DENSE)[1] for layer in layers)
    assert freed > 0
    assert budget.dense - budget.predict(costs) == pytest.approx(freed / 1e6)
