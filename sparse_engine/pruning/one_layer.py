"""Prunes one layer whose statistics are known: criterion, granularity and recovery meet here."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria.base import Criterion, Inputs
from sparse_engine.pruning.criteria.magnitude import Magnitude
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.layers import Layer
from sparse_engine.pruning.recovery.least_squares import (
    Problem,
    System,
    compensate,
    refit,
    refit_bias,
)
from sparse_engine.pruning.report import LayerReport
from sparse_engine.pruning.statistics.moments import InputNorms, Moments


@dataclass(frozen=True)
class Method:
    """How layers are pruned; `recover` is whether least squares repairs them."""

    criterion: Criterion
    granularity: Granularity
    recover: bool
    generator: torch.Generator
    note: str = ""

    def given(self, statistics: Statistics) -> Method:
        """The same, or for an expert that no calibration token reaches what needs no inputs."""
        if not statistics.are_missing:
            return self
        needless = self.criterion.needs == "nothing"
        if needless and not self.recover:
            return self
        done = "not refitted" if needless else "pruned by magnitude"
        return replace(
            self,
            criterion=self.criterion if needless else Magnitude(),
            recover=False,
            note=f"no calibration token reached it: {done}",
        )


class Statistics:
    """What is known about the input that a group of layers shares."""

    def __init__(self, collected: Moments | InputNorms | None) -> None:
        self._collected = collected
        self._systems: dict[bool, System] = {}

    @property
    def are_missing(self) -> bool:
        """Whether nothing was collected."""
        return self._collected is None

    def system(self, centred: bool) -> System | None:
        """Least-squares system of the input, built once; None if only norms are known."""
        if not isinstance(self._collected, Moments):
            return None
        if centred not in self._systems:
            self._systems[centred] = System(self._collected, centred)
        return self._systems[centred]

    def inputs(self, centred: bool = False) -> Inputs:
        """What a criterion sees of it."""
        if isinstance(self._collected, InputNorms):
            return Inputs(norms=self._collected.norms())
        if system := self.system(centred):
            return Inputs(norms=system.hessian.diagonal().sqrt(), hessian=system.hessian)
        return Inputs()


def prune_layer(
    layer: Layer, statistics: Statistics, sparsity: float, method: Method
) -> LayerReport:
    """Prune a layer in place."""
    started = time.perf_counter()
    method = method.given(statistics)
    weight = layer.weight
    bias: Any = layer.linear.bias
    dense = weight.detach().to(torch.float32, copy=True)
    # Without a bias to take up the means, the means are part of what the weights have to fit.
    centred = method.recover and bias is not None
    system = statistics.system(centred)
    problem = Problem(dense, dense)
    if method.recover and system is not None:
        problem = compensate(dense, system)
    target = problem.target * (dense != 0)  # what is gone stays gone
    pruned, keep = method.criterion.prune(
        target, statistics.inputs(centred), method.granularity, sparsity, method.generator
    )
    keep &= dense != 0
    if method.recover and system is not None:
        pruned = refit(problem.rhs, system.hessian, keep)
        if bias is not None:
            shifted = refit_bias(dense, bias.float(), pruned, system.moments).to(bias.dtype)
            _check_finite(shifted, layer.name)
            bias.copy_(shifted)
    pruned = (pruned * keep).to(weight.dtype)
    _check_finite(pruned, layer.name)
    weight.copy_(pruned)
    return LayerReport(
        layer.name,
        layer.shape,
        int((weight == 0).sum()) / weight.numel(),
        system.error(dense * keep, problem.target) if system else None,
        system.error(pruned.float(), problem.target) if system else None,
        time.perf_counter() - started,
        method.note,
    )


def _check_finite(values: Tensor, layer: str) -> None:
    if not values.isfinite().all():
        raise UsageError(
            f"{layer}: pruning makes NaN or infinity in {str(values.dtype).removeprefix('torch.')} "
            "out of the statistics of its inputs; leave the layer out with filter_fn, or prune it "
            "without calibration"
        )


def score_layer(layer: Layer, statistics: Statistics, method: Method) -> Tensor:
    """The criterion's scores [out, in] of a layer as it is."""
    method = method.given(statistics)
    return method.criterion.score(layer.weight.float(), statistics.inputs(), method.generator)
