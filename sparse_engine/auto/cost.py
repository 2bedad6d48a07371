"""The formats worth timing: the backend's estimates drop those that cannot be the fastest."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from sparse_engine.backends import backend_of
from sparse_engine.formats import FormatSpec, block_fill

# Formats with an estimate above this multiple of the lowest one are not timed.
MAX_COST_RATIO = 2.5


def candidates(weight: Tensor, tokens: tuple[int, ...], dtype: str) -> list[str]:
    """Formats worth timing: those that fit and whose estimate is near the lowest one.

    Args:
        weight: [out, in].
        tokens: token counts that the weight will be multiplied with.
        dtype: of the stored values, as in SparseConfig.
    """
    specs = backend_of(weight).formats(weight, dtype)
    cost = costs(specs, weight, tokens, dtype)
    least = max(1.0, min(cost.values(), default=0.0))
    return [spec for spec in specs if cost[spec] <= MAX_COST_RATIO * least]


def costs(
    specs: Iterable[str], weight: Tensor, tokens: tuple[int, ...], dtype: str
) -> dict[str, float]:
    """`Backend.estimate` of each format for `weight`, summed over `tokens`.

    Of blocks all elements count, also the zeros inside.
    """
    backend, nnz = backend_of(weight), int(weight.count_nonzero())
    shape = weight.shape[0], weight.shape[1]
    found = {}
    for spec in specs:
        stored = nnz
        if spec.startswith("bsr"):
            sides = FormatSpec.parse(spec).params
            stored = round(nnz / (block_fill(weight, sides["rows"], sides["cols"]) or 1.0))
        found[spec] = sum(backend.estimate(spec, shape, stored, count, dtype) for count in tokens)
    return found
