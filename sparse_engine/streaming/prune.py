"""Prunes a checkpoint that need not fit into memory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.io.companions import write_companions
from sparse_engine.io.folder import check_free
from sparse_engine.io.model_files import read_companions
from sparse_engine.io.writer import RECIPE
from sparse_engine.pruning.allocators import Allocator
from sparse_engine.pruning.calibration import Batch, fingerprint, read_calibration
from sparse_engine.pruning.coverage import add_coverage
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.evaluation import evaluation_mode
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.loop import allocate, new_report, prune_layers
from sparse_engine.pruning.method import Method, make_method
from sparse_engine.pruning.overrides import Override
from sparse_engine.pruning.plan import Plan, Selection
from sparse_engine.pruning.progress import Progress, ProgressCallback
from sparse_engine.pruning.recipe import recipe_of, versions
from sparse_engine.pruning.recovery import Recovery
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.seed import check_seed
from sparse_engine.pruning.statistics.segments import Group, Segment
from sparse_engine.streaming.checkpoint import Checkpoint
from sparse_engine.streaming.copies import Copies
from sparse_engine.streaming.counting import check_space, count_zeros
from sparse_engine.streaming.draft import open_draft
from sparse_engine.streaming.journal import DraftJournal, OnModule
from sparse_engine.streaming.plan import plan_stack
from sparse_engine.streaming.request import pruning_request
from sparse_engine.streaming.source import StreamedSource, find_modules
from sparse_engine.streaming.storage import DiskStorage
from sparse_engine.streaming.weights import Weights

STREAMED = {"norms", "hessian"}
"""Statistics that one module at a time is enough for."""
SCORING = ("lamp", "raw")
"""Allocators that keep the scores of all layers in memory."""


def prune_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    sparsity: float | None = None,
    granularity: str | Granularity = "element",
    criterion: str | Criterion = "magnitude",
    recovery: str | Recovery | None = None,
    calibration: Iterable[Any] | None = None,
    allocator: str | Allocator = "uniform",
    seed: int = 0,
    progress: ProgressCallback | None = None,
    on_module: OnModule | None = None,
    layers: Iterable[str] = (),
    ignore: Iterable[str] = (),
    overrides: Iterable[Override | Mapping[str, Any]] = (),
    recipe: Mapping[str, Any] | None = None,
) -> PruneReport:
    """Write a pruned copy of a checkpoint, with one module of its stack in memory at a time.

    The arguments and the result are those of `se.prune` followed by `save_checkpoint`, with these
    differences: only the layers of the stack are pruned; names, dtypes and shards of the files stay
    as they are; calibration batches run as they are given, without being merged.

    The copy is written to OUT.unfinished and renamed at the end. After an interrupt or a crash the
    same call continues after the last finished module, and writes the same bytes.

    Args:
        checkpoint: as `open_checkpoint` returns it.
        out: the folder to write; must not exist.
        sparsity: as for `prune`; so are the other arguments up to `progress`.
        granularity: which weights are removed together.
        criterion: which weights are removed first.
        recovery: how kept weights change.
        calibration: model inputs; small batches take less memory.
        allocator: how much is removed from each layer.
        seed: of the random numbers of the criterion.
        progress: called with (done, total, name) after every layer.
        on_module: called with (done, total, seconds) after every module of the stack.
        layers: as for `prune`; so are the next two.
        ignore: patterns of layers that are left.
        overrides: layers that are pruned in another way.
        recipe: further entries of the recipe in pruning.json, such as calibration files.

    Returns:
        What was pruned, and what was left alone and why.

    Raises:
        UsageError: an argument cannot be used, an unfinished run had others, or the disk is full.
        UnsupportedModelError: the model cannot be streamed.
        InvalidFileError: a shard is damaged.

    Example:
        checkpoint = open_checkpoint("llama-8b")
        prune_checkpoint(checkpoint, "pruned", 0.5, criterion="wanda", calibration=batches)
    """
    target, model = Path(out), checkpoint.model
    check_seed(seed)
    method = make_method(
        sparsity, granularity, criterion, recovery, allocator, calibration is not None, overrides
    )
    selection = replace(Selection.of(layers, ignore), granularities=method.granularities)
    _check_method(method)
    check_free(target)
    plan = plan_stack(model, method.granularity, selection)
    batches: list[Batch] = []
    if calibration is not None and method.needs:
        batches = read_calibration(model, calibration)
    files = read_companions(checkpoint.folder)
    weights = Weights(checkpoint, plan.stacks[0])
    with evaluation_mode(model), torch.no_grad():
        segments = find_modules(model, weights, plan, batches) if batches else _without_inputs(plan)
        _check_space(checkpoint, target, segments, batches)
        own = recipe_of(method, seed, selection)
        inputs = fingerprint(batches) if batches else {}
        with open_draft(target, pruning_request(checkpoint, own, inputs)) as draft:
            copies = Copies(checkpoint, draft.model)
            copies.make(progress)
            report = new_report(method)
            report.recipe = {**(recipe or {}), **own}
            report.versions, report.calibration = versions(), inputs
            journal = DraftJournal(
                draft, copies, report, method.generator, len(segments), on_module
            )
            counter = Progress(progress, len(plan.layers))
            for row in report.layers:
                counter.finished(row.name)
            parts = (model, weights, plan, segments, batches, counter)
            with draft.temporary("scoring") as folder:
                settings = allocate(StreamedSource(*parts, DiskStorage(folder)), method, seed)
            source = StreamedSource(*parts, DiskStorage(draft.states), journal)
            prune_layers(source, settings, method, seed, report, counter)
            report.seconds = journal.seconds
            add_coverage(report, model, plan.left, count_zeros(checkpoint, copies.read))
            write_companions(draft.model, files)
            text = json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
            (draft.model / RECIPE).write_text(text)
            draft.finish(target)
    return report


def _check_method(method: Method) -> None:
    """Refuse what reads the whole model at once."""
    parts: tuple[Criterion | Recovery | Allocator, ...]
    parts = (*method.criteria, method.recovery, method.allocator)
    for part in parts:
        if lacking := set(part.needs) - STREAMED:
            raise UsageError(
                f"{part.kind} {part.name} needs {lacking.pop()}, for which the whole model has to "
                "be in memory: it cannot be streamed"
            )
    if method.needs_coupling:
        raise UsageError(
            "criterion coupled reads the weights of adjacent layers, for which the whole model has "
            "to be in memory: it cannot be streamed"
        )
    if method.allocator.name in SCORING:
        raise UsageError(
            f"allocator {method.allocator.name} compares the scores of all layers in memory: it "
            "cannot be streamed; choose uniform"
        )


def _without_inputs(plan: Plan) -> list[Segment]:
    """The modules of the stack that hold layers to prune, each layer a group of its own."""
    groups: dict[str, list[Group]] = defaultdict(list)
    for layer in plan.layers:
        groups[plan.stack_module_of(layer.name) or ""].append(Group([layer], 0, None))
    return [Segment(name, found) for name, found in groups.items()]


def _check_space(
    checkpoint: Checkpoint, target: Path, segments: list[Segment], batches: list[Batch]
) -> None:
    """Raise UsageError unless the disk holds a copy of the shards and the calibration states."""
    tokens = sum(_tokens(batch) for batch in batches)
    needed = checkpoint.nbytes
    if tokens:
        # Two files of states, each with the inputs of the groups of one module and its outputs.
        needed += 2 * 4 * tokens * max(_width(segment) for segment in segments)
    check_space(target, needed, "pruning", "a copy of the weights, and calibration states")


def _width(segment: Segment) -> int:
    """Features that are kept for each token while a module is pruned."""
    layers = [(group.layers[0].shape, group.residual) for group in segment.groups]
    captured = sum(inputs + (out if residual else 0) for (out, inputs), residual in layers)
    return captured + 2 * max((inputs for (_, inputs), _ in layers), default=0)


def _tokens(batch: Batch) -> int:
    """Number of tokens of a batch: the elements of its largest integer tensor, or its rows."""
    tensors = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor)]
    return max(
        (t.numel() // (t.shape[-1] if t.is_floating_point() and t.ndim > 1 else 1)
         for t in tensors),
        default=0,
    )  # fmt: skip
