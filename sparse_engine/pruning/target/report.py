"""What a target came to: predicted and measured, and the table of layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TargetLayer:
    """What was chosen for one layer.

    Attributes:
        name: its dotted name.
        granularity: the text form.
        sparsity: fraction of its groups that are removed.
        format: the format of the converted layer, or "dense".
        cost: its predicted cost, in the unit of the target.
        error: predicted relative error of its output.
    """

    name: str
    granularity: str
    sparsity: float
    format: str
    cost: float
    error: float


@dataclass(frozen=True)
class TargetShare:
    """A share of structures that was tried.

    Attributes:
        share: of each kind of structures, the fraction that was removed.
        predicted: what the model should cost with the best zeros in the rest; with `error` None,
            the least that it could cost.
        error: of the outputs of the whole model; None if the target is out of reach.
        is_chosen: whether the model was pruned in this way.
    """

    share: float
    predicted: float
    error: float | None
    is_chosen: bool = False


@dataclass(frozen=True)
class TargetReport:
    """How a model was pruned to a target.

    Attributes:
        target: its text form.
        unit: of all costs: "ms", "MB", "parameters" or "FLOPs".
        limit: what the model may cost.
        predicted: what it should cost, from the table of layers.
        measured: what it costs.
        dense: what the dense model costs; of times in torch, measured in turn.
        fixed: the part of `predicted` that no layer of the table has.
        tokens: tokens of the call that was timed; 0 where nothing was.
        evaluations: choices of levels whose output error was computed.
        layers: what was chosen for each layer.
        error: of the outputs of the whole model on calibration inputs, with each layer pruned and
            refitted alone: their KL divergence, or squared relative error; None if not computed.
        shares: of structures that were tried, ascending; empty if only zeros were possible.
    """

    target: str
    unit: str
    limit: float
    predicted: float
    measured: float
    dense: float
    fixed: float
    tokens: int
    evaluations: int
    layers: tuple[TargetLayer, ...]
    error: float | None = None
    shares: tuple[TargetShare, ...] = ()

    @property
    def summary(self) -> str:
        """One line: predicted, measured, and what the dense model costs."""
        return (
            f"target {self.target}: predicted {self.text(self.predicted)}, measured "
            f"{self.text(self.measured)} {self.unit}, {self.dense / self.measured:.2f} times less "
            f"than dense ({self.text(self.dense)})"
        )

    @property
    def figures(self) -> tuple[tuple[str, str], ...]:
        """What was measured and what was predicted, each with a caption."""
        less = f"{self.dense / self.measured:.2f} times less than dense, for target {self.target}"
        return (
            (f"{self.text(self.measured)} {self.unit}", f"measured: {less}"),
            (f"{self.text(self.predicted)} {self.unit}", "predicted from the table of layers"),
        )

    def text(self, cost: float) -> str:
        """A cost in the unit of the target."""
        return cost_text(cost)

    def to_markdown(self) -> str:
        """Table with a row for each layer."""
        lines = [
            f"| layer | granularity | sparsity | format | {self.unit} | error |",
            "|---|---|--:|---|--:|--:|",
        ]
        lines += [
            f"| {row.name} | {row.granularity} | {row.sparsity:.2f} | {row.format} | "
            f"{self.text(row.cost)} | {row.error:.3f} |"
            for row in self.layers
        ]
        return "\n".join(lines)

    def shares_to_markdown(self) -> str:
        """Table with a row for each share of structures that was tried."""
        lines = [f"| structures removed | {self.unit} | error of the outputs |", "|--:|--:|--:|"]
        lines += [f"| {' | '.join(cells)} |" for cells in self.share_rows]
        return "\n".join(lines)

    @property
    def share_rows(self) -> list[tuple[str, str, str]]:
        """Of each share that was tried, its text, what the model costs, and its error."""
        return [
            (
                f"{row.share:.1%}",
                self.text(row.predicted),
                "out of reach"
                if row.error is None
                else f"{row.error:.4g}{', chosen' if row.is_chosen else ''}",
            )
            for row in self.shares
        ]


def cost_text(cost: float) -> str:
    """A number of parameters or operations, of megabytes or of milliseconds."""
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"
