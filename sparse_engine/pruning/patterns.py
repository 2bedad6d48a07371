"""The patterns of zeros that a model already has, whoever pruned it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from sparse_engine.convert.census import census
from sparse_engine.formats import Pattern
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.pruning.unrolled import unrolled


@dataclass(frozen=True)
class LayerPattern:
    """The zeros of one linear layer.

    Attributes:
        name: Dotted name; parts of recurrent networks, attentions and experts have names of their
            own below their module.
        shape: (out, in).
        sparsity: Share of zeros, 0..1.
        block: "element", "4x1" (rows x columns), "rows", "columns", "dense" or "zero".
        fill: Share of non-zeros in the blocks that hold any.
        nm: "2:4" for keep 2 of 4; "" for none.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    block: str
    fill: float
    nm: str


@dataclass(frozen=True)
class PatternReport:
    """The zeros of a model's linear layers; `summary` is one sentence on the whole model."""

    layers: tuple[LayerPattern, ...]
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A line for each layer, and the summary."""
        lines = [
            f"{row.name}: {row.shape[0]}x{row.shape[1]}, {row.sparsity:.1%} zeros, {row.block}, "
            f"filled {row.fill:.1%}{', ' if row.nm else ''}{row.nm}"
            for row in self.layers
        ]
        return "\n".join([*lines, self.summary])


def find_patterns(model: nn.Module, progress: ProgressCallback | None = None) -> PatternReport:
    """Measure which blocks and groups the zeros of a model are made of.

    The model is not changed. Layers that share a weight are listed once.

    Args:
        model: Any module whose layers are dense.
        progress: Called as (done, total, layer name).

    >>> print(find_patterns(model))
    """
    rows: list[LayerPattern] = []
    seen: set[int] = set()
    with unrolled(model):
        linears = {name: module for name, module in model.named_modules() if is_linear(module)}
        for done, (name, module) in enumerate(linears.items(), 1):
            if id(module.weight) not in seen:
                seen.add(id(module.weight))
                rows.append(_row(name, module))
            if progress is not None:
                progress(done, len(linears), name)
    counts = Counter(_kind(row) for row in rows)
    kinds = ", ".join(f"{kind} in {count}" for kind, count in counts.most_common())
    weights = sum(math.prod(row.shape) for row in rows)
    zeros = sum(math.prod(row.shape) * row.sparsity for row in rows)
    counted = census(model)
    return PatternReport(
        tuple(rows),
        f"{len(rows)} linear layers: {kinds or 'none'}; zeros: {zeros / max(weights, 1):.1%} of "
        f"them, {counted.zeros_of_parameters:.1%} of all parameters, "
        f"{counted.zeros_of_multiply_adds:.1%} of multiply-adds for one token",
    )


def _row(name: str, module: nn.Module) -> LayerPattern:
    found = Pattern.of_weight(weight_of(module).detach())
    return LayerPattern(name, found.shape, found.sparsity, found.block, found.fill, found.nm)


def _kind(row: LayerPattern) -> str:
    return row.nm if row.block == "element" and row.nm else row.block
