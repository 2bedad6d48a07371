"""Which format would have been faster at that number of tokens: measured, or by the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparse_engine.auto.cost import costs
from sparse_engine.backends import backend_of

if TYPE_CHECKING:
    from sparse_engine.bench.kernel import KernelRow

# What another format must save by the cost model, which is good to a factor of two at most.
LIKELY = 0.6
# What it must save where both were measured.
MEASURED = 0.9


def likely_faster(weight: Tensor, row: KernelRow) -> str:
    """The format that the cost model puts well before the row's, or none.

    weight: float32 [out, in], as it was packed.
    """
    specs = dict.fromkeys((row.format, *backend_of(weight).formats(weight, row.dtype)))
    cost = costs(specs, weight, (row.m,), row.dtype)
    best = min(cost, key=cost.__getitem__)
    return best if cost[best] < LIKELY * cost[row.format] else ""


def same_work(row: KernelRow) -> tuple[Any, ...]:
    """Equal for rows of one weight, number of tokens and machine, whatever the format.

    A random weight with the pattern of its format is another one for each blocked format.
    """
    blocked = row.source == "random" and row.format.startswith(("bsr", "nm"))
    pattern = row.format if blocked else ""
    return row.source, row.n, row.k, row.m, row.dtype, row.sparsity, row.isa, pattern


def hints(rows: Sequence[KernelRow]) -> list[str]:
    """A line for each number of tokens at which a format loses to another one."""
    groups: dict[tuple[Any, ...], list[KernelRow]] = {}
    for row in rows:
        groups.setdefault(same_work(row), []).append(row)
    measured: dict[tuple[int, str, str, str], list[float]] = {}
    likely: dict[tuple[int, str, str, str, str], None] = {}
    for group in groups.values():
        best = min(group, key=lambda row: row.time_us)
        known = {row.format.removeprefix("auto:") for row in group}
        for row in group:
            if row.time_us * MEASURED > best.time_us:
                pair = row.m, row.dtype, best.format, row.format
                measured.setdefault(pair, []).append(row.time_us / best.time_us)
            elif row.likely_faster and row.likely_faster not in known:
                likely[row.m, row.dtype, row.likely_faster, row.format, row.source] = None
    found = []
    for (m, dtype, better, worse), ratios in sorted(measured.items()):
        low, high = f"{min(ratios):.1f}x", f"{max(ratios):.1f}x"
        ratio = low if low == high else f"{low} to {high}"
        found.append(f"{_tokens(m)}, {dtype}: {better} is {ratio} as fast as {worse}")
    for m, dtype, better, worse, source in sorted(likely):
        found.append(
            f"{_tokens(m)}, {dtype}: {better} is likely faster than {worse} by the cost model"
            f"{_how_to_measure(better, worse, source)}"
        )
    return list(dict.fromkeys(found))  # several weights may say the same


def _how_to_measure(better: str, worse: str, source: str) -> str:
    """The options that time both on the same weight; none where random weights cannot be the same."""
    if source != "random" or not worse.startswith(("bsr", "nm")):
        return f": --format {worse.removeprefix('auto:')},{better}"
    if worse.startswith("bsr:"):
        return f": --pattern {worse.removeprefix('bsr:')}:1 --format {worse},{better}"
    return ""


def _tokens(m: int) -> str:
    return f"{m} token{'s' if m > 1 else ''}"
