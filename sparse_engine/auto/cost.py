"""A cost model of the CPU kernels, which drops formats that cannot be the fastest.

Estimates are good to a factor of two: enough to decide what is worth timing, not which format wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from torch import Tensor

from sparse_engine import _core
from sparse_engine.formats import FormatSpec, block_fill, most_in_group

# Block shapes that are tried on the CPU, tallest first. Lower blocks need no trial: csr is packed
# to the same runs, which find rows with equal columns.
BLOCKS = ((32, 1), (16, 1))
# On a GPU tall blocks: the rows that share a tile of x decide the cost of many tokens.
GPU_BLOCKS = (
    *((128, cols) for cols in (128, 64, 32, 16)),
    *((64, cols) for cols in (64, 32, 16)),
    *((32, 32), (16, 16), (128, 1), (64, 1)),
)
GPU_GROUPS = ((1, 4), (2, 4), (2, 8), (4, 8), (4, 16))
# On a GPU a pattern counts as blocks if at least this share of their elements is non-zero.
MIN_FILL = 0.95
# Formats with an estimate above this multiple of the lowest one are not timed.
MAX_COST_RATIO = 2.5


def fitting(weight: Tensor, dtype: str) -> list[str]:
    """Formats that `weight` fits and that its device has kernels for.

    Args:
        weight: [out, in].
        dtype: of the stored values, as in SparseConfig.
    """
    on_cpu = weight.device.type == "cpu"
    if not on_cpu:
        blocks = (f"bsr:{r}x{c}" for r, c in GPU_BLOCKS if block_fill(weight, r, c) >= MIN_FILL)
        groups = (f"nm:{n}:{m}" for n, m in GPU_GROUPS if most_in_group(weight, m) <= n)
        return [*islice(blocks, 2), *islice(groups, 1), "csr"]
    # Blocks have no kernel of their own in int8.
    tall = [] if dtype == "int8" else [f"bsr:{r}x{c}" for r, c in BLOCKS]
    return ["csr", *tall, "bitmask", *(["sellp"] if weight.shape[1] <= 65536 else [])]


def candidates(weight: Tensor, tokens: tuple[int, ...], dtype: str) -> list[str]:
    """Formats worth timing: those that fit and whose estimate is near the lowest one.

    Args:
        weight: [out, in].
        tokens: token counts that the weight will be multiplied with.
        dtype: of the stored values, as in SparseConfig.
    """
    specs = fitting(weight, dtype)
    if weight.device.type != "cpu":
        return specs
    cost = costs(specs, weight, tokens, dtype)
    least = max(1.0, min(cost.values()))
    return [spec for spec in specs if cost[spec] <= MAX_COST_RATIO * least]


def costs(
    specs: Iterable[str], weight: Tensor, tokens: tuple[int, ...], dtype: str
) -> dict[str, float]:
    """`estimate` of each format for `weight`, summed over `tokens`.

    Of blocks all elements count, also the zeros inside.
    """
    nnz = int(weight.count_nonzero())
    found = {}
    for spec in specs:
        stored = nnz
        if spec.startswith("bsr"):
            sides = FormatSpec.parse(spec).params
            stored = round(nnz / (block_fill(weight, sides["rows"], sides["cols"]) or 1.0))
        found[spec] = sum(estimate(spec, weight, stored, count, dtype) for count in tokens)
    return found


def estimate(spec: str, weight: Tensor, nnz: int, tokens: int, dtype: str) -> float:
    """Cycles of one core, roughly, to multiply `tokens` tokens.

    The factors are instruction counts of the kernels' inner loops.

    Args:
        spec: the format.
        weight: [out, in].
        nnz: values that are stored and multiplied.
        tokens: rows of x.
        dtype: of the stored values, as in SparseConfig.
    """
    wide = "avx512" in _core.capabilities()
    vectors = -(-tokens // 16) * (1 if wide else 2)  # of tokens
    passes = -(-tokens // 4)  # over the weights
    if spec == "sellp":
        return 1.3 * nnz * passes * (0.2 if wide else 1.0)
    if spec == "bitmask":
        if _core.linear_kernel("bits", dtype, 1).endswith("scalar"):
            return passes * (weight.numel() / 8 + 1.5 * nnz)
        columns = {"float32": 16, "int8": 64}.get(dtype, 32)
        return passes * 4 * weight.numel() / columns
    if spec.startswith("bsr") and tokens <= 8:
        return nnz * 0.15 * max(1, tokens / 4)
    return nnz * max(1.0, 0.6 * vectors)
