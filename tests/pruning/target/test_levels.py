"""Which settings are tried, and which levels remain."""

from __future__ import annotations

import torch
from target_cases import table

from sparse_engine.pruning.allocators.base import Candidate, Setting
from sparse_engine.pruning.granularity import Block, Element
from sparse_engine.pruning.target.levels import affordable, level_of, worthwhile


def test_levels_that_another_one_beats_are_left_out() -> None:
    levels = table((3, 0.1), (1, 0.9), (2, 0.95), (2, 0.5), (4, 0.1), (5, 0.0), (1, 1.0))
    kept = worthwhile(levels)
    assert [(level.cost, level.error) for level in kept] == [(1, 0.9), (2, 0.5), (3, 0.1), (5, 0.0)]


def test_only_settings_that_save_something_are_tried() -> None:
    element, block, tall = Element(), Block(4, 1), Block(16, 1)
    prices = {
        Setting(element, 0.0): 10.0,
        Setting(element, 0.3): 11.0,  # slower than dense
        Setting(element, 0.5): 8.0,
        Setting(element, 0.7): 8.0,  # no faster than at 0.5
        Setting(block, 0.5): 9.0,  # single weights are faster
        Setting(block, 0.7): 6.0,
        Setting(tall, 0.7): 7.0,  # other blocks are no rivals
    }
    assert affordable(prices) == {element: [0.5], block: [0.7], tall: [0.7]}


def test_a_level_keeps_the_weight_without_its_zeros() -> None:
    weight = torch.randn(8, 24) * (torch.rand(8, 24) < 0.3)
    bias = torch.randn(8)
    candidate = Candidate(Setting(Element(), 0.7), weight, bias, error=0.5)
    level = level_of(candidate, "csr", 2.0)
    assert level.stored is not None
    assert torch.equal(level.stored.to_dense(), weight)
    assert level.bias is bias
    assert (level.error, level.cost, level.format) == (0.25, 2.0, "csr")
