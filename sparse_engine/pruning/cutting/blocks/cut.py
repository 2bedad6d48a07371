"""Removes whole blocks of stacks, and refits the layers that remain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from sparse_engine.convert.census import census
from sparse_engine.errors import UsageError
from sparse_engine.nn import SparseLinear
from sparse_engine.pruning.allocators import Setting
from sparse_engine.pruning.calibration import Batch, merge_batches
from sparse_engine.pruning.coverage import add_block_coverage
from sparse_engine.pruning.cutting.blocks.choose import Quota, choose, quota
from sparse_engine.pruning.cutting.blocks.criteria import DenseBlocks
from sparse_engine.pruning.cutting.blocks.method import BlockMethod
from sparse_engine.pruning.evaluation import evaluation_mode
from sparse_engine.pruning.loop import prune_layers
from sparse_engine.pruning.plan import Plan, Selection, check_finite, make_plan
from sparse_engine.pruning.progress import Progress, ProgressCallback
from sparse_engine.pruning.recipe import recipe_of
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.run import Run
from sparse_engine.pruning.site_report import SiteReport
from sparse_engine.pruning.source import ModelSource
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.unrolled import unrolled
from sparse_engine.structures import Stack, check_removable, find_stacks, remove_blocks_


def cut_blocks(
    model: nn.Module,
    method: BlockMethod,
    selection: Selection,
    seed: int,
    run: Run,
) -> PruneReport:
    """Remove blocks of a model's stacks in place.

    The blocks are chosen in the dense model. Then the layers behind the first of them are refitted
    to what they compute in the dense model, and at last the blocks are taken out.

    Args:
        model: with plain weights.
        method: what is removed, and how.
        selection: which blocks may go, by their names.
        seed: of the random numbers of the criterion.
        run: calibration inputs, and what else the steps share.

    Raises:
        UsageError: if there is no block that can be removed.
    """
    started = time.perf_counter()
    stacks = find_stacks(model)
    wanted = wanted_blocks(model, method, selection)
    before, counted = _parameters(model), census(model)
    report = _report(method)
    with unrolled(model), evaluation_mode(model), torch.no_grad():
        merged = merge_batches(model, run.batches)
        removed = _chosen(model, wanted, method, merged, seed, run.progress)
        if method.repairs:
            _repair(model, stacks, removed, method, merged, seed, report, run)
    cut = [item.stack for item in wanted.stacks]
    kept = {stack.name: _kept(stack, removed) for stack in cut}
    remove_blocks_(model, kept, cut)
    report.sites = [
        SiteReport(
            stack.name,
            method.structure.name,
            len(stack.blocks),
            kept[stack.name],
            warning=_UNREPAIRED if _ends_unrepaired(stack, stacks, removed, method) else "",
        )
        for stack in cut
    ]
    report.parameters = (before, _parameters(model))
    blocks = [block for stack in cut for block in stack.blocks]
    add_block_coverage(report, model, counted, blocks)
    report.recipe = recipe_of(method, seed, selection)
    report.seconds = time.perf_counter() - started
    return report


def wanted_blocks(model: nn.Module, method: BlockMethod, selection: Selection) -> Quota:
    """How many blocks of a model go, and which may.

    Raises:
        UsageError: if there is no block that can be removed.
    """
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise UsageError("this model is sparse already: densify_ it to remove layers")
    stacks = find_stacks(model)
    if not stacks:
        raise UsageError(
            f"there is no layer to remove in this model: no stack of a {type(model).__name__} "
            "is known"
        )
    wanted = quota(stacks, method, selection, [name for name, _ in model.named_modules()])
    check_removable(model, [item.stack for item in wanted.stacks])
    for item in wanted.stacks:
        for name, weight in model.get_submodule(item.stack.name).named_parameters():
            check_finite(f"{item.stack.name}.{name}", weight)
    return wanted


def _chosen(
    model: nn.Module,
    wanted: Quota,
    method: BlockMethod,
    batches: list[Batch],
    seed: int,
    progress: ProgressCallback | None,
) -> list[str]:
    """The names of the blocks that go."""
    generator = method.of_layers.generator
    generator.manual_seed(seed)
    steps = Progress(progress, wanted.total)
    blocks = {block: model.get_submodule(block) for i in wanted.stacks for block in i.blocks}
    dense = DenseBlocks(model, blocks, batches, generator, steps.working)
    return choose(wanted, method.criterion.costs(dense), steps.finished)


def _repair(
    model: nn.Module,
    stacks: Sequence[Stack],
    removed: list[str],
    method: BlockMethod,
    batches: list[Batch],
    seed: int,
    report: PruneReport,
    run: Run,
) -> None:
    """Refit the layers behind the first removed block."""
    plan = _plan(model, stacks, removed, method)
    dense = DenseWeights(plan.layers)
    run.snapshot.keep(dense)
    steps = Progress(run.progress, len(plan.layers))
    source = ModelSource(model, plan, batches, dense, steps)
    settings = {layer.name: Setting(method.of_layers.granularity, 0.0) for layer in plan.layers}
    prune_layers(source, settings, method.of_layers, seed, report, steps)
    report.layers = []  # nothing was removed from them, and their names change


def _plan(
    model: nn.Module, stacks: Sequence[Stack], removed: Sequence[str], method: BlockMethod
) -> Plan:
    """The layers behind the first removed block."""
    behind: list[str] = []
    for stack in stacks:
        first = next((i for i, block in enumerate(stack.blocks) if block in removed), None)
        if behind:  # of an encoder, which the decoder reads
            first = 0
        if first is not None:
            # The block in front of the removed ones is fitted to what they return.
            first = max(first - method.of_layers.recovery.tunes_blocks, 0)
            behind += [block for block in stack.blocks[first:] if block not in removed]
    plan = make_plan(model)
    inside = tuple(f"{block}." for block in behind)
    layers = [layer for layer in plan.layers if layer.name.startswith(inside)]
    return replace(plan, layers=layers, removed=tuple(removed))


def _kept(stack: Stack, removed: Sequence[str]) -> tuple[int, ...]:
    return tuple(i for i, block in enumerate(stack.blocks) if block not in removed)


_UNREPAIRED = (
    "the last layers are gone, and no layer behind them can make up for it; recovery blocks fits "
    "the layer in front of them"
)


def _ends_unrepaired(
    stack: Stack, stacks: Sequence[Stack], removed: Sequence[str], method: BlockMethod
) -> bool:
    """Whether a recovery has nothing to refit behind the last removed blocks of a stack."""
    is_last = stack.name == stacks[-1].name and stack.blocks[-1] in removed
    return is_last and method.repairs and not method.of_layers.recovery.tunes_blocks


def _report(method: BlockMethod) -> PruneReport:
    recovery = str(method.of_layers.recovery) if method.repairs else None
    allocator = "raw" if method.competing else "uniform"
    return PruneReport(str(method.structure), str(method.criterion), recovery, allocator)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
