"""2:4 for many tokens on a GPU: torch's own semi-structured kernels, where they beat dense.

The layer stays torch.nn.Linear, with its weight in torch's compressed format (arXiv:2104.08378;
torch.sparse.to_sparse_semi_structured). Its results are compared with dense before anything is
timed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.formats import most_in_group

NARROW = (torch.float16, torch.bfloat16)
# Largest difference from dense over the largest magnitude: sums in another order, rounded to 16
# bits.
TOLERANCE = 2e-2
# Share of dense time that it must save: less is within the noise of the timer.
MARGIN = 0.02


def compress(
    linear: nn.Linear, tokens: tuple[int, ...], time: Callable[..., dict[str, float]]
) -> tuple[Tensor | None, str]:
    """The weight of a layer on a GPU in torch's format, where that is faster than dense.

    Args:
        linear: The dense layer.
        tokens: Numbers of rows that the two are timed with, one after the other.
        time: Microseconds of calls by name, as `Backend.time` measures them.

    Returns:
        The compressed weight, or None; and the reason, which is "" for weights that are not 2:4 or
        not of 16 bits.
    """
    weight = linear.weight.detach()
    if weight.dtype not in NARROW or most_in_group(weight, 4) > 2:
        return None, ""
    try:
        compressed = torch.sparse.to_sparse_semi_structured(weight)
        total = {"dense": 0.0, "2:4": 0.0}
        for count in tokens:
            x = torch.randn(count, weight.shape[1]).to(weight)
            with torch.inference_mode():
                expected, found = F.linear(x, weight), F.linear(x, compressed)
            if float((found - expected).abs().max()) > TOLERANCE * float(expected.abs().max()):
                return None, "torch's 2:4 kernels give another result"
            calls = {
                "dense": lambda x=x: F.linear(x, weight),
                "2:4": lambda x=x: F.linear(x, compressed),
            }
            for name, micros in time(calls, weight.device).items():
                total[name] += micros
    except Exception as error:  # shapes that it does not take, no library, no memory
        detail = (str(error).splitlines() or [""])[0][:100]
        return None, f"torch has no 2:4 for it: {type(error).__name__}: {detail}"
    share = total["2:4"] / total["dense"]
    if share > 1 - MARGIN:
        return None, f"torch's 2:4 takes {share:.2f} of dense"
    return compressed, f"torch's 2:4 kernels, {share:.2f} of dense"


def is_compressed(tensor: object) -> bool:
    """Whether a tensor is in torch's semi-structured format."""
    return isinstance(tensor, torch.sparse.SparseSemiStructuredTensor)


def plain_of(tensor: Tensor) -> Tensor:
    """A tensor as files and formats have it."""
    return tensor.to_dense() if is_compressed(tensor) else tensor


def restored(linear: nn.Linear) -> nn.Linear:
    """The layer itself, or one with the same weight where that is compressed."""
    if not is_compressed(linear.weight):
        return linear
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(plain_of(linear.weight), requires_grad=False)
    plain.bias = linear.bias
    return plain.train(linear.training)
