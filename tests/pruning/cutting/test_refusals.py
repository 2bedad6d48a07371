"""Bad input of cutting: one line that says what is wrong, and a model that is as it was."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import sparse_engine as se
from sparse_engine.errors import UsageError

pytest.importorskip("transformers")

from tiny_bert import TOKENS, build
from untouched import Picture

BATCHES = [{"input_ids": TOKENS}]
QUERY = "encoder.layer.0.attention.self.query.weight"
OUTPUT = "encoder.layer.1.output.dense.weight"


def refused(model: nn.Module, message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(UsageError, match=message) as error:
        se.prune(model, *arguments, **options)
    assert len(str(error.value).splitlines()) == 1


def refused_untouched(model: nn.Module, message: str, *arguments: Any, **options: Any) -> None:
    before = Picture(model)
    refused(model, message, *arguments, **options)
    before.check(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("granularity", "criterion", "name"),
    [
        ("head", "magnitude", QUERY),
        ("head", "fisher", QUERY),
        ("unit", "random", OUTPUT),
        ("layer", "last", QUERY),
        ("layer", "outputs", OUTPUT),
    ],
)
def test_weights_that_are_not_finite_are_named(
    granularity: str, criterion: str, name: str, value: float
) -> None:
    model = build()
    before = Picture(model)
    weight = model.get_parameter(name).detach()
    right = float(weight[0, 0])
    weight[0, 0] = value
    message = f"{name} holds NaN or Inf; nothing was pruned"
    refused(model, message, 0.5, granularity, criterion, calibration=BATCHES)
    weight[0, 0] = right  # NaN is not equal to itself
    before.check(model)


@pytest.mark.parametrize("granularity", ["head", "unit", "layer"])
@pytest.mark.parametrize("sparsity", ["0.5", float("nan"), -0.1, 1.0, [0.5], 10**400])
def test_shares_that_are_no_fractions(granularity: str, sparsity: Any) -> None:
    criterion = "last" if granularity == "layer" else "magnitude"
    refused_untouched(
        build(), f"is not a fraction of {granularity}s", sparsity, granularity, criterion
    )


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        ("head,unit", "head, unit, layer, filter, expert; several are a list"),
        ([], "granularity is empty: give one, or leave it out"),
        ("filter(readers='x: y')", "readers of 'x': there is no module of this name"),
        ("unit(readers='encoder: pooler')", "a BertEncoder has no units or filters; name a linear"),
    ],
)
def test_structures_that_are_none(granularity: Any, message: str) -> None:
    refused_untouched(build(), message, 0.5, granularity)


def test_a_single_layer_has_no_units() -> None:
    refused_untouched(nn.Linear(4, 4), "there is no unit to remove in this model$", 0.5, "unit")
