"""All combinations of criterion, granularity, allocator and recovery: exact, or refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from driver_models import batches, mean_square, mlp, same, state

from sparse_engine.errors import UsageError
from sparse_engine.pruning import CRITERIA, NM, Granularity, parse_granularity, prune
from sparse_engine.pruning.allocators import ALLOCATORS
from sparse_engine.pruning.criteria import find_criterion
from sparse_engine.pruning.recovery import RECOVERIES

GRANULARITIES = ("element", "4x1", "3x2", "1xall", "8xall", "allx1", "2:4")
CRITERION_FORMS = (
    *(known.name for known in CRITERIA),
    "magnitude(p=1)",
    "magnitude(threshold=0.05)",
    "magnitude(sigma=0.8)",
    "fisher(block=5)",
)

FEW = {"controller": "controller(episodes=2)"}  # evaluations of the whole model


def refusal(criterion: str, pattern: Granularity, is_uniform: bool) -> str:
    """A part of the message with which a combination is refused; "" if it works."""
    scoring = find_criterion(criterion)
    if scoring.needs_structures:
        return "scores structures"
    if scoring.needs_whole_rows and not pattern.has_whole_rows:
        return "scores whole output rows"
    if scoring.decides_sparsity and pattern.fixed_sparsity is not None:
        return "decides what is removed"
    if (scoring.decides_sparsity or pattern.fixed_sparsity is not None) and not is_uniform:
        return "has nothing to share out"
    return ""


@pytest.mark.parametrize("text", GRANULARITIES)
@pytest.mark.parametrize("criterion", CRITERION_FORMS)
def test_counts_are_exact_or_the_combination_is_refused(criterion: str, text: str) -> None:
    pattern = parse_granularity(text)
    decides = find_criterion(criterion).decides_sparsity
    for allocator, recovery in itertools.product(ALLOCATORS, RECOVERIES):
        model = mlp()
        sparsity = None if isinstance(pattern, NM) or decides else 0.6
        sharing = FEW.get(allocator.name, allocator.name)
        arguments = (sparsity, text, criterion, recovery.name, batches(), sharing)
        if message := refusal(criterion, pattern, allocator.is_uniform):
            before = state(model)
            with pytest.raises(UsageError, match=message):
                prune(model, *arguments, loss=mean_square)
            assert same(before, state(model))
            continue
        report = prune(model, *arguments, loss=mean_square)
        weights = [model.get_submodule(row.name).weight.detach() for row in report.layers]
        for row, weight in zip(report.layers, weights, strict=True):
            assert row.sparsity == int((weight == 0).sum()) / weight.numel()
        if isinstance(pattern, NM):
            for weight in weights:
                assert weight.view(len(weight), -1, 4).count_nonzero(dim=2).eq(2).all()
            continue
        zeros = [pattern.group_scores((weight == 0).float()) for weight in weights]
        for of_layer in zeros:
            assert torch.equal(of_layer, of_layer.round()), "a group was removed in part"
        removed = [int(of_layer.sum()) for of_layer in zeros]
        groups = [of_layer.numel() for of_layer in zeros]
        if decides:
            assert all(count < n for count, n in zip(removed, groups, strict=True))
        elif allocator.name == "uniform":
            assert removed == [min(round(0.6 * n), n - 1) for n in groups]
        else:
            assert sum(removed) == round(0.6 * sum(groups))
            assert all(count < n for count, n in zip(removed, groups, strict=True))


@pytest.mark.parametrize(
    "criterion", [known.name for known in CRITERIA if not known.needs_structures]
)
def test_sparsity_zero_removes_nothing(criterion: str) -> None:
    text = "1xall" if find_criterion(criterion).needs_whole_rows else "element"
    model, dense = mlp(), mlp()
    prune(model, 0.0, text, criterion, calibration=batches(), loss=mean_square)
    for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
