"""What `sparsify_` reports: a row for each layer, and the shares of the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sparse_engine.convert.census import Census, Row, census
from sparse_engine.convert.kinds import TWINS, above
from sparse_engine.nn import SparseLinear

SPARSE = (SparseLinear, *TWINS)
# Of modules that were left for the same reason.
NAMED = 3


@dataclass(frozen=True)
class SparsifyRow:
    """One layer, or one of the products of a layer that has several: what became of it."""

    name: str
    shape: tuple[int, int]
    """Rows and columns of its weight; those of all experts, or groups, one below the other."""
    sparsity: float
    format: str
    """The format in use; "dense" where the layer was left alone."""
    kernel: str
    """Kernel for the largest token count asked for."""
    dense_bytes: int
    bytes: int
    reason: str
    times_us: dict[str, dict[int, float]] = field(default_factory=dict)
    kind: str = "linear"
    """linear, conv, attention, encoder layer, decoder layer, experts, recurrent or cell"""


@dataclass(frozen=True)
class Left:
    """A module with weights that no row is about."""

    name: str
    kind: str
    weights: int
    reason: str


@dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify_` swapped, what it did not, and why."""

    rows: tuple[SparsifyRow, ...]
    blocks: str = ""
    """Whether whole layers run natively, and if not, why."""
    left: tuple[Left, ...] = ()
    """Modules for which there is no sparse layer: embeddings, norms, routers, 2-d convolutions."""
    zeros: float = 0.0
    """Share of all parameters that are zeros of a weight, 0..1."""
    skipped: float = 0.0
    """Share of the multiply-adds for one token that sparse layers skip, 0..1."""

    @property
    def swapped(self) -> tuple[SparsifyRow, ...]:
        """Layers that are sparse now."""
        return tuple(row for row in self.rows if row.format != "dense")

    def to_dict(self) -> list[dict[str, Any]]:
        """Rows as plain values, for JSON."""
        return [dict(vars(row)) for row in self.rows]

    @property
    def summary(self) -> str:
        """One line: layers that are sparse, zeros, and multiply-adds that are skipped."""
        return (
            f"{len(self.swapped)} of {len(self.rows)} layers are sparse; {self.zeros:.1%} of all "
            f"parameters zero, {self.skipped:.1%} of the multiply-adds for one token skipped"
        )

    def __str__(self) -> str:
        """A table, one line a layer; then what was left, and the summary."""
        head = (
            f"{'layer':44} {'shape':>12} {'zeros':>6} {'format':9} {'MB':>7} {'of':>7}  why, kernel"
        )
        lines = [
            f"{row.name:44} {f'{row.shape[0]}x{row.shape[1]}':>12} {row.sparsity:6.1%} "
            f"{row.format:9} {row.bytes / 1e6:7.2f} {row.dense_bytes / 1e6:7.2f}  "
            f"{row.reason}{', ' if row.kernel else ''}{row.kernel}"
            for row in self.rows
        ]
        left = [f"left: {_shortened(names)}: {reason}" for reason, names in self._left().items()]
        end = [self.summary, *([self.blocks] if self.blocks else [])]
        return "\n".join([head, *lines, *left, *end])

    def _left(self) -> dict[str, list[str]]:
        by_reason: dict[str, list[str]] = {}
        for module in self.left:
            by_reason.setdefault(module.reason, []).append(module.name)
        return by_reason


def describe(
    model: nn.Module, rows: tuple[SparsifyRow, ...], seen: Iterable[str]
) -> SparsifyReport:
    """The report on `model`, whose modules `seen` were decided on, as `rows` say."""
    counted, modules, known = census(model), dict(model.named_modules()), set(seen)
    left = tuple(
        Left(row.name, row.kind, row.weights, _why_left(row, modules[row.name]))
        for row in counted.rows
        if row.weights and not known.intersection(above(row.name))
    )
    share = skipped_share(counted, modules)
    return SparsifyReport(rows, "", left, counted.zeros_of_parameters, share)


def skipped_share(counted: Census, modules: Mapping[str, nn.Module]) -> float:
    """Share of a model's multiply-adds for one token that its sparse layers skip, 0..1."""
    skipped = sum(
        row.multiply_adds * row.zeros / row.weights
        for row in counted.rows
        if row.weights and isinstance(modules[row.name], SPARSE)
    )
    return skipped / counted.multiply_adds if counted.multiply_adds else 0.0


def _why_left(row: Row, module: nn.Module) -> str:
    if row.sparse:
        return "sparse already"
    if row.kind == "embedding":
        return "rows of an embedding are looked up, not multiplied"
    if row.kind == "norm":
        return "norms scale features"
    return f"there is no sparse layer for {type(module).__name__}"


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
