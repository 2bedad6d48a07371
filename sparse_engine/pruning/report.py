"""What pruning did, layer by layer, and what that is of the whole model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sparse_engine.pruning.plan import DID_NOT_RUN
from sparse_engine.pruning.recovery.base import BlockReport

FEW = 0.5
"""Share of the multiply-adds below which the report warns that pruning saves little."""


@dataclass(frozen=True)
class LayerReport:
    """One pruned layer.

    Attributes:
        name: its dotted name.
        shape: (out, in).
        granularity: the text form of its granularity.
        sparsity: fraction of its weights that are zero.
        error_before: |V X - Y| / |Y| with the mask alone; None if no second moments were collected.
        error_after: the same with the final weights.
        seconds: time spent on this layer, without running the model.
        note: how the method differs from the one that was requested, or "".
    """

    name: str
    shape: tuple[int, int]
    granularity: str
    sparsity: float
    error_before: float | None
    error_after: float | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Left:
    """A module that was left as it was.

    Attributes:
        name: its dotted name.
        weights: number of elements of its weights.
        multiply_adds: its share of the model's multiply-adds for one token, 0..1.
        reason: why it was left.
    """

    name: str
    weights: int
    multiply_adds: float
    reason: str


@dataclass
class PruneReport:
    """Result of `prune`.

    Attributes:
        granularity: its text form.
        criterion: its text form.
        recovery: its text form, or None.
        allocator: its text form.
        layers: the pruned layers, in the order in which they were pruned.
        blocks: modules of stacks that were fitted as a whole; none unless the recovery does so.
        outside_blocks: layers in no stack, if the recovery fits blocks.
        left: modules that were left, those with the most multiply-adds first.
        unseen: layers of experts that no calibration token reached: pruned by magnitude.
        zeros_of_parameters: fraction of zeros in all parameters of the model.
        zeros_of_multiply_adds: fraction of the multiply-adds for one token whose weight is zero.
        pruned_multiply_adds: share of the pruned layers in the multiply-adds for one token.
        seconds: the whole time, running the model included.
    """

    granularity: str
    criterion: str
    recovery: str | None
    allocator: str
    layers: list[LayerReport] = field(default_factory=list)
    blocks: list[BlockReport] = field(default_factory=list)
    outside_blocks: list[str] = field(default_factory=list)
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
        """Messages for the user, one line each."""
        messages = []
        if self.pruned_multiply_adds < FEW:
            most = self.left[0] if self.left else None
            detail = f"; {most.name} has {most.multiply_adds:.1%}: {most.reason}" if most else ""
            messages.append(
                f"the pruned layers do only {self.pruned_multiply_adds:.1%} of the multiply-adds "
                f"for one token{detail}"
            )
        if self.unseen:
            names = _and_more(self.unseen)
            messages.append(f"no calibration token reached {names}: pruned by magnitude alone")
        if self.outside_blocks:
            names = _and_more(self.outside_blocks)
            messages.append(f"{names}: in no stack, so refitted one layer at a time")
        if not_run := [left.name for left in self.left if left.reason == DID_NOT_RUN]:
            messages.append(f"{_and_more(not_run)} {DID_NOT_RUN}: left as it was")
        return messages

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "sparsity": self.sparsity}

    def to_markdown(self) -> str:
        """Table with a row for each pruned layer."""
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
        """Table with a row for each module that was left."""
        lines = ["| left alone | weights | of multiply-adds | why |", "|---|--:|--:|---|"]
        lines += [
            f"| {item.name} | {item.weights} | {item.multiply_adds:.1%} | {item.reason} |"
            for item in self.left
        ]
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        """Lines: number of layers, method and time; shares of the whole model; warnings."""
        method = f"{self.criterion}, {self.granularity}, {self.allocator}"
        if self.recovery:
            method += f", {self.recovery}"
        lines = [
            f"{len(self.layers)} layers ({method}), {self.seconds:.1f} s",
            self.shares,
            *(f"warning: {line}" for line in self.warnings),
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        tables = [self.to_markdown(), *([self.left_to_markdown()] if self.left else [])]
        return "\n\n".join([self.summary, *tables])


def _and_more(names: list[str]) -> str:
    """The first name, and how many there are besides it."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"
