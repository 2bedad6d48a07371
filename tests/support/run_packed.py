"""What tests of single packings share: a product on a chosen ISA, and random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.backends.cpu_ops import as_array, weight_handle
from sparse_engine.formats import Format


def run(packed: Format, x: Tensor, isa: str) -> Tensor:
    """x Wᵀ; elements that the kernel does not write are NaN."""
    y = torch.full((len(x), packed.shape[0]), float("nan"), dtype=x.dtype)
    weight_handle(packed).linear(as_array(x), as_array(y), isa=isa)
    return y


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
