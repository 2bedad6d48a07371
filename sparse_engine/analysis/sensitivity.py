"""sensitivity: prunes one layer at a time, and all together, and measures what becomes of a metric.

As in Han et al. 2015, arXiv:1506.02626, figure 6, for any criterion, granularity and recovery.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sparse_engine.analysis.call_timer import CallTimer
from sparse_engine.analysis.output_metric import OutputMetric
from sparse_engine.analysis.report import SensitivityReport
from sparse_engine.analysis.trial import Trial
from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning import Granularity, parse_granularity, prune
from sparse_engine.pruning.calibration import check_iterable, read_calibration
from sparse_engine.pruning.criteria import find_criterion
from sparse_engine.pruning.gradients import LossFunction
from sparse_engine.pruning.method import make_method
from sparse_engine.pruning.plan import Filter, make_plan
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.pruning.unrolled import unrolled

Metric = Callable[[nn.Module], float]
Setting = tuple[Granularity, float | None]
BY = ("layer", "model")


def sensitivity(
    model: nn.Module,
    metric: Metric | None = None,
    sparsities: Sequence[float] = (0.5, 0.7, 0.9),
    granularities: Sequence[str | Granularity] = ("element",),
    *,
    higher_is_better: bool = True,
    calibration: Iterable[Any] | None = None,
    criterion: Any = "magnitude",
    recovery: Any = None,
    loss: LossFunction | None = None,
    by: Sequence[str] = BY,
    tokens: int | None = None,
    filter_fn: Filter | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> SensitivityReport:
    """Measure a metric of a model after pruning one layer, or all layers, in many ways.

    For each granularity and sparsity, each layer that `prune` would prune is pruned alone while the
    others stay dense, and then all of them together. The model is as before afterwards, also after
    an error or an interrupt; for that time a second copy of its parameters is kept. Weights that
    are computed before each call become plain ones, as `prune` makes them.

    Args:
        model: any module.
        metric: metric(model) gives a number, such as the accuracy on a test set. By default
            outputs are compared with those of the dense model on the calibration inputs: the KL
            divergence of logits, or the cosine of hidden states (see `OutputMetric`).
        sparsities: fractions of groups to remove, 0 <= sparsity < 1. A granularity that fixes its
            sparsity, such as "2:4", is tried once, and so is a criterion that decides it.
        granularities: as in `prune`.
        higher_is_better: whether a larger value of `metric` is better; not read without one.
        calibration: model inputs, as in `prune`. Needed by the default metric, and by the criteria
            and recoveries that need them in `prune`.
        criterion: as in `prune`.
        recovery: as in `prune`.
        loss: as in `prune`.
        by: "layer" for one layer at a time, "model" for all together, or both.
        tokens: also time a call of so many tokens after all layers are pruned together: a copy of
            the model is made for `sparsify_`, and timed in turn with dense torch. A model that
            does not read token ids needs calibration inputs for it.
        filter_fn: as in `prune`.
        seed: of the random numbers of the criterion.
        progress: called with (done, total, name) after every trial.

    Returns:
        A row for each trial, which can be shown as a table, a page or pictures.

    Raises:
        UsageError: if an argument cannot be used, or the metric gives no number.

    Example:
        report = se.sensitivity(model, accuracy, (0.5, 0.7, 0.9), ("element", "4x1"))
        print(report)
        report.to_html("sensitivity.html")
    """
    started = time.perf_counter()
    if calibration is not None:
        check_iterable(calibration)
    inputs = None if calibration is None else list(calibration)
    settings = check_settings(
        sparsities, granularities, criterion, recovery, by, inputs is not None
    )
    check_readable(model)
    fold_(model)
    layers = _layers(model, filter_fn, settings)
    batches = [] if inputs is None else read_calibration(model, inputs)
    if metric is None:
        if inputs is None:
            raise UsageError("give metric=, a function of the model, or calibration= inputs")
        default = OutputMetric(model, batches)
        metric, higher_is_better = default, default.kind.higher_is_better
    if tokens is not None and "model" not in by:
        raise UsageError("tokens times calls with all layers pruned: add 'model' to by")
    timer = None if tokens is None else CallTimer(model, tokens, batches)
    report = SensitivityReport(
        metric=metric.kind.name if isinstance(metric, OutputMetric) else _name_of(metric),
        higher_is_better=higher_is_better,
        dense=_dense_value(metric, model),
        criterion=str(criterion),
        recovery=None if recovery is None else str(recovery),
        timed_on="" if timer is None else timer.conditions,
    )
    trials: list[tuple[str, Granularity, float | None]] = []
    if "layer" in by:
        trials += [(name, *s) for name, fit in layers.items() for s in settings if str(s[0]) in fit]
    if "model" in by:
        trials += [("", *s) for s in settings]
    with _restored(model) as restore:
        for done, (layer, granularity, sparsity) in enumerate(trials, 1):
            chosen = _only(layer) if layer else filter_fn
            pruned = prune(
                model,
                sparsity,
                granularity,
                criterion,
                recovery,
                inputs,
                filter_fn=chosen,
                loss=loss,
                seed=seed,
            )
            value = _number(metric(model))
            times = timer(model) if timer is not None and not layer else None
            report.trials.append(
                Trial(
                    layer,
                    str(granularity),
                    granularity.fixed_sparsity if sparsity is None else sparsity,
                    pruned.sparsity,
                    value if math.isfinite(value) else None,
                    times.ms if times else None,
                    times.dense_ms if times else None,
                )
            )
            restore()
            if progress is not None:
                progress(done, len(trials), layer or "all layers")
    report.seconds = time.perf_counter() - started
    return report


def check_settings(
    sparsities: Sequence[float],
    granularities: Sequence[str | Granularity],
    criterion: Any,
    recovery: Any,
    by: Sequence[str],
    has_inputs: bool,
) -> list[Setting]:
    """Granularities with the sparsities that are tried; None where the pattern fixes its own.

    Raises:
        UsageError: if an argument is unknown or out of range, or does not fit another one.
    """
    if isinstance(granularities, str | Granularity) or not granularities:
        raise UsageError("granularities is a list of them, as ['element', '4x1']")
    if isinstance(sparsities, str | float | int):
        raise UsageError("sparsities is a list of fractions, as [0.5, 0.7, 0.9]")
    if isinstance(by, str) or not by or not set(by) <= set(BY):
        raise UsageError(f"by is {by!r}: give a list of 'layer', 'model' or both")
    decides = find_criterion(criterion).decides_sparsity
    settings: list[Setting] = []
    for one in granularities:
        granularity = parse_granularity(one)
        fixed = granularity.fixed_sparsity is not None or decides
        settings += [(granularity, s) for s in ([None] if fixed else sorted(set(sparsities)))]
    if not settings:
        raise UsageError("there are no sparsities to try; give fractions such as 0.5, 0.9")
    for granularity, sparsity in settings:
        make_method(sparsity, granularity, criterion, recovery, "uniform", has_inputs)
    return settings


def _layers(
    model: nn.Module, filter_fn: Filter | None, settings: list[Setting]
) -> dict[str, set[str]]:
    """The layers that are pruned, in the order of the model, with the granularities that fit."""
    fitting: dict[str, set[str]] = {}
    with unrolled(model):
        for granularity in {str(granularity): granularity for granularity, _ in settings}.values():
            for layer in make_plan(model, filter_fn, granularity).layers:
                fitting.setdefault(layer.name, set()).add(str(granularity))
    return fitting


def _only(layer: str) -> Filter:
    return lambda module, name: name == layer


@contextmanager
def _restored(model: nn.Module) -> Iterator[Callable[[], None]]:
    """A function that writes the parameters back as they were; called at the end in any case."""
    saved = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]

    def restore() -> None:
        with torch.no_grad():
            for parameter, values in saved:
                parameter.data.copy_(values)

    try:
        yield restore
    finally:
        restore()


def _dense_value(metric: Metric, model: nn.Module) -> float:
    value = _number(metric(model))
    if not math.isfinite(value):
        raise UsageError(f"the metric of the dense model is {value}; it has to be a finite number")
    return value


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"metric(model) gives a {type(value).__name__}; it has to give a number"
        ) from None


def _name_of(metric: Metric) -> str:
    name = getattr(metric, "__name__", type(metric).__name__)
    return "metric" if name == "<lambda>" else name.replace("_", " ")
