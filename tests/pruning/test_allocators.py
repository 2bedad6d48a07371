"""Allocators: LAMP scores, the common threshold, and the uniform one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_engine.pruning import prune
from sparse_engine.pruning.allocators import ALLOCATORS, find_allocator
from sparse_engine.pruning.allocators.lamp import MAX_SPARSITY, lamp, shares


def test_lamp_against_its_definition() -> None:
    torch.manual_seed(0)
    score = torch.rand(3, 5)
    values = score.flatten().tolist()
    expected = [s / sum(t for t in values if t >= s) for s in values]
    torch.testing.assert_close(lamp(score), torch.tensor(expected))


def test_all_zero_layer_gives_finite_scores() -> None:
    assert lamp(torch.zeros(2, 3)).isfinite().all()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.97])
def test_total_is_exact(sparsity: float) -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(20, 50), "b": torch.rand(7, 11).square(), "c": torch.rand(30, 30)}
    amounts = shares(scores, sparsity)
    total = sum(score.numel() for score in scores.values())
    lost = sum(amounts[name] * score.numel() for name, score in scores.items())
    assert round(lost) == round(sparsity * total)


def test_layers_with_a_heavy_tail_lose_more() -> None:
    torch.manual_seed(0)
    flat, tailed = torch.rand(100, 10) + 1, torch.rand(100, 10) ** 8
    amounts = shares({"flat": flat, "tailed": tailed}, 0.5)
    assert amounts["tailed"] > amounts["flat"] + 0.1
    assert amounts == shares({"flat": 1000 * flat, "tailed": tailed}, 0.5)


def test_no_layer_is_emptied() -> None:
    spike = torch.full((100, 10), 1e-12)
    spike[0, 0] = 1
    amounts = shares({"spike": spike, "flat": torch.ones(100, 10)}, 0.6)
    assert amounts["spike"] == MAX_SPARSITY
    beyond = shares({"a": torch.rand(10, 10), "b": torch.rand(1, 2)}, 0.995)
    assert all(amount < 1 for amount in beyond.values())


def test_names_and_aliases_find_every_allocator() -> None:
    assert [known.name for known in ALLOCATORS] == ["uniform", "lamp"]
    for known in ALLOCATORS:
        for name in (known.name, *known.aliases):
            assert isinstance(find_allocator(name), known)


def test_uniform_gives_every_layer_the_sparsity_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    report = prune(model, 0.5, allocator="local")
    assert [row.sparsity for row in report.layers] == [0.5] * len(report.layers)
    assert report.allocator == "uniform"
