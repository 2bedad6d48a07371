"""What is kept of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Kept:
    """The rows and columns that remain of a layer's weight [out, in]; None for all.

    Attributes:
        rows, columns: int64, ascending.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None


def select(tensor: Any, dim: int, kept: Tensor | None) -> Any:
    """A parameter or buffer with the kept indices of a dimension; itself if all are kept."""
    if tensor is None or kept is None:
        return tensor
    chosen = tensor.detach().index_select(dim, kept.to(tensor.device)).contiguous()
    if not isinstance(tensor, nn.Parameter):
        return chosen
    return nn.Parameter(chosen, requires_grad=tensor.requires_grad)
