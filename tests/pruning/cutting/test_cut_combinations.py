"""All combinations of criterion, structure, allocator and recovery: a smaller model, or refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import bert_batches, same, state
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.pruning import CRITERIA
from sparse_engine.pruning.allocators import ALLOCATORS
from sparse_engine.pruning.criteria import Criterion, find_criterion
from sparse_engine.pruning.cutting.counts import ALLOCATORS as SHARING
from sparse_engine.pruning.recovery import RECOVERIES

STRUCTURES = ("head", "unit(keep=2)")
CRITERION_FORMS = (
    *(known.name for known in CRITERIA if known.name != "generator"),
    "generator(steps=3)",
    "magnitude(p=1)",
    "magnitude(threshold=0.02)",
    "magnitude(sigma=0.98)",
    "activation(threshold=0.03)",
    "coupled(look='forward')",
    "taylor(signed=True)",
)


def loss(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = model(**batch).last_hidden_state[:, 0].add(1).pow(3).mean()
    return found


def refusal(criterion: str, allocator: str) -> str:
    """A part of the message with which a combination is refused; "" if it works."""
    if allocator not in {cls.name for cls in SHARING}:
        return "does not share out structures"
    if criterion == "sparsegpt":
        return "structures: use obs"
    if find_criterion(criterion).decides_sparsity and allocator != "uniform":
        return "has nothing to share out"
    return ""


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("criterion", CRITERION_FORMS)
def test_a_smaller_model_or_refused(criterion: str, structure: str) -> None:
    decides = find_criterion(criterion).decides_sparsity
    pairs = itertools.product((cls.name for cls in ALLOCATORS), RECOVERIES)
    for allocator, recovery in pairs:
        how = "blocks(steps=2)" if recovery.name == "blocks" else recovery.name
        if how != "none" and allocator != "uniform":
            continue  # recoveries read the groups that are left, whoever chose them
        model = bert()
        arguments = (None if decides else 0.5, structure, criterion, how, bert_batches(), allocator)
        if message := refusal(criterion, allocator):
            before = state(model)
            with pytest.raises(UsageError, match=message):
                se.prune(model, *arguments, loss=loss)
            assert same(before, state(model))
            continue
        report = se.prune(model, *arguments, loss=loss)
        assert [site.kind for site in report.sites] == [structure.partition("(")[0]] * 2
        groups = sum(site.groups for site in report.sites)
        left = sum(len(site.kept) for site in report.sites)
        assert 0 < left < groups or decides
        if not decides:
            assert left == groups // 2
        with torch.inference_mode():
            assert model(**bert_batches()[0]).last_hidden_state.isfinite().all()
        assert report.parameters[1] == sum(p.numel() for p in model.parameters())
        assert (report.parameters[1] < report.parameters[0]) == (left < groups)


@pytest.mark.parametrize("option", ["magnitude(keep_rows=True)", "coupled(keep_rows=True)",
    "taylor(per_row=True)", "snip(per_row=True)", "fisher(per_row=True)", "fisher(block=4)",
    "obs(ratio=0.5)", "obs(budget='row')"])  # fmt: skip
def test_options_of_single_weights_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match="is about single weights"):
        se.prune(bert(), 0.5, "unit", option, calibration=bert_batches(), loss=loss)


def test_a_sparsity_beside_a_threshold_is_refused() -> None:
    with pytest.raises(UsageError, match=r"leave out sparsity 0\.5"):
        se.prune(bert(), 0.5, "unit", "magnitude(threshold=0.1)")


def test_the_mean_gradient_needs_a_loss() -> None:
    for criterion in ("snip", "taylor(signed=True)"):
        with pytest.raises(UsageError, match="mean gradient is zero"):
            se.prune(bert(), 0.5, "unit", criterion, calibration=bert_batches())
    for criterion in ("taylor", "fisher"):  # squares of random signs
        se.prune(bert(), 0.5, "unit", criterion, calibration=bert_batches())


class ByGradients(Criterion):
    name = "by_gradients"
    needs = ("squared_gradient",)

    def score(self, weight: Tensor, inputs: Any, generator: torch.Generator) -> Tensor:
        assert inputs.squared_gradient is not None
        found: Tensor = inputs.squared_gradient
        return found


def test_criteria_of_others() -> None:
    class Smallest(Criterion):
        name = "smallest"

        def score(self, weight: Tensor, inputs: Any, generator: torch.Generator) -> Tensor:
            return weight.abs()

    model = bert()
    sums = model.encoder.layer[0].output.dense.weight.abs().sum(0)
    report = se.prune(model, 0.5, "unit(keep=2)", Smallest())
    expected = sums.topk(len(sums) // 2).indices.sort().values.tolist()
    assert list(report.sites[0].kept) == expected
    with pytest.raises(UsageError, match="needs group_scores"):
        se.prune(bert(), 0.5, "unit", ByGradients(), calibration=bert_batches())


def test_overrides() -> None:
    first, second = "encoder.layer.0", "encoder.layer.1"
    report = se.prune(
        bert(), 0.5, ["head", "unit(keep=2)"], overrides=[
            {"match": f"{first}.attention", "sparsity": 0.0},
            {"match": f"{second}.intermediate.dense", "sparsity": 0.25},
        ],
    )  # fmt: skip
    shares = {site.name: len(site.kept) / site.groups for site in report.sites}
    assert shares == {
        f"{first}.attention.self": 1.0,
        f"{first}.intermediate.dense": 0.5,
        f"{second}.attention.self": 0.5,
        f"{second}.intermediate.dense": 0.75,
    }
    model = bert()
    before = state(model)
    for override, message in (
        ({"match": "encoder.layer.7", "sparsity": 0.1}, "matches no layer"),
        ({"match": first, "granularity": "2:4"}, "no granularity"),
        ({"match": first, "sparsity": 0.1, "criterion": "random"}, "no criterion"),
        ({"match": first, "sparsity": 1.5}, "is no fraction"),
    ):
        with pytest.raises(UsageError, match=message):
            se.prune(model, 0.5, "unit", overrides=[override])
    twice = [{"match": first, "sparsity": 0.1}, {"match": f"{first}.output", "sparsity": 0.2}]
    with pytest.raises(UsageError, match="an earlier override"):
        se.prune(model, 0.5, "unit", overrides=twice)
    assert same(before, state(model))


def test_filter() -> None:
    asked: list[str] = []

    def filter_fn(module: nn.Module, name: str) -> bool:
        asked.append(name)
        assert isinstance(module, nn.Linear)
        return "layer.0" not in name and "value" not in name

    report = se.prune(bert(), 0.5, ["head", "unit(keep=2)"], filter_fn=lambda m, n: "0" not in n)
    assert [site.name for site in report.sites] == [
        "encoder.layer.1.attention.self", "encoder.layer.1.intermediate.dense",
    ]  # fmt: skip
    model = bert()
    before = state(model)
    with pytest.raises(UsageError, match="no head to remove among the chosen"):
        se.prune(model, 0.5, ["head", "unit"], filter_fn=filter_fn)
    assert len(asked) == 12
    with pytest.raises(UsageError, match="give one of them"):
        se.prune(model, 0.5, "unit", filter_fn=filter_fn, layers=["encoder"])
    assert same(before, state(model))


def test_the_mean_of_what_is_removed_goes_into_the_bias() -> None:
    dense, model = bert(), bert()
    report = se.prune(model, 0.5, "unit(keep=2)", "activation", "bias", bert_batches())
    name = "encoder.layer.0"
    seen: list[Tensor] = []
    down: Any = dense.get_submodule(f"{name}.output.dense")
    down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        for batch in bert_batches():
            dense(**batch)
    masks = [batch["attention_mask"].bool() for batch in bert_batches()]
    mean = torch.cat([x[mask] for x, mask in zip(seen, masks, strict=True)]).mean(0)
    removed = [i for i in range(down.in_features) if i not in report.sites[0].kept]
    assert removed
    expected = down.bias + down.weight[:, removed] @ mean[removed]
    found: Any = model.get_submodule(f"{name}.output.dense")
    torch.testing.assert_close(found.bias, expected, rtol=1e-4, atol=1e-6)
    # The score is that of what the bias cannot absorb.
    centred = torch.cat([x[mask] for x, mask in zip(seen, masks, strict=True)]) - mean
    energy = centred.square().sum(0) * down.weight.square().sum(0)
    best = energy.topk(len(removed)).indices.sort().values.tolist()
    assert list(report.sites[0].kept) == best
