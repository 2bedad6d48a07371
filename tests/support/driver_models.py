"""Small models and inputs that the tests of `prune` share, and comparisons of states."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(width: int = 12, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, 20, bias=bias), nn.ReLU(), nn.Linear(20, 7, bias=bias), nn.Dropout(0.5)
    )


def batches(width: int = 12) -> list[Tensor]:
    return [
        torch.randn(6, width, generator=torch.Generator().manual_seed(seed)) for seed in range(4)
    ]


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss for criteria that read the mean gradient, which is zero without labels."""
    found: Tensor = model(batch).square().mean()
    return found


def bert_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    result = []
    for length in (5, 9, 9, 12):
        ids = torch.randint(50, (4, length), generator=generator)
        mask = torch.arange(length) < torch.tensor([length, length, 4, 3])[:, None]
        result.append({"input_ids": ids, "attention_mask": mask.long()})
    return result


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a
    )


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
