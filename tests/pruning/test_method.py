"""Arguments and weights that `prune` refuses, and names that it accepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driver_models import batches, mlp, same, state
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning import NM, Block, Criterion, Inputs, prune
from sparse_engine.pruning.recovery import RECOVERIES, find_recovery


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.5}, "sparsity 1.5"),
        ({"sparsity": 1.0}, "sparsity 1.0"),
        ({"sparsity": -0.1}, "sparsity -0.1"),
        ({"sparsity": float("nan")}, "sparsity nan"),
        ({}, "no sparsity given"),
        ({"sparsity": 0.75, "granularity": "2:4"}, "does not fit 2:4, which has 0.5"),
        ({"sparsity": 0.5, "granularity": "7"}, "granularity '7'"),
        ({"sparsity": 0.5, "granularity": Block(64, 64)}, "fits no layer; the largest is 20x12"),
        ({"granularity": NM(1, 32)}, "1:32 fits no layer"),
        ({"sparsity": 0.5, "granularity": 4}, "granularity 4 is not known; give element"),
        ({"sparsity": 0.5, "seed": 10**20}, "seed 1000.* is not a whole number"),
        ({"sparsity": 0.5, "seed": 1.5}, "seed 1.5 is not a whole number"),
        ({"target": 3.0}, r"target is 3.0; give one such as se.Target"),
        ({"sparsity": 0.5, "criterion": "best"}, "criterion 'best'"),
        ({"sparsity": 0.5, "criterion": "wanda"}, "wanda needs calibration"),
        ({"sparsity": 0.5, "criterion": "sparsegpt"}, "sparsegpt needs calibration"),
        ({"sparsity": 0.5, "recovery": "least_squares"}, "least_squares needs calibration"),
        ({"sparsity": 0.5, "recovery": "luck"}, "recovery 'luck'"),
        ({"sparsity": 0.5, "allocator": "wide"}, "allocator 'wide'"),
        ({"granularity": "2:4", "allocator": "global"}, "nothing to share out"),
        ({"sparsity": 0.5, "filter_fn": lambda m, n: False}, "filter_fn leaves out every layer"),
        ({"sparsity": 0.5, "recovery": "least_squares", "calibration": []}, "calibration is empty"),
        (
            {"sparsity": 0.5, "recovery": "least_squares", "calibration": ["text"]},
            "item 0 is a str",
        ),
        ({"sparsity": 0.5, "recovery": "least_squares", "calibration": {"x": 1}}, "a single dict"),
    ],
)
def test_wrong_arguments_change_nothing(arguments: dict[str, Any], message: str) -> None:
    model = mlp()
    before = state(model)
    with pytest.raises(UsageError, match=message):
        prune(model, **arguments)
    assert same(before, state(model))


def test_a_name_is_no_model() -> None:
    with pytest.raises(UsageError, match=r"model is 'bert'; give a torch\.nn\.Module"):
        prune("bert", 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 1] = bad
    before = state(model)
    with pytest.raises(UsageError, match=r"2\.weight holds NaN or Inf"):
        prune(model, 0.5)
    assert same(before, state(model))


def test_weights_that_something_unknown_computes_are_refused() -> None:
    model = mlp()
    weight = model[0]._parameters.pop("weight")
    model[0].register_forward_pre_hook(lambda module, args: setattr(module, "weight", 2 * weight))
    model[0](torch.zeros(1, model[0].in_features))
    with pytest.raises(UsageError, match=r"0\.weight is not a plain"):
        prune(model, 0.5)


def test_names_and_aliases_find_every_recovery() -> None:
    names = [known.name for known in RECOVERIES]
    assert {"none", "bias", "least_squares", "blocks"} <= set(names)
    assert len(set(names)) == len(names)
    for known in RECOVERIES:
        for name in (known.name, *known.aliases):
            assert isinstance(find_recovery(name), known)
    assert find_recovery("lsq").name == "least_squares"
    assert find_recovery(None).name == "none"


@pytest.mark.parametrize(
    ("name", "alias", "reported"),
    [("least_squares", "lsq", "least_squares"), (None, "none", None)],
)
def test_an_alias_is_reported_by_its_name(
    name: str | None, alias: str, reported: str | None
) -> None:
    models = mlp(), mlp()
    for model, recovery in zip(models, (name, alias), strict=True):
        report = prune(model, 0.5, recovery=recovery, calibration=batches())
        assert report.to_dict()["recovery"] == reported
    assert same(state(models[0]), state(models[1]))


def test_a_criterion_that_needs_unknown_statistics_is_refused() -> None:
    class Curious(Criterion):
        name = "curious"

        def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
            return weight.square()

    for needs in (("moons",), "norms"):
        criterion = Curious()
        criterion.needs = needs  # type: ignore[assignment, misc]
        with pytest.raises(UsageError, match=r"criterion curious needs .* norms, hessian"):
            prune(mlp(), 0.5, criterion=criterion, calibration=batches())
