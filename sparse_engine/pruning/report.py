"""What pruning did, layer by layer, and what that is of the whole model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from sparse_engine.convert.census import Row, census
from sparse_engine.pruning.layers import IDLE, reason_by_name

FEW = 0.5
"""Share of the multiply-adds below which the report warns that pruning saves little."""
OPENED = ("conv", "recurrent", "cell", "attention", "experts")
"""Kinds of modules that hold several layers for as long as they are pruned."""
ROUTERS = ("gate", "router")
WHY = {
    "embedding": "an embedding",
    "other": "a module of the model's own",
}


@dataclass(frozen=True)
class LayerReport:
    """One pruned layer.

    sparsity:      fraction of zeros reached
    error_before:  |V X - Y| / |Y| with the mask alone; None if no statistics were taken
    error_after:   the same with the weights as they are now
    seconds:       time spent on this layer, without running the model
    note:          what was done otherwise than asked, or ""
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    error_before: float | None
    error_after: float | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Left:
    """A module that was left as it was.

    weights:        elements of its weights
    multiply_adds:  its share of the model's multiply-adds for one token, 0..1
    reason:         why it was left
    """

    name: str
    weights: int
    multiply_adds: float
    reason: str


@dataclass
class PruneReport:
    """Result of `prune`.

    left:                    modules that were left, those of the most multiply-adds first
    unseen:                  layers of experts that no calibration token reached: pruned by magnitude
    zeros_of_parameters:     fraction of zeros in all parameters of the model
    zeros_of_multiply_adds:  fraction of the multiply-adds for one token whose weight is zero
    pruned_multiply_adds:    fraction of the multiply-adds for one token that the pruned layers do
    seconds:                 the whole time, running the model included
    """

    granularity: str
    criterion: str
    recovery: str | None
    scope: str
    layers: list[LayerReport] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    zeros_of_parameters: float = 0.0
    zeros_of_multiply_adds: float = 0.0
    pruned_multiply_adds: float = 0.0
    seconds: float = 0.0

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over the weights of all pruned layers."""
        weights = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = sum(layer.sparsity * n for layer, n in zip(self.layers, weights, strict=True))
        return zeros / sum(weights) if weights else 0.0

    @property
    def shares(self) -> str:
        """One sentence: zeros of the pruned layers, of all parameters, and of the multiply-adds."""
        return (
            f"zeros: {self.sparsity:.1%} of these layers, {self.zeros_of_parameters:.1%} of all "
            f"parameters, {self.zeros_of_multiply_adds:.1%} of multiply-adds for one token"
        )

    @property
    def warnings(self) -> list[str]:
        """What the user should not miss, one line each."""
        told = []
        if self.pruned_multiply_adds < FEW:
            most = self.left[0] if self.left else None
            most_of = f"; {most.name} has {most.multiply_adds:.1%}: {most.reason}" if most else ""
            told.append(
                f"the pruned layers do only {self.pruned_multiply_adds:.1%} of the multiply-adds "
                f"for one token{most_of}"
            )
        if self.unseen:
            more = f" and {len(self.unseen) - 1} more" if len(self.unseen) > 1 else ""
            told.append(
                f"no calibration token reached {self.unseen[0]}{more}: pruned by magnitude alone"
            )
        if idle := [left.name for left in self.left if left.reason == IDLE]:
            more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
            told.append(f"{idle[0]}{more} {IDLE}: left as it was")
        return told

    def count(self, model: nn.Module, reasons: dict[str, str]) -> None:
        """Fill in what the pruned layers are of `model`; `reasons` say why others were left."""
        counted, modules = census(model), dict(model.named_modules())
        self.zeros_of_parameters = counted.zeros_of_parameters
        self.zeros_of_multiply_adds = counted.zeros_of_multiply_adds
        pruned = {layer.name: layer.shape[0] * layer.shape[1] for layer in self.layers}
        total = max(counted.multiply_adds, 1)
        done = 0.0
        left: list[Left] = []
        # Modules whose weight was pruned under another name, before this one or after it.
        shared = {row.tied_to for row in counted.rows if row.tied_to and row.name in pruned}
        for row in counted.rows:
            parts = [name for name in pruned if _is_part(name, row)]
            share = min(sum(pruned[name] for name in parts) / row.weights, 1) if row.weights else 0
            if row.name in shared or row.tied_to in pruned or row.tied_to in shared:
                shared.add(row.name)
                share = 1
            done += share * row.multiply_adds
            if row.weights and row.kind != "norm" and share < 1:
                rest = round(row.weights * (1 - share))
                work = row.multiply_adds * (1 - share) / total
                left.append(Left(row.name, rest, work, _reason(row, modules[row.name], reasons)))
        self.pruned_multiply_adds = done / total
        self.left = sorted(left, key=lambda item: (-item.multiply_adds, -item.weights))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "sparsity": self.sparsity}

    def to_markdown(self) -> str:
        """Table with a row for each layer."""
        lines = [
            "| layer | shape | sparsity | error before | error after | seconds |",
            "|---|---|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {row.name} | {row.shape[0]}x{row.shape[1]} | {row.sparsity:.3f} | "
            f"{_error(row.error_before)} | {_error(row.error_after)} | {row.seconds:.2f} |"
            for row in self.layers
        ]
        return "\n".join(lines)

    def left_to_markdown(self) -> str:
        """Table with a row for each module that was left alone."""
        lines = ["| left alone | weights | of multiply-adds | why |", "|---|--:|--:|---|"]
        lines += [
            f"| {item.name} | {item.weights} | {item.multiply_adds:.1%} | {item.reason} |"
            for item in self.left
        ]
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        """Lines: how many layers, how and how long; what that is of the model; warnings."""
        how = f"{self.criterion}, {self.granularity}, {self.scope}"
        if self.recovery:
            how += f", {self.recovery}"
        lines = [
            f"{len(self.layers)} layers ({how}), {self.seconds:.1f} s",
            self.shares,
            *(f"warning: {line}" for line in self.warnings),
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        tables = [self.to_markdown(), *([self.left_to_markdown()] if self.left else [])]
        return "\n\n".join([self.summary, *tables])


def _is_part(layer: str, row: Row) -> bool:
    """Whether a pruned layer holds weights of a module: it is the module, or was made of it."""
    if row.kind not in OPENED or layer == row.name:
        return layer == row.name
    prefix = f"{row.name}." if row.name else ""
    # The output projection of attention is a module of its own.
    return layer.startswith(prefix) and layer != f"{prefix}out_proj"


def _reason(row: Row, module: nn.Module, reasons: dict[str, str]) -> str:
    for name, reason in reasons.items():
        if _is_part(name, row):
            return reason
    if row.sparse:
        return "sparse already: densify_ the model to prune it again"
    if row.kind == "other" and row.name.rpartition(".")[2] in ROUTERS:
        return "a router"
    by_name = reason_by_name(row.name)
    if row.kind == "conv" and not by_name:
        transposed = getattr(module, "transposed", False)
        return "a transposed convolution" if transposed else "a convolution of more dimensions"
    return by_name or WHY.get(row.kind, "no layer that can be pruned")


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"
