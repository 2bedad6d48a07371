"""Prunes one layer whose statistics are known: criterion, granularity and recovery together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import Candidate, Setting
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.layer_report import LayerReport
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.recovery.base import PrunedLayer
from sparse_engine.pruning.statistics.input_statistics import InputStatistics
from sparse_engine.reporting.density_map import DensityMap


def prune_layer(
    layer: Layer, statistics: InputStatistics, setting: Setting, method: Method
) -> LayerReport:
    """Prune a layer in place.

    Args:
        layer: the layer; its weight and bias are overwritten.
        statistics: of its input, and its gradients.
        setting: its granularity, and the fraction of its groups to remove.
        method: criterion and recovery.

    Raises:
        UsageError: if a score is NaN, or a new weight or bias is not finite.
    """
    started = time.perf_counter()
    if statistics.are_missing:
        method = method.without_statistics()
    weight = layer.weight
    bias: Any = layer.linear.bias
    dense = weight.detach().to(dtype=torch.float32, copy=True)
    has_bias = bias is not None
    centred = method.recovery.centres(has_bias)
    system = statistics.system(centred)
    problem = method.recovery.problem(dense, system)
    nonzero = dense != 0  # weights that are zero already stay zero
    inputs = statistics.inputs(layer, centred)
    pruned, keep = method.criterion.prune(
        problem.target * nonzero,
        inputs,
        setting.granularity,
        setting.sparsity,
        method.generator,
    )
    keep &= nonzero
    pruned_layer = PrunedLayer(
        dense,
        None if bias is None else bias.float(),
        pruned,
        keep,
        # With zeros already there, the criterion saw another target than that of the recovery.
        is_fitted=method.criterion.fits and bool(nonzero.all()),
    )
    repaired, new_bias = method.recovery.repair(pruned_layer, problem, system)
    if new_bias is not None:
        write_parameter(bias, new_bias, layer.name)
    write_parameter(weight, repaired * keep, layer.name)
    notes = (method.criterion.note(inputs), method.recovery.note(has_bias), setting.warning)
    return layer_report(
        layer,
        setting.granularity,
        system.error(dense * keep, problem.target) if system else None,
        system.error(weight.float(), problem.target) if system else None,
        time.perf_counter() - started,
        method.note,
        "; ".join(filter(None, notes)),
    )


def layer_report(
    layer: Layer,
    granularity: Granularity,
    error_before: float | None,
    error_after: float | None,
    seconds: float,
    note: str,
    warning: str = "",
) -> LayerReport:
    """The row of a layer that has been pruned; its other fields are read from the weight."""
    kept = layer.weight != 0
    return LayerReport(
        layer.name,
        layer.shape,
        str(granularity),
        int((~kept).sum()) / kept.numel(),
        error_before,
        error_after,
        seconds,
        note,
        int(kept.any(1).sum()),
        int(kept.any(0).sum()),
        DensityMap.of(kept.cpu().numpy()),
        warning=warning,
    )


def trace_layer(
    layer: Layer,
    statistics: InputStatistics,
    granularity: Granularity,
    sparsities: Sequence[float],
    method: Method,
) -> Iterator[Candidate]:
    """What pruning a layer of the dense model to several sparsities gives; it does not change.

    Args:
        layer: the layer.
        statistics: of its input in the dense model.
        granularity: which weights are removed together.
        sparsities: fractions of groups to remove, ascending.
        method: criterion and recovery.
    """
    if statistics.are_missing:
        method = method.without_statistics()
    bias: Any = layer.linear.bias
    bias = None if bias is None else bias.float()
    dense = layer.weight.detach().to(dtype=torch.float32, copy=True)
    centred = method.recovery.centres(has_bias=bias is not None)
    system = statistics.system(centred)
    problem = method.recovery.problem(dense, system)
    nonzero = dense != 0
    traced = method.criterion.trace(
        dense, statistics.inputs(layer, centred), granularity, sparsities, method.generator
    )
    for sparsity, (pruned, keep) in zip(sparsities, traced, strict=True):
        keep = keep & nonzero
        fitted = method.criterion.fits and bool(nonzero.all())
        pruned_layer = PrunedLayer(dense, bias, pruned, keep, is_fitted=fitted)
        weight, new_bias = method.recovery.repair(pruned_layer, problem, system)
        weight = weight * keep
        if system:
            error = system.error(weight, dense)
        else:
            error = float((weight - dense).norm() / dense.norm().clamp_min(1e-30))
        yield Candidate(Setting(granularity, sparsity), weight, new_bias, error)


def score_layer(layer: Layer, statistics: InputStatistics, method: Method) -> Tensor:
    """The scores [out, in] of a layer as it is."""
    if statistics.are_missing:
        method = method.without_statistics()
    return method.criterion.element_scores(
        layer.weight.float(), statistics.inputs(layer), method.granularity, method.generator
    )


def write_parameter(parameter: Tensor, values: Tensor, layer: str) -> None:
    """Overwrite a parameter with values of its dtype, which must be finite."""
    values = values.to(parameter.dtype)
    if not values.isfinite().all():
        raise UsageError(
            f"{layer}: pruning makes NaN or infinity in {str(values.dtype).removeprefix('torch.')} "
            "out of the statistics of its inputs; leave the layer out with filter_fn, or prune it "
            "without calibration"
        )
    parameter.copy_(values)
