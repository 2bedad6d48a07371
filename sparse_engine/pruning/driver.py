"""The entry point: validates, runs the loop over layers, and restores the model after an error."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning.allocators import Allocator
from sparse_engine.pruning.calibration import Batch, fingerprint, merge_batches, read_calibration
from sparse_engine.pruning.coverage import add_coverage
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.cutting import (
    block_method,
    cut,
    cut_blocks,
    cut_method,
    find_layer,
    find_structures,
)
from sparse_engine.pruning.evaluation import evaluation_mode
from sparse_engine.pruning.gradients import GradientStatistics, LossFunction, check_loss, make_loss
from sparse_engine.pruning.heads import heads_of
from sparse_engine.pruning.loop import allocate, new_report, prune_layers
from sparse_engine.pruning.method import Method, check_seed
from sparse_engine.pruning.overrides import Override
from sparse_engine.pruning.plan import (
    Filter,
    NamePattern,
    Plan,
    Selection,
    make_plan,
    with_couplings,
)
from sparse_engine.pruning.progress import Progress, ProgressCallback
from sparse_engine.pruning.recipe import recipe_of, versions
from sparse_engine.pruning.recovery import Recovery
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.source import ModelSource
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.target.method import Granularities, bind, find_method, settled
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.unrolled import left_alone, unrolled


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    granularity: Granularities | None = None,
    criterion: str | Criterion | None = None,
    recovery: str | Recovery | None = None,
    calibration: Iterable[Any] | None = None,
    allocator: str | Allocator = "uniform",
    filter_fn: Filter | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    layers: Iterable[str] = (),
    ignore: Iterable[str] = (),
    overrides: Iterable[Override | Mapping[str, Any]] = (),
    loss: LossFunction | None = None,
    target: Target | None = None,
) -> PruneReport:
    """Set a fraction of the weights of a model's linear layers to zero, in place.

    The weights of recurrent networks and cells, nn.MultiheadAttention, nn.Conv1d and fused experts
    are pruned as linear layers, named as in the sparse modules: lstm.ih_l0, cell.hh,
    self_attn.q_proj, conv.linears.0 (one for each group of channels), experts.gate_up_proj.3 (of
    expert 3). Heads, routers and weights that are tied to an embedding are left alone (see
    `make_plan`); the report names them.

    All arguments and weights are checked before anything changes. If an error or an interrupt
    happens later, the weights are restored; a second copy of the pruned weights is kept for that
    time. Weights that are zero already stay zero. Weights that are computed before each call
    (masks of torch.nn.utils.prune, weight norm, spectral norm, parametrizations) become plain ones
    of the same values, as `torch.nn.utils.prune.remove` makes them.

    Args:
        model: any module.
        sparsity: fraction of groups, or of structures, to remove, 0 <= sparsity < 1; NM fixes its
            own, and with a threshold of magnitude the weights decide.
        granularity: Element(), Block(rows, cols), NM(keep, of), or "element", "4x1", "1xall",
            "2:4"; the default is "element". Or one or several structures, which are taken out, so
            that the weights become smaller: Head(), Unit(), or "head", "unit(round_to=16)". Or
            Layer(), whole layers of a Transformer. With a target several granularities are
            possible, or "auto" for those that have fast kernels on the model's device, which is
            then the default.
        criterion: "random", "magnitude", "coupled", "activation", "wanda", "sparsegpt", "obs", or a
            Criterion. Options follow a name in brackets, as "magnitude(p=1)"; so do those of
            recoveries and allocators. The default is "magnitude", with a target "obs".
        recovery: "least_squares" (alias "lsq") refits the kept weights, and the biases; "bias"
            shifts the biases alone; None or "none" leaves them as they are. With a target the
            default is "least_squares".
        calibration: model inputs, each a dict of keyword arguments, a tuple or a tensor (or a
            numpy array, or a list of numbers). Needed by all criteria but random, magnitude
            and coupled, by recoveries, owl and sensitivity; not read otherwise. Tokens whose
            attention_mask is 0 are left out.
        allocator: "uniform" (alias "local") removes the same fraction from every layer, "erk" more
            from large ones; with "lamp" (alias "global") and "raw" the groups of all layers
            compete; "owl" removes less from blocks with many outliers, "sensitivity" less from
            layers whose outputs suffer more.
        filter_fn: filter_fn(module, name) decides whether a linear layer is pruned, heads and tied
            weights included.
        seed: of the random numbers of the criterion.
        progress: called with (done, total, name) after every layer. While the model runs on
            calibration inputs it is called at most twice a second, with what is being read
            instead of the name.
        layers: patterns of the layers to prune, heads and tied weights included: dotted names
            ("encoder.layer.0" is all below it), globs over whole names ("*.query"), or "re:" and a
            regular expression. Without any, the rules of `make_plan` decide.
        ignore: patterns of layers that are left in any case.
        overrides: layers with a sparsity, granularity or criterion of their own, each a mapping
            such as {"match": "*.query", "sparsity": 0.5}; the first that matches counts.
        loss: loss(model, item) returns a scalar for a calibration item; taylor, snip and fisher
            take its gradients, other criteria do not call it. Items may then hold more than the
            model reads, such as targets: other names, or positional arguments at the end. None is
            the model's own loss where the items hold labels, and otherwise the distance to the
            outputs of the dense model (see docs/pruning.md).
        target: instead of a sparsity, what the converted model may cost, such as
            `Target(speedup=3.0)`: granularity and sparsity are then chosen for each layer.

    Returns:
        What was pruned, and what was left alone and why.

    Raises:
        UsageError: if an argument, the model or a calibration input cannot be used.

    Example:
        report = se.prune(
            model, 0.9, "4x1", "sparsegpt", recovery="least_squares", calibration=batches
        )
        print(report)
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is {model!r:.80}; give a torch.nn.Module")
    if structures := find_structures(granularity):
        if layer := find_layer(structures):
            unused = {"target": target, "overrides": list(overrides), "loss": loss}
            for name, given in (unused | {"filter_fn": filter_fn}).items():
                if given:
                    raise UsageError(f"structure layer reads no {name}: leave it out")
            how = block_method(
                layer, sparsity, criterion, recovery, allocator, calibration is not None
            )
            check_seed(seed)
            blocks = Selection.of(layers, ignore)
            return cut_blocks(model, how, calibration, blocks, seed, progress)
        removed = cut_method(
            structures, sparsity, criterion, recovery, allocator, calibration is not None, overrides
        )
        if target is not None:
            raise UsageError("a target chooses zeros, no structures: give a sparsity for them")
        check_seed(seed)
        check_loss(loss)
        chosen = Selection.of(layers, ignore)
        _check_choice(filter_fn, chosen)
        return cut(model, removed, calibration, chosen, seed, loss, progress, filter_fn)
    method = find_method(
        target,
        sparsity,
        granularity,
        criterion,
        recovery,
        allocator,
        calibration is not None,
        overrides,
    )
    selection = replace(Selection.of(layers, ignore), granularities=method.granularities)
    _check_choice(filter_fn, selection)
    check_seed(seed)
    check_loss(loss)
    check_readable(model)
    fold_(model)
    # Measurements convert copies of the model as it is before it is unrolled.
    copied = None if target is None else copy.deepcopy(model).eval()
    not_unrolled = left_alone(model)
    with unrolled(model):
        plan = make_plan(model, filter_fn, method.granularity, selection)
        if method.needs_coupling:
            plan = with_couplings(plan, model)
        batches: list[Batch] = []
        if calibration is not None and method.needs:
            batches = read_calibration(model, calibration, loss is not None)
        if copied is not None:
            method = bind(method, copied, batches, seed, progress)
        report = _prune(model, method, plan, batches, loss, seed, progress)
        report.calibration = fingerprint(batches) if batches else {}
    if filter_fn is not None:  # a recipe holds the names that it chose
        names = (layer.name for layer in plan.layers)
        selection = replace(selection, layers=tuple(map(NamePattern.exactly, names)))
    if target is not None:  # a recipe holds what was chosen
        method = settled(method)
    report.recipe, report.versions = recipe_of(method, seed, selection), versions()
    add_coverage(report, model, plan.left | not_unrolled)
    report.heads = heads_of(model)
    return report


def _check_choice(filter_fn: Filter | None, selection: Selection) -> None:
    if filter_fn is not None and selection.layers:
        raise UsageError("filter_fn and layers both choose what is pruned: give one of them")


def _prune(
    model: nn.Module,
    method: Method,
    plan: Plan,
    batches: list[Batch],
    loss: LossFunction | None,
    seed: int,
    progress_callback: ProgressCallback | None,
) -> PruneReport:
    """Prune all layers of a plan; after an error the weights are restored."""
    started = time.perf_counter()
    report = new_report(method)
    dense = DenseWeights(plan.layers)
    with evaluation_mode(model), torch.no_grad():
        progress = Progress(progress_callback, len(plan.layers))
        gradients = None
        if method.needs_gradients:
            gradients = GradientStatistics(
                model, plan.layers, batches, dense, make_loss(loss, batches), method, seed, progress
            )
        progress.working("grouping calibration batches")
        batches = merge_batches(model, batches)
        source = ModelSource(model, plan, batches, dense, progress, gradients)
        try:
            settings = allocate(source, method, seed)
            prune_layers(source, settings, method, seed, report, progress)
            method.allocator.finish(plan.layers, report)
        except BaseException:
            dense.restore()
            raise
    report.seconds = time.perf_counter() - started
    return report
