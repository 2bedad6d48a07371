"""What share of a model's weights and multiply-adds the pruned layers have, and what was left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from sparse_engine.convert.census import Census, Row, census
from sparse_engine.pruning.layer_report import Left
from sparse_engine.pruning.plan import reason_by_name
from sparse_engine.pruning.report import PruneReport

UNROLLED = ("conv", "recurrent", "cell", "attention", "experts")
"""Kinds of modules that are several linear layers while they are pruned."""
ROUTERS = ("gate", "router")
REASONS_BY_KIND = {
    "embedding": "an embedding",
    "other": "a module of the model's own",
}


def add_coverage(
    report: PruneReport, model: nn.Module, reasons: dict[str, str], counted: Census | None = None
) -> None:
    """Fill in the fields of a report that concern the whole model.

    Args:
        report: a report with all its layers.
        model: the pruned model, no longer unrolled.
        reasons: why layers were left, by their names.
        counted: the weights of the model and their zeros, if they are not in memory.
    """
    counted = counted or census(model)
    modules = dict(model.named_modules())
    report.zeros_of_parameters = counted.zeros_of_parameters
    report.zeros_of_multiply_adds = counted.zeros_of_multiply_adds
    pruned = {layer.name: layer.shape[0] * layer.shape[1] for layer in report.layers}
    _add_shares(report, modules, counted, pruned, reasons)


def _add_shares(
    report: PruneReport,
    modules: Mapping[str, nn.Module],
    counted: Census,
    pruned: Mapping[str, int],
    reasons: Mapping[str, str],
) -> None:
    """The share of pruned layers, and what was left; `pruned` has the weights of each layer."""
    total = max(counted.multiply_adds, 1)
    pruned_multiply_adds = 0.0
    left: list[Left] = []
    # Modules whose weight was pruned under the name of an earlier or a later module.
    shared = {row.tied_to for row in counted.rows if row.tied_to and row.name in pruned}
    for row in counted.rows:
        parts = [name for name in pruned if _is_part(name, row)]
        share = min(sum(pruned[name] for name in parts) / row.weights, 1) if row.weights else 0
        if row.name in shared or row.tied_to in pruned or row.tied_to in shared:
            shared.add(row.name)
            share = 1
        pruned_multiply_adds += share * row.multiply_adds
        if row.weights and row.kind != "norm" and share < 1:
            weights = round(row.weights * (1 - share))
            multiply_adds = row.multiply_adds * (1 - share) / total
            reason = _reason(row, modules[row.name], reasons)
            left.append(Left(row.name, weights, multiply_adds, reason))
    report.pruned_multiply_adds = pruned_multiply_adds / total
    report.left = sorted(left, key=lambda item: (-item.multiply_adds, -item.weights))


def add_cut_coverage(
    report: PruneReport,
    model: nn.Module,
    dense: Census,
    cut: Mapping[str, int],
    reason: str,
) -> None:
    """Fill in the fields of a report on structures that concern the whole model.

    Args:
        report: receives the zeros of what is left, and the shares of the dense model.
        model: what is left of the model, no longer unrolled.
        dense: the counts of the model before.
        cut: by layer that lost rows or columns, how many weights it had.
        reason: why other linear layers were left.
    """
    modules = dict(model.named_modules())
    after = census(model)
    report.multiply_adds = (dense.multiply_adds, after.multiply_adds)
    report.zeros_of_parameters = after.zeros_of_parameters
    report.zeros_of_multiply_adds = after.zeros_of_multiply_adds
    reasons = {
        row.name: reason
        for row in dense.rows
        if row.kind in ("linear", *UNROLLED) and not (row.sparse or reason_by_name(row.name))
    }
    _add_shares(report, modules, dense, cut, reasons)


def add_block_coverage(
    report: PruneReport, model: nn.Module, dense: Census, blocks: Iterable[str]
) -> None:
    """Fill in the fields of a report on whole blocks that concern the whole model.

    Args:
        report: receives the zeros of what is left, and the share of all blocks in the dense model.
        model: what is left of the model.
        dense: the counts of the model before.
        blocks: names of the blocks of all stacks that lost some, before they did.
    """
    after = census(model)
    report.multiply_adds = (dense.multiply_adds, after.multiply_adds)
    report.zeros_of_parameters = after.zeros_of_parameters
    report.zeros_of_multiply_adds = after.zeros_of_multiply_adds
    inside = tuple(f"{block}." for block in blocks)
    of_blocks = sum(row.multiply_adds for row in dense.rows if row.name.startswith(inside))
    report.pruned_multiply_adds = of_blocks / max(dense.multiply_adds, 1)


def _is_part(layer: str, row: Row) -> bool:
    """Whether a pruned layer holds weights of a module: it is the module, or a part of it."""
    if row.kind not in UNROLLED or layer == row.name:
        return layer == row.name
    prefix = f"{row.name}." if row.name else ""
    # The output projection of attention is a module of its own.
    return layer.startswith(prefix) and layer != f"{prefix}out_proj"


def _reason(row: Row, module: nn.Module, reasons: Mapping[str, str]) -> str:
    """Why a module, or a part of it, was left."""
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
    return by_name or REASONS_BY_KIND.get(row.kind, "no layer that can be pruned")
