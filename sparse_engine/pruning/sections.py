"""The sections of the page of a pruning report; every number comes from the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_engine.pruning.layer_report import HeadsReport, LayerReport, Left
from sparse_engine.pruning.recovery.base import BlockReport
from sparse_engine.pruning.target.report import TargetReport
from sparse_engine.reporting.by_block import Values, charts_by_block
from sparse_engine.reporting.chart import Chart, Table
from sparse_engine.reporting.example import Example, example_table
from sparse_engine.reporting.heat_map import HeatMap
from sparse_engine.reporting.page import Section

EVEN = 0.005
"""Layers whose sparsities differ by at most this have one sparsity."""
NEARLY_ALL = 0.95
"""A chart of the units that keep a weight is drawn where some layer has no more than this."""


def percent(share: float) -> str:
    """A share as "80.0 %"."""
    return f"{100 * share:.1f} %"


def layers_section(layers: Sequence[LayerReport]) -> Section:
    """Sparsity and error of each layer: lines over the blocks, and a table of all layers."""
    text: list[str] = []
    charts: list[Chart] = []
    sparsity = {layer.name: layer.sparsity for layer in layers}
    least, most = min(sparsity.values(), default=0), max(sparsity.values(), default=0)
    if most - least <= EVEN:
        text.append(f"Every layer has {percent(most)} zeros.")
    else:
        text.append(f"The layers have from {percent(least)} to {percent(most)} zeros.")
        title = "Zeros of each layer"
        charts += charts_by_block(Values("sparsity", title, "zeros", sparsity, {}, percent=True))
    after = {row.name: row.error_after for row in layers if row.error_after is not None}
    before = {row.name: row.error_before for row in layers if row.error_before is not None}
    if after:
        changed = any(abs(before[name] - error) > 1e-6 for name, error in after.items())
        text.append(
            "The error of a layer is |V X - Y| / |Y|: of its outputs on the calibration inputs, "
            "relative to their target."
            + (
                " A dotted line is the error with the mask alone, before recovery."
                if changed
                else ""
            )
        )
        title = "Error of each layer"
        shown = before if changed else {}
        charts += charts_by_block(Values("error", title, "relative error", after, shown))
    else:
        text.append("Without calibration inputs the errors of layers are not measured.")
    return Section(
        "Layers", tuple(text), tuple(charts), table=layer_table(layers), table_title="All layers"
    )


def layer_table(layers: Sequence[LayerReport]) -> Table:
    """A row for each layer, in the order in which they were pruned; empty columns are left out."""
    names = "layer|shape|pattern|zeros|rows kept|columns kept|error before|error after"
    head = (*names.split("|"), "seconds", "note")
    rows = tuple(
        (
            row.name,
            f"{row.shape[0]} x {row.shape[1]}",
            row.granularity,
            percent(row.sparsity),
            "" if row.rows_kept is None else str(row.rows_kept),
            "" if row.columns_kept is None else str(row.columns_kept),
            _error(row.error_before),
            _error(row.error_after),
            f"{row.seconds:.2f}",
            row.note or row.warning,
        )
        for row in layers
    )
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return Table(tuple(head[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows))


def blocks_section(blocks: Sequence[BlockReport]) -> Section:
    """The error of each block that was fitted as a whole."""
    if not blocks:
        return Section("")
    after = {block.name: block.error_after for block in blocks}
    before = {block.name: block.error_before for block in blocks}
    title = "Error of each block"
    text = (
        "The error of a block is that of its outputs, relative to those of the dense model. A "
        "dotted line is the error with every layer refitted alone."
    )
    values = Values("blocks", title, "relative error", after, before, "layers alone")
    return Section("Blocks", (text,), tuple(charts_by_block(values)))


def target_section(target: TargetReport | None) -> Section:
    """What a target came to, and what was chosen for each layer."""
    if target is None:
        return Section("")
    unit = target.unit
    costs = {row.name: row.cost for row in target.layers}
    charts = charts_by_block(
        Values("cost", f"Predicted cost of each layer, {unit}", unit, costs, {})
    )
    rows = tuple(
        (
            row.name,
            row.format,
            row.granularity,
            percent(row.sparsity),
            target.text(row.cost),
            f"{row.error:.3f}",
        )
        for row in target.layers
    )
    head = ("layer", "format", "pattern", "zeros", unit, "predicted error")
    timed = f" Times are of a call of {target.tokens} tokens." if target.tokens else ""
    return Section(
        "Target",
        (f"{target.summary}.{timed}",),
        tuple(charts),
        table=Table(head, rows, left=2),
        table_title="What was chosen for each layer",
    )


def shares_section(target: TargetReport | None) -> Section:
    """The shares of structures that were tried for a target."""
    if target is None or not target.shares:
        return Section("")
    text = (
        "Each share of structures was removed from a copy of the model, and the zeros that the "
        "rest needs for the target were chosen there. The share whose outputs were closest to the "
        "dense model's was taken."
    )
    head = ("structures removed", target.unit, "error of the outputs")
    table = Table(head, tuple(target.share_rows))
    return Section("Shares of structures", (text,), table=table, table_title="All shares")


def recipe_section(*parts: Mapping[str, Any]) -> Section:
    """How the run can be repeated: the entries of all parts."""
    rows = tuple((name, _plain(value)) for part in parts for name, value in part.items())
    if not rows:
        return Section("")
    table = Table(("what", "value"), rows, left=2)
    return Section("Recipe", ("How this model was made.",), table=table, table_title="All values")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def units_section(layers: Sequence[LayerReport], heads: Sequence[HeadsReport]) -> Section:
    """Heads, and the rows and columns of each layer that keep a weight."""
    text: list[str] = []
    charts: list[Chart] = []
    if heads:
        charts.append(heads_chart(heads))
    counted = [row for row in layers if row.rows_kept is not None and row.columns_kept is not None]
    rows = {row.name: (row.rows_kept or 0) / row.shape[0] for row in counted}
    columns = {row.name: (row.columns_kept or 0) / row.shape[1] for row in counted}
    for name, title, shares, word in (
        ("rows", "Outputs that keep a weight", rows, "output"),
        ("columns", "Inputs that keep a weight", columns, "input"),
    ):
        least = min(shares.values(), default=1.0)
        if least == 1:
            text.append(f"Every {word} of every layer keeps at least one weight.")
        elif least > NEARLY_ALL:
            text.append(f"Of the {word}s of each layer at least {percent(least)} keep a weight.")
        else:
            charts += charts_by_block(Values(name, title, "kept", shares, {}, percent=True))
    if heads:
        text.append(
            "The share of a head counts the weights of its queries and those by which the output "
            "projection reads it."
        )
    return Section("Heads and units kept", tuple(text) if counted or heads else (), tuple(charts))


def heads_chart(heads: Sequence[HeadsReport]) -> HeatMap:
    """The share of weights kept, by attention and head."""
    width = max(len(row.kept) for row in heads)
    shares = [share for row in heads for share in row.kept]
    return HeatMap(
        "heads",
        "Weights kept by each head",
        f"A row for each attention, a column for each head: from {percent(min(shares))} to "
        f"{percent(max(shares))} of a head's weights are kept. The table has the numbers.",
        "head",
        "",
        tuple(str(head) for head in range(width)),
        tuple(_attention(row.name) for row in heads),
        tuple((*row.kept, *(None,) * (width - len(row.kept))) for row in heads),
        0.0,
        max(*shares, 0.01),
        lambda share: f"{100 * share:.0f}%",
    )


def examples_section(examples: Sequence[Example]) -> Section:
    """What the model makes of some texts, before and after."""
    if not examples:
        return Section("")
    return Section(
        "Before and after",
        ("Answers of the dense model and of the pruned one.",),
        table=example_table(examples),
        table_title=f"{len(examples)} texts",
    )


def left_section(left: Sequence[Left]) -> Section:
    """The modules that were left as they were."""
    if not left:
        return Section("")
    rows = tuple(
        (item.name, item.reason, f"{item.weights:,}", percent(item.multiply_adds)) for item in left
    )
    head = ("module", "why", "weights", "of the multiply-adds")
    return Section(
        "Left alone",
        ("Modules that pruning did not change, those with the most multiply-adds first.",),
        table=Table(head, rows, left=2),
        table_title=f"{len(left)} modules",
    )


def _attention(name: str) -> str:
    """The name of an attention up to its block number, or the whole of it."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.3f}"
