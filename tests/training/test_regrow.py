"""Regrow: RigL's exchange of groups, against a slow reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from training_models import adamw, assert_goes_on, batches, network, squared, train

from sparse_engine.errors import UsageError
from sparse_engine.pruning.granularity import Granularity, parse_granularity
from sparse_engine.training import Movement, Prune, Pruner, Regrow
from sparse_engine.training.modifiers.regrow import exchange


def tiles(granularity: Granularity, shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The groups of a weight as pairs of slices."""
    rows, cols = granularity.size(*shape)  # type: ignore[attr-defined]
    return [
        (slice(i, i + rows), slice(j, j + cols))
        for i in range(0, shape[0], rows)
        for j in range(0, shape[1], cols)
    ]


def reference(weight: Tensor, slope: Tensor, keep: Tensor, groups: list, share: float) -> Tensor:
    """The new mask, group by group."""
    kept = [g for g in groups if keep[g].all()]
    absent = [g for g in groups if not keep[g].any()]
    count = min(round(share * len(kept)), len(absent))
    kept.sort(key=lambda g: float(weight[g].abs().mean()))
    candidates = absent + kept[:count]
    candidates.sort(key=lambda g: -float(slope[g].mean()))
    mask = torch.zeros_like(keep)
    for g in [*kept[count:], *candidates[:count]]:
        mask[g] = True
    return mask


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("text", ["element", "4x1", "2x3", "row", "column"])
def test_exchange_against_a_loop(text: str, share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    granularity = parse_granularity(text)
    weight, slope = torch.randn(2, 10, 14, generator=generator).double()
    keep = granularity.mask(torch.rand(10, 14, generator=generator), 4)
    expected = reference(weight, slope.abs(), keep, tiles(granularity, (10, 14)), share)
    found, count = exchange(weight, slope.abs(), keep, granularity, share, "layer")
    assert torch.equal(found, expected)
    assert found.sum() == keep.sum() or text in ("4x1", "2x3")  # groups at an edge are smaller
    assert (count > 0) == (not torch.equal(found, keep))


def test_zeros_that_are_no_groups_are_refused() -> None:
    keep = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    weight = torch.ones(8, 8)
    with pytest.raises(UsageError, match="no whole groups of 4x1"):
        exchange(weight, weight, keep, parse_granularity("4x1"), 0.3, "layer")


def recipe(granularity: str = "element", **options: object) -> list[dict[str, object]]:
    prune = {"sparsity": 0.75, "granularity": granularity, "criterion": "random"}
    regrow = {"granularity": granularity, "every": 3, "end": 12, **options}
    return [{"prune": prune}, {"regrow": regrow}]


@pytest.mark.parametrize("granularity", ["element", "4x1"])
def test_the_sparsity_stays_and_the_mask_moves(granularity: str) -> None:
    model = network()
    pruner = Pruner(model, recipe(granularity), loss=squared)
    optimizer = adamw(model)
    masks = []
    for batch in batches(13):
        train(pruner, optimizer, [batch])
        masks.append(model[2].weight.detach() != 0)
    assert all(mask.float().mean() == 0.25 for mask in masks)
    changed = [i + 1 for i in range(1, 13) if not torch.equal(masks[i], masks[i - 1])]
    assert changed == [4, 7, 10]  # the steps after 3, 6 and 9 steps
    events = pruner.finalize().events
    assert [event.step for event in events] == [0, 3, 6, 9]


def test_the_share_falls_by_a_cosine_and_the_largest_gradients_return() -> None:
    model = network()
    pruner = Pruner(model, recipe(layers=["2"], share=0.5), loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    data = batches(4)
    train(pruner, optimizer, data[:3])
    weight = model[2].weight
    before = weight.detach().clone()
    pruner.loss(data[3]).backward()
    slope = weight.grad.abs().clone()
    pruner.step(optimizer)
    share = 0.5 / 2 * (1 + math.cos(math.pi * 3 / 12))
    groups = tiles(parse_granularity("element"), (24, 24))
    expected = reference(before, slope, before != 0, groups, share)
    assert torch.equal(weight.detach() != 0, expected)
    assert not torch.equal(expected, before != 0)


def test_returned_weights_start_at_zero_without_momentum() -> None:
    model = network()
    pruner = Pruner(model, recipe(layers=["2"]), loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = batches(4)
    train(pruner, optimizer, data[:3])
    weight = model[2].weight
    before = weight.detach() != 0
    pruner.loss(data[3]).backward()
    gradient = weight.grad.clone()
    pruner.step(optimizer)
    returned = (weight.detach() != 0) & ~before
    assert returned.any()
    torch.testing.assert_close(weight.detach()[returned], -0.1 * gradient[returned])
    buffer = optimizer.state[weight]["momentum_buffer"]
    torch.testing.assert_close(buffer[returned], gradient[returned])
    assert not buffer[weight.detach() == 0].any()


def test_a_step_with_infinite_gradients_is_left_out() -> None:
    model = network()
    pruner = Pruner(model, recipe(), loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train(pruner, optimizer, batches(3))
    before = model[2].weight.detach() != 0
    pruner.loss(batches(1)[0]).backward()
    model[2].weight.grad.fill_(torch.inf)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    pruner.step(optimizer, scaler)
    assert torch.equal(model[2].weight.detach() != 0, before)
    assert len(pruner.finalize().events) == 1


@pytest.mark.parametrize("at", [3, 5])
def test_it_goes_on_after_a_stop(at: int) -> None:
    assert_goes_on(recipe(), 12, at)


def test_what_cannot_be_exchanged_is_refused() -> None:
    with pytest.raises(UsageError, match="behind the modifier that prunes"):
        Pruner(network(), [Regrow(end=8), Prune(sparsity=0.5)], loss=squared)
    with pytest.raises(UsageError, match="pruned by movement"):
        Pruner(network(), [Movement(sparsity=0.5, end=4), Regrow(end=8)], loss=squared)
    with pytest.raises(UsageError, match="needs an end"):
        Pruner(network(), [Prune(sparsity=0.5), Regrow()], loss=squared)
    with pytest.raises(UsageError, match="no groups that compete"):
        Pruner(network(), [Prune(granularity="2:4"), Regrow(granularity="2:4", end=8)])
    with pytest.raises(UsageError, match="matches no layer"):
        Pruner(network(), [Prune(sparsity=0.5), Regrow(end=8, layers=("9",))])
