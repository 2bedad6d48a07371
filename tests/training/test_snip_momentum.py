"""SNIP with momentum: the exponential mean of |w g|, and masks that only grow."""

from __future__ import annotations

import copy

import pytest
import torch
from learned_cases import batches, network, squared, train

from sparse_engine.training import Pruner, SnipMomentum


@pytest.mark.parametrize("granularity", ["element", "4x1"])
def test_the_lowest_means_are_removed_and_stay_removed(granularity: str) -> None:
    steps, momentum = 12, 0.8
    modifier = SnipMomentum(
        sparsity=0.6, granularity=granularity, end=steps, every=3, momentum=momentum, layers=("2",)
    )
    model, slow = network(), network()
    pruner = Pruner(model, [modifier], loss=squared)
    train(pruner, torch.optim.SGD(model.parameters(), lr=0.2), batches(steps))

    optimizer = torch.optim.SGD(slow.parameters(), lr=0.2)
    mean, keep = torch.zeros(6, 10, dtype=torch.float64), torch.ones(6, 10, dtype=torch.bool)
    height = 4 if granularity == "4x1" else 1
    rows = [slice(row, row + height) for row in range(0, 6, height)]
    for step, batch in enumerate(batches(steps), 1):
        loss = squared(slow, batch)
        optimizer.zero_grad()
        loss.backward()
        weight = slow[2].weight
        assert weight.grad is not None
        product = (weight.detach() * weight.grad).abs()
        mean = momentum * mean + (1 - momentum) * product
        weight.grad *= keep
        optimizer.step()
        if step % 3 == 0:
            share = 0.6 - 0.6 * (1 - step / steps) ** 3
            groups = [(row, column) for row in rows for column in range(10)]
            # A removed group has no chance against one that is kept.
            groups.sort(key=lambda g: float(mean[g].sum()) if keep[g].any() else -1.0)
            before = keep.clone()
            for group in groups[: round(share * len(groups))]:
                keep[group] = False
            assert not (keep & ~before).any()
            with torch.no_grad():
                weight *= keep
    torch.testing.assert_close(model[2].weight, slow[2].weight, rtol=0, atol=1e-12)
    assert torch.equal(model[2].weight != 0, keep)


def test_more_momentum_remembers_a_gradient_that_was_there_once() -> None:
    scores = []
    for momentum in (0.0, 0.9):
        model = network()
        modifier = SnipMomentum(sparsity=0.5, end=4, momentum=momentum, layers=("2",))
        pruner = Pruner(model, [modifier], loss=squared)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        data = copy.deepcopy(batches(1))
        train(pruner, optimizer, data)
        pruner.loss((torch.zeros_like(data[0][0]), model(torch.zeros_like(data[0][0])).detach()))
        (0 * model(data[0][0]).sum()).backward()
        pruner.step(optimizer)
        scores.append(float(modifier._scores[0].sum()))
    assert scores[0] == 0
    assert scores[1] > 0
