"""The loop over layers: allocate the sparsity, then prune each layer where its inputs are known."""

from __future__ import annotations

from dataclasses import replace

from sparse_engine.pruning.allocators import Setting
from sparse_engine.pruning.gates.joint import prune_gates
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.prune_layer import prune_layer
from sparse_engine.pruning.recovery.base import Block
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.source import DenseSource, LayerSource


def new_report(method: Method) -> PruneReport:
    """The report of a run of this method, still without layers."""
    return PruneReport(
        str(method.granularity),
        str(method.criterion),
        str(method.recovery) if method.recovery.name != "none" else None,
        str(method.allocator),
    )


def allocate(source: LayerSource, method: Method, seed: int) -> dict[str, Setting]:
    """How each layer is pruned, by its name: as its variant, or as the allocator decides."""
    method.generator.manual_seed(seed)
    variants = {layer.name: method.variant_of(layer.name) for layer in source.layers}
    fixed = {name: variant.setting for name, variant in variants.items() if variant is not None}
    if len(fixed) == len(variants):
        return fixed
    requested = Setting(method.granularity, method.sparsity)
    return method.allocator.allocate(DenseSource(source, method), requested) | fixed


def prune_layers(
    source: LayerSource,
    settings: dict[str, Setting],
    method: Method,
    seed: int,
    report: PruneReport,
    progress: Progress,
) -> None:
    """Prune all layers of a source in place, and add a row for each to the report.

    Args:
        source: the layers.
        settings: as `allocate` returned them.
        method: how they are pruned.
        seed: of the random numbers of the criterion.
        report: receives the rows, and the layers that no calibration token reached.
        progress: is called after every layer.
    """
    joint = prune_gates(source, settings, method, seed, progress)
    report.layers += joint
    if joint:
        source = source.without({row.name for row in joint})
    method.generator.manual_seed(seed)

    def on_block(block: Block) -> None:
        report.blocks.append(method.recovery.tune(block, method.generator, progress.working))

    for layers, statistics in source.groups(method.collection, on_block):
        if method.layer_needs and statistics.are_missing:
            report.unseen += [layer.name for layer in layers]
        for layer in layers:
            own = method.for_layer(layer.name)
            row = prune_layer(layer, statistics, settings[layer.name], own)
            if own is not method:
                row = replace(row, criterion=str(own.criterion))
            report.layers.append(row)
            progress.finished(layer.name)
    if method.recovery.tunes_blocks:
        tuned = tuple(f"{block.name}." for block in report.blocks)
        names = (layer.name for layer in source.layers)
        report.outside_blocks = [name for name in names if not name.startswith(tuned)]
