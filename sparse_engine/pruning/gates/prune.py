"""Prunes the two matrices of a recurrent layer together: one budget, one fit, weighted rows."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparse_engine.pruning.allocators import Setting
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.criteria.obs import OBS
from sparse_engine.pruning.gates.costs import GateCosts
from sparse_engine.pruning.gates.moments import GateMoments
from sparse_engine.pruning.gates.pairs import GatePair, joint_weights
from sparse_engine.pruning.granularity import Granularity, KeptColumns
from sparse_engine.pruning.layer_report import LayerReport
from sparse_engine.pruning.prune_layer import layer_report, write_parameter

RATIO = 0.7  # of the cuts, unless the criterion has its own


def can_join(pair: GatePair, granularity: Granularity) -> bool:
    """Whether no group of [ih | hh] would reach over the border between the two matrices."""
    widths = [layer.shape[1] for layer in pair.layers]
    spans = {granularity.span(width) for width in widths}
    return len(spans) == 1 and not any(width % spans.copy().pop() for width in widths)


def prune_pair(
    pair: GatePair, moments: GateMoments, settings: tuple[Setting, Setting], criterion: Criterion
) -> list[LayerReport]:
    """Prune both matrices of a recurrent layer in place, and refit the rest and the biases.

    Args:
        pair: the layers ih and hh.
        moments: of [x; h].
        settings: of ih and hh: the columns that each keeps, or one granularity that `can_join`,
            whose groups compete for the sum of what the two would keep.
        criterion: with its options; obs, unless the columns are given.

    Returns:
        A row for each of the two layers.
    """
    started = time.perf_counter()
    weight, biases = joint_weights(pair.layers)
    widths = [layer.shape[1] for layer in pair.layers]
    linears: list[Any] = [layer.linear for layer in pair.layers]
    granularity = settings[0].granularity
    span = 1 if granularity.fixed_sparsity is not None else granularity.span(widths[0])
    costs = GateCosts(weight, biases, moments, span)
    keep = weight != 0
    if isinstance(criterion, OBS) and not isinstance(granularity, KeptColumns):
        keep = _chosen(pair, costs, keep, settings, criterion)
    else:
        parts = zip(settings, weight.split(widths, 1), strict=True)
        columns = [setting.granularity.mask(part, 0) for setting, part in parts]
        keep &= torch.cat(columns, 1)
    fitted, new_biases = costs.fit_with_biases(keep)
    before = costs.error(weight * keep, biases)
    after = costs.error(fitted, new_biases)
    seconds = time.perf_counter() - started
    rows = []
    for i, (layer, values) in enumerate(zip(pair.layers, fitted.split(widths, 1), strict=True)):
        write_parameter(layer.weight, values, layer.name)
        if biases.shape[1]:
            write_parameter(linears[i].bias, new_biases[:, i], layer.name)
        note = f"pruned together with {pair.layers[1 - i].name}, rows weighted by gradients"
        share = seconds * widths[i] / sum(widths)
        rows.append(layer_report(layer, granularity, before, after, share, note))
    return rows


def _chosen(
    pair: GatePair,
    costs: GateCosts,
    keep: Tensor,
    settings: tuple[Setting, Setting],
    criterion: OBS,
) -> Tensor:
    """The keep mask, bool [rows, features + units], within that of weights that are not zero."""
    granularity = settings[0].granularity
    groups = [granularity.groups(*layer.shape) for layer in pair.layers]
    removed = [
        granularity.quota(*layer.shape, setting.sparsity)
        for layer, setting in zip(pair.layers, settings, strict=True)
    ]
    sparsity = sum(removed) / sum(groups)
    # H holds for small changes only; more cuts fit it too closely.
    criterion = replace(criterion, ratio=criterion.ratio or RATIO)
    _, chosen = next(criterion.trace_costs(costs, keep, granularity, [sparsity]))
    return chosen
