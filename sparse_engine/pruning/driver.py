"""Prunes a model: the only loop over layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning.allocate import by_one_threshold
from sparse_engine.pruning.calibration import Batch, read_calibration
from sparse_engine.pruning.criteria import find_criterion
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.granularity import Granularity, Tiles, parse_granularity
from sparse_engine.pruning.layers import Filter, Layer, Plan, make_plan
from sparse_engine.pruning.merge import merge
from sparse_engine.pruning.one_layer import Method, Statistics, prune_layer, score_layer
from sparse_engine.pruning.progress import Steps
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.unrolled import left_alone, unrolled
from sparse_engine.pruning.walk import Need, Originals, Walk


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    granularity: str | Granularity = "element",
    criterion: str | Criterion = "magnitude",
    recovery: str | None = None,
    calibration: Iterable[Any] | None = None,
    scope: str = "local",
    filter_fn: Filter | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> PruneReport:
    """Set a fraction of the weights of a model's linear layers to zero, in place.

    model:        any nn.Module; its linear layers are pruned, and as such the weights of recurrent
                  networks and cells, nn.MultiheadAttention, nn.Conv1d and fused experts, named as in
                  the sparse twins: lstm.ih_l0, cell.hh, self_attn.q_proj, conv.linears.0 (one for
                  each group of channels), experts.gate_up_proj.3 (of expert 3). Heads,
                  routers and what is tied to an embedding are left alone (see `make_plan`); the report
                  names them
    sparsity:     fraction of groups to prune, 0 <= sparsity < 1; with NM the pattern says it
    granularity:  Element(), Block(rows, cols), NM(keep, of), or "element", "4x1", "2:4"
    criterion:    "random", "magnitude", "wanda", "sparsegpt", or a Criterion
    recovery:     "lsq" refits what is kept, and the biases, by compensated least squares
    calibration:  model inputs, each a dict of keyword arguments, a tuple or a tensor (or numpy array,
                  or list of numbers); needed by wanda, sparsegpt and lsq, else not read. Tokens
                  whose attention_mask is 0 are left out
    scope:        "local": every layer loses the same fraction; "global": layers compete
    filter_fn:    filter_fn(module, name) says whether to prune a linear layer, heads and tied weights
                  too
    progress:     called with (done, total, name) after every layer, and twice a second, while the
                  model is run on calibration inputs, with what is being read in place of the name

    All arguments and weights are checked before anything changes; if anything fails later on, or
    is interrupted, the weights are put back. A second copy of the pruned weights is held
    meanwhile. Weights that are zero already stay zero. Weights that are computed before each call
    (masks of torch.nn.utils.prune, weight norm, spectral norm, parametrizations) become plain ones
    of the same values, as `prune.remove` makes them.

    Raises UsageError.

        report = se.prune(model, 0.9, "4x1", "sparsegpt", recovery="lsq", calibration=batches)
        print(report)
    """
    check_readable(model)
    fold_(model)
    unopened = left_alone(model)
    with unrolled(model) as opened:
        report, left = _prune(
            opened,
            sparsity,
            granularity,
            criterion,
            recovery,
            calibration,
            scope,
            filter_fn,
            seed,
            progress,
        )
    report.count(model, left | unopened)
    return report


def _prune(
    model: nn.Module,
    sparsity: float | None,
    granularity: str | Granularity,
    criterion: str | Criterion,
    recovery: str | None,
    calibration: Iterable[Any] | None,
    scope: str,
    filter_fn: Filter | None,
    seed: int,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[PruneReport, dict[str, str]]:
    started = time.perf_counter()
    granularity, criterion = parse_granularity(granularity), find_criterion(criterion)
    sparsity = _check_sparsity(sparsity, granularity)
    _check_choices(criterion, recovery, scope, granularity, calibration)
    plan = make_plan(model, filter_fn, granularity)
    hessian = recovery is not None or criterion.needs == "hessian"
    batches: list[Batch] = []
    if calibration is not None and (hessian or criterion.needs == "norms"):
        batches = read_calibration(model, calibration)
    method = Method(criterion, granularity, recovery is not None, torch.Generator())
    report = PruneReport(str(granularity), criterion.name, recovery, scope)
    originals = Originals(plan.layers)
    with _quiet(model), torch.no_grad():
        steps = Steps(progress, len(plan.layers))
        steps.working("grouping calibration batches")
        batches = merge(model, batches)
        amounts = {layer.name: sparsity for layer in plan.layers}
        if scope == "global":
            method.generator.manual_seed(seed)
            need = Need(criterion.needs == "hessian", both_paths=False)
            groups = _groups(model, plan, batches, originals, need, steps)
            amounts = _compete(groups, method, sparsity)
        method.generator.manual_seed(seed)
        need = Need(hessian, both_paths=recovery is not None)
        try:
            for layers, statistics in _groups(model, plan, batches, originals, need, steps):
                if batches and statistics.are_missing:
                    report.unseen += [layer.name for layer in layers]
                for layer in layers:
                    row = prune_layer(layer, statistics, amounts[layer.name], method)
                    report.layers.append(row)
                    steps.finished(layer.name)
        except BaseException:
            originals.restore()
            raise
    report.seconds = time.perf_counter() - started
    return report, plan.left


Groups = Iterator[tuple[list[Layer], Statistics]]


def _groups(
    model: nn.Module,
    plan: Plan,
    batches: list[Batch],
    originals: Originals,
    need: Need,
    steps: Steps,
) -> Groups:
    """Layers that share an input, with its statistics if there is anything to take them from."""
    if not batches:
        for layer in plan.layers:
            yield [layer], Statistics(None)
        return
    for group, collected in Walk(model, plan, batches, originals, need, steps).groups():
        yield group.layers, Statistics(collected)


def _compete(groups: Groups, method: Method, sparsity: float) -> dict[str, float]:
    """Sparsity of each layer if all layers' scores in the dense model compete."""
    assert isinstance(method.granularity, Tiles)
    scores = {
        layer.name: method.granularity.group_scores(score_layer(layer, statistics, method))
        for layers, statistics in groups
        for layer in layers
    }
    return by_one_threshold(scores, sparsity)


def _check_sparsity(sparsity: float | None, granularity: Granularity) -> float:
    fixed = granularity.fixed_sparsity
    if fixed is None:
        if sparsity is None:
            raise UsageError("no sparsity given; give a fraction of zeros such as 0.9")
        if not 0 <= sparsity < 1:
            raise UsageError(
                f"sparsity {sparsity} is not a fraction of zeros; expected 0 <= sparsity < 1"
            )
        return sparsity
    if sparsity is not None and abs(sparsity - fixed) > 1e-6:
        raise UsageError(
            f"sparsity {sparsity} does not fit {granularity}, which has {fixed:g}; leave it out"
        )
    return fixed


def _check_choices(
    criterion: Criterion,
    recovery: str | None,
    scope: str,
    granularity: Granularity,
    calibration: Iterable[Any] | None,
) -> None:
    if recovery not in (None, "lsq"):
        raise UsageError(f"recovery {recovery!r} is not known; choose 'lsq' or None")
    if scope not in ("local", "global"):
        raise UsageError(f"scope {scope!r} is not known; choose 'local' or 'global'")
    if scope == "global" and not isinstance(granularity, Tiles):
        raise UsageError(f"scope 'global' has nothing to share out: {granularity} fixes every row")
    needing = criterion.name if criterion.needs != "nothing" else recovery
    if needing and calibration is None:
        raise UsageError(
            f"{needing} needs calibration inputs; pass calibration=, an iterable of model inputs "
            "(dicts of keyword arguments, tuples or tensors)"
        )


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no key-value cache, which repeated runs of a block would make grow."""
    training = [module for module in model.modules() if module.training]
    # Decoders inside a model have configs of their own.
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    caching = [config for config in configs if getattr(config, "use_cache", None)]
    try:
        model.eval()
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for module in training:
            module.training = True
        for config in caching:
            config.use_cache = True
