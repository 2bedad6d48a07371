"""Setting weights to zero: one step of `prune`, on a model whose arguments were validated."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from sparse_engine.pruning.calibration import merge_batches
from sparse_engine.pruning.coverage import add_coverage
from sparse_engine.pruning.evaluation import evaluation_mode
from sparse_engine.pruning.gradients import GradientStatistics, make_loss
from sparse_engine.pruning.heads import heads_of
from sparse_engine.pruning.loop import allocate, new_report, prune_layers
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.plan import (
    Filter,
    NamePattern,
    Plan,
    Selection,
    make_plan,
    with_couplings,
)
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.recipe import recipe_of
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.run import Run
from sparse_engine.pruning.source import ModelSource
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.target.allocator import ByTarget
from sparse_engine.pruning.target.method import bind, settled
from sparse_engine.pruning.unrolled import left_alone, unrolled


def plan_of(
    model: nn.Module, method: Method, selection: Selection, filter_fn: Filter | None
) -> Plan:
    """The layers of an unrolled model that a run of `set_zeros` prunes.

    Raises:
        UsageError: if there are none, or a pattern matches none.
    """
    chosen = replace(selection, granularities=method.granularities)
    return make_plan(model, filter_fn, method.granularity, chosen)


def set_zeros(
    model: nn.Module,
    method: Method,
    selection: Selection,
    filter_fn: Filter | None,
    seed: int,
    run: Run,
) -> PruneReport:
    """Set weights of linear layers to zero, in place.

    Args:
        model: with plain weights.
        method: how it is pruned.
        selection: which layers take part.
        filter_fn: as `prune` takes it.
        seed: of the random numbers of the criterion.
        run: calibration inputs, and what else the steps share.

    Raises:
        UsageError: if there is no layer to prune, or the calibration inputs cannot be used.
    """
    started = time.perf_counter()
    method = _measuring(model, method, seed, run)
    report = new_report(method)
    not_unrolled = left_alone(model)
    with _opened(model, method, selection, filter_fn, seed, run) as (plan, source, progress):
        settings = allocate(source, method, seed)
        prune_layers(source, settings, method, seed, report, progress)
        method.allocator.finish(plan.layers, report)
    if filter_fn is not None:  # a recipe holds the names that it chose
        names = (layer.name for layer in plan.layers)
        selection = replace(selection, layers=tuple(map(NamePattern.exactly, names)))
    if isinstance(method.allocator, ByTarget):  # a recipe holds what was chosen
        method = settled(method)
    report.recipe = recipe_of(method, seed, selection)
    add_coverage(report, model, plan.left | not_unrolled)
    report.heads = heads_of(model)
    report.seconds = time.perf_counter() - started
    return report


def choose_zeros(
    model: nn.Module,
    method: Method,
    selection: Selection,
    filter_fn: Filter | None,
    seed: int,
    run: Run,
) -> Method:
    """The method of a target with what it chooses for a model, which does not change.

    `set_zeros` then prunes a model of the same shapes without choosing again.

    Args:
        model, method, selection, filter_fn, seed, run: as `set_zeros` takes them.

    Raises:
        UsageError: as `set_zeros` does.
    """
    method = _measuring(model, method, seed, run)
    with _opened(model, method, selection, filter_fn, seed, run) as (_, source, _):
        allocate(source, method, seed)
    return method


def _measuring(model: nn.Module, method: Method, seed: int, run: Run) -> Method:
    """A method that can measure, if it has a target."""
    if not isinstance(method.allocator, ByTarget) or method.allocator.is_bound:
        return method
    # Measurements convert copies of the model as it is before it is unrolled.
    copied = copy.deepcopy(model).eval()
    return bind(method, copied, run.dense or copied, run.batches, seed, run.progress)


@contextmanager
def _opened(
    model: nn.Module,
    method: Method,
    selection: Selection,
    filter_fn: Filter | None,
    seed: int,
    run: Run,
) -> Iterator[tuple[Plan, ModelSource, Progress]]:
    """Inside of a `with` block, a model is unrolled, and its layers can be read and pruned."""
    with unrolled(model):
        plan = plan_of(model, method, selection, filter_fn)
        if method.needs_coupling:
            plan = with_couplings(plan, model)
        dense = DenseWeights(plan.layers)
        run.snapshot.keep(dense)
        with evaluation_mode(model), torch.no_grad():
            progress = Progress(run.progress, len(plan.layers))
            gradients = None
            if method.needs_gradients:
                gradients = GradientStatistics(
                    model,
                    plan.layers,
                    run.batches,
                    dense,
                    make_loss(run.loss, run.batches),
                    method,
                    seed,
                    progress,
                )
            progress.working("grouping calibration batches")
            batches = merge_batches(model, run.batches)
            yield (
                plan,
                ModelSource(model, plan, batches, dense, progress, gradients, run.dense),
                progress,
            )
