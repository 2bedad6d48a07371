"""Errors against float64, and how large an error a peer may make."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError

# Largest error that a peer may make, over the largest magnitude of the result.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 5e-2}
# Tokens that are compared with float64. Comparing all of many would take longer than measuring.
CHECKED = 16


def relative_error(y: Tensor, truth: Tensor) -> float:
    """Largest error of y against the float64 result, over the largest magnitude of the result."""
    return float((y.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30))


def spread(tokens: int, most: int) -> Tensor:
    """At most `most` row numbers below `tokens`, evenly spread, with the first and the last."""
    return torch.linspace(0, tokens - 1, min(tokens, most)).round().long()


def max_error(y: Any, weight: Tensor, x: Tensor, most: int = CHECKED) -> float:
    """`relative_error` of y = x W^T on at most `most` tokens.

    Args:
        y: Result [tokens, out], of any array type.
        weight: [out, in]
        x: [tokens, in]
        most: Number of tokens to compare.

    Raises:
        UsageError: y has another shape.
    """
    y = torch.as_tensor(y)
    if tuple(y.shape) != (len(x), len(weight)):
        raise UsageError(f"gives {list(y.shape)} instead of {[len(x), len(weight)]}")
    rows = spread(len(x), most)
    return relative_error(y[rows], x[rows].double() @ weight.double().T)
