"""Small models and metrics with a known limit, for tests of tuning."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from sparse_engine.tuning import clock

ALL = [0.2, 0.4, 0.6, 0.8]


def network() -> Any:
    """Three layers of 864 weights together; `prune` takes all of them."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 4)
    )


def zeros(model: nn.Module) -> float:
    """The fraction of zeros in the weights of linear layers that have any."""
    layers = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    pruned = [weight for weight in layers if not weight.all()]
    count = sum(int((weight == 0).sum()) for weight in pruned)
    return count / max(sum(weight.numel() for weight in pruned), 1)


def same(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same modules, parameters and buffers, to the bit."""
    names = [[name for name, _ in m.named_modules()] for m in (model, other)]
    tensors = [dict(chain(m.named_parameters(), m.named_buffers())) for m in (model, other)]
    return (
        names[0] == names[1]
        and tensors[0].keys() == tensors[1].keys()
        and all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    )


class Watched:
    """A metric that is 1 up to a sparsity and 0 above it."""

    __name__ = "watched"

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, model: nn.Module) -> float:
        return float(zeros(model) <= self.limit)


class FakeClock:
    """Time that passes when something is done."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr(clock, "monotonic", lambda: self.now)
        patch.setattr("sparse_engine.tuning.run.monotonic", lambda: self.now)
