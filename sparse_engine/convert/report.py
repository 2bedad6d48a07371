"""The report of `sparsify_`: a row for each layer, and the shares of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sparse_engine.convert.census import Census, Row, census
from sparse_engine.convert.kinds import SPARSE_CLASSES
from sparse_engine.convert.targets import Targets
from sparse_engine.modules.names import prefixes
from sparse_engine.nn import SparseLinear


@dataclass(frozen=True)
class SparsifyRow:
    """One layer, or one of the products of a layer that has several.

    Attributes:
        name: of the layer in the model.
        shape: rows and columns of its weight; those of all experts, or groups, one below the other.
        sparsity: share of zeros in its weight, 0..1.
        format: the format in use; "dense" where the layer stays as it is.
        kernel: the kernel for the largest token count of the config.
        dense_bytes: bytes of the dense weight.
        bytes: bytes of the weight now.
        reason: why it has this format.
        times_us: microseconds by format and token count, where "auto" measured them.
        kind: linear, conv, attention, encoder layer, decoder layer, experts, recurrent or cell.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    format: str
    kernel: str
    dense_bytes: int
    bytes: int
    reason: str
    times_us: dict[str, dict[int, float]] = field(default_factory=dict)
    kind: str = "linear"


@dataclass(frozen=True)
class Left:
    """A module that is in no row, or whose parts are in rows of their own.

    Attributes:
        name: of the module in the model.
        kind: as in `census`, or "container".
        weights: elements of its own weights.
        reason: why it was not replaced.
    """

    name: str
    kind: str
    weights: int
    reason: str


@dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify_` replaced, what it did not, and why.

    Attributes:
        rows: one for each layer.
        native: whether the layers of a Transformer run natively, and if not, why.
        left: modules for which there is no sparse layer (embeddings, norms, routers, 2-d
            convolutions), and containers whose parts were replaced one by one.
        zeros: share of all parameters that are zeros of a weight, 0..1.
        skipped: share of the multiply-adds for one token that sparse layers skip, 0..1.
    """

    rows: tuple[SparsifyRow, ...]
    native: str = ""
    left: tuple[Left, ...] = ()
    zeros: float = 0.0
    skipped: float = 0.0

    @property
    def swapped(self) -> tuple[SparsifyRow, ...]:
        """Rows of layers that are sparse now."""
        return tuple(row for row in self.rows if row.format != "dense")

    def to_dict(self) -> list[dict[str, Any]]:
        """Rows as plain values, for JSON."""
        return [dict(vars(row)) for row in self.rows]

    @property
    def summary(self) -> str:
        """One line: layers that are sparse, zeros, and multiply-adds that are skipped."""
        return (
            f"{len(self.swapped)} of {len(self.rows)} layers sparse; "
            f"{self.zeros:.1%} of parameters zero; {self.skipped:.1%} of multiply-adds skipped"
        )

    def __str__(self) -> str:
        """Tables of 80 columns: a line for each layer, and what was left; then the summary."""
        from sparse_engine.reporting.tables import layer_tables, reasons_table, text_of

        tables = [*layer_tables(self.rows)]
        if self.left:
            tables.append(reasons_table("left", [(left.reason, left.name) for left in self.left]))
        end = "\n".join(filter(None, (self.summary, self.native)))
        return f"{text_of(*tables)}\n\n{end}"


def describe(model: nn.Module, rows: tuple[SparsifyRow, ...], targets: Targets) -> SparsifyReport:
    """The report on a converted model.

    Args:
        model: after its layers were replaced.
        rows: about the targets.
        targets: what was found in the model before.
    """
    counted, modules = census(model), dict(model.named_modules())
    names = {target.name for target in targets.found}
    left = [
        Left(row.name, row.kind, row.weights, _left_reason(row, modules[row.name]))
        for row in counted.rows
        if row.weights and names.isdisjoint(prefixes(row.name))
    ]
    left += [Left(name, "container", 0, reason) for name, reason in targets.opened.items()]
    share = skipped_share(counted, modules)
    return SparsifyReport(rows, "", tuple(left), counted.zeros_of_parameters, share)


def skipped_share(counted: Census, modules: Mapping[str, nn.Module]) -> float:
    """Share of a model's multiply-adds for one token that its sparse layers skip, 0..1."""
    skipped = sum(
        row.multiply_adds * row.zeros / row.weights
        for row in counted.rows
        if row.weights and isinstance(modules[row.name], (SparseLinear, *SPARSE_CLASSES))
    )
    return skipped / counted.multiply_adds if counted.multiply_adds else 0.0


def _left_reason(row: Row, module: nn.Module) -> str:
    if row.sparse:
        return "sparse already"
    if row.kind == "embedding":
        return "rows of an embedding are looked up, not multiplied"
    if row.kind == "norm":
        return "norms scale features"
    return f"there is no sparse layer for {type(module).__name__}"
