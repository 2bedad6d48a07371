"""Which format would have been faster for a number of tokens: measured, or by the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparse_engine.auto.cost import costs
from sparse_engine.backends import backend_of
from sparse_engine.bench.rows import LinearRow

# Time of another format over the row's at which it is recommended: by the cost model, which is good
# to a factor of two at most, and where both were measured.
LIKELY, MEASURED = 0.6, 0.9


def likely_faster(weight: Tensor, spec: str, m: int, dtype: str) -> str:
    """The format that the cost model expects to be much faster than `spec`, or none.

    Args:
        weight: float32 [out, in], as it was packed.
        spec: The format that is measured.
        m: Number of tokens.
        dtype: Dtype of the stored weight.
    """
    specs = dict.fromkeys((spec, *backend_of(weight).formats(weight, dtype)))
    cost = costs(specs, weight, (m,), dtype)
    best = min(cost, key=cost.__getitem__)
    return best if cost[best] < LIKELY * cost[spec] else ""


def same_work(row: LinearRow) -> tuple[Any, ...]:
    """Equal for rows of one weight, number of tokens and machine, whatever the format.

    A random weight with the pattern of its format is another one for each blocked format.
    """
    blocked = row.source == "random" and row.format.startswith(("bsr", "nm"))
    pattern = row.format if blocked else ""
    return row.source, row.n, row.k, row.m, row.dtype, row.sparsity, row.isa, pattern


def hints(rows: Sequence[LinearRow]) -> list[str]:
    """A line for each number of tokens for which another format is faster than a measured one."""
    groups: dict[tuple[Any, ...], list[LinearRow]] = {}
    for row in rows:
        groups.setdefault(same_work(row), []).append(row)
    measured: dict[tuple[int, str, str, str], list[float]] = {}
    likely: dict[tuple[int, str, str, str, str], None] = {}
    for group in groups.values():
        best = min(group, key=lambda row: row.time_us)
        formats = {row.format.removeprefix("auto:") for row in group}
        for row in group:
            if row.time_us * MEASURED > best.time_us:
                pair = row.m, row.dtype, best.format, row.format
                measured.setdefault(pair, []).append(row.time_us / best.time_us)
            elif row.likely_faster and row.likely_faster not in formats:
                likely[row.m, row.dtype, row.likely_faster, row.format, row.source] = None
    lines = []
    for (m, dtype, better, worse), ratios in sorted(measured.items()):
        low, high = f"{min(ratios):.1f}x", f"{max(ratios):.1f}x"
        ratio = low if low == high else f"{low} to {high}"
        lines.append(f"{_tokens(m)}, {dtype}: {better} is {ratio} as fast as {worse}")
    for m, dtype, better, worse, source in sorted(likely):
        lines.append(
            f"{_tokens(m)}, {dtype}: {better} is likely faster than {worse} by the cost model"
            f"{_how_to_measure(better, worse, source)}"
        )
    return list(dict.fromkeys(lines))  # several weights may give the same line


def _how_to_measure(better: str, worse: str, source: str) -> str:
    """The options that time both formats on one weight; none where random weights must differ."""
    if source != "random" or not worse.startswith(("bsr", "nm")):
        return f": --format {worse.removeprefix('auto:')},{better}"
    if worse.startswith("bsr:"):
        return f": --pattern {worse.removeprefix('bsr:')}:1 --format {worse},{better}"
    return ""


def _tokens(m: int) -> str:
    return f"{m} token{'s' if m > 1 else ''}"
