"""Cutting: structures are removed from a model, so that its weights become smaller."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.models import find_family, model_type
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.linears import weight_of
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning.allocators import Setting
from sparse_engine.pruning.calibration import Batch, fingerprint, merge_batches, read_calibration
from sparse_engine.pruning.cutting.counts import counts
from sparse_engine.pruning.cutting.kept import KeptColumns
from sparse_engine.pruning.cutting.method import CutMethod
from sparse_engine.pruning.cutting.ranking import Ranking, Reader, rank
from sparse_engine.pruning.evaluation import evaluation_mode
from sparse_engine.pruning.gradients import GradientStatistics, LossFunction, make_loss
from sparse_engine.pruning.loop import new_report, prune_layers
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.plan import Plan, Selection, make_plan, with_couplings
from sparse_engine.pruning.plan.selection import IGNORED
from sparse_engine.pruning.progress import Progress, ProgressCallback
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.site_report import SiteReport
from sparse_engine.pruning.source import ModelSource
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.unrolled import unrolled
from sparse_engine.structures import Site, check_resizable, find_sites, resize_


def cut(
    model: nn.Module,
    method: CutMethod,
    calibration: Iterable[Any] | None,
    selection: Selection,
    seed: int,
    loss: LossFunction | None,
    progress: ProgressCallback | None,
) -> PruneReport:
    """Remove structures from a model in place.

    The groups to remove are chosen in the dense model. Then the layers that read them are refitted
    one after another, and at last the rows and columns are taken out.

    Args:
        model: any module.
        method: what is removed, and how.
        calibration: model inputs, as `prune` takes them.
        selection: which sites take part, by the names of their layers.
        seed: of the random numbers of the criterion.
        loss: as `prune` takes it.
        progress: as `prune` takes it.

    Raises:
        UsageError: if there is no such structure, or it cannot be removed; nothing has changed.
    """
    started = time.perf_counter()
    check_readable(model)
    fold_(model)
    found = find_sites(model, tuple(method.structures), method.readers)
    sites = _chosen(model, found, method, selection)
    check_resizable(model, sites)
    before = _parameters(model)
    of_layers = method.of_layers
    with unrolled(model):
        plan = _plan(model, sites, of_layers)
        batches: list[Batch] = []
        if calibration is not None and of_layers.needs:
            batches = read_calibration(model, calibration, loss is not None)
        report = new_report(of_layers)
        dense = DenseWeights(plan.layers)
        steps = Progress(progress, 2 * len(plan.layers))
        with evaluation_mode(model), torch.no_grad():
            gradients = None
            if of_layers.needs_gradients:
                gradients = GradientStatistics(
                    model,
                    plan.layers,
                    batches,
                    dense,
                    make_loss(loss, batches),
                    of_layers,
                    seed,
                    steps,
                )
            source = ModelSource(
                model, plan, merge_batches(model, batches), dense, steps, gradients
            )
            try:
                kept = _kept(model, source, sites, method, seed, steps)
                settings = _settings(sites, kept)
                prune_layers(source, settings, of_layers, seed, report, steps)
            except BaseException:
                dense.restore()
                raise
    resize_(model, kept, sites)
    report.granularity = ", ".join(map(str, method.structures.values()))
    report.sites = [SiteReport.of(site, kept[site.name]) for site in sites]
    report.layers = []
    report.parameters = (before, _parameters(model))
    report.calibration = fingerprint(batches) if batches else {}
    report.seconds = time.perf_counter() - started
    return report


def _chosen(
    model: nn.Module, sites: list[Site], method: CutMethod, selection: Selection
) -> list[Site]:
    """The sites that take part; every kind has one, and every pattern matches one.

    A site takes part if all layers that compute it are chosen, and none of its layers is ignored.
    """
    names = [name for site in sites for name in (*site.writers, *site.readers)]
    left = selection.left(names, [site.name for site in sites], {})
    ignored = {name for name, reason in left.items() if reason == IGNORED}
    chosen = [
        site
        for site in sites
        if left.keys().isdisjoint(site.writers) and ignored.isdisjoint(site.readers)
    ]
    for site in chosen:
        if site.refusal:
            raise UsageError(f"{site.kind}: {site.refusal}")
        others = [other.name for other in sites if site.even and other.even == site.even]
        if left_out := set(others) - {other.name for other in chosen}:
            raise UsageError(
                f"{site.kind}: {site.name} and {sorted(left_out)[0]} keep the same size; choose "
                "both, or ignore both"
            )
    for kind in method.structures:
        if not any(site.kind == kind for site in chosen):
            raise UsageError(f"there is no {kind} to remove {_why_none(model, sites, kind)}")
    return chosen


def _why_none(model: nn.Module, sites: list[Site], kind: str) -> str:
    if any(site.kind == kind for site in sites):
        return "among the chosen layers"
    type_ = model_type(model)
    if type_ and not any(find_family(module) for module in model.modules()):
        return f"in this model: {type_} is no known family of models"
    return "in this model"


def _plan(model: nn.Module, sites: list[Site], method: Method) -> Plan:
    """The layers that read the groups of sites."""
    readers = {name for site in sites for name in site.readers}
    plan = make_plan(model, lambda module, name: name in readers)
    return with_couplings(plan, model) if method.needs_coupling else plan


def _kept(
    model: nn.Module,
    source: ModelSource,
    sites: list[Site],
    method: CutMethod,
    seed: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """By site, the numbers of the groups that remain, ascending."""
    of_layers = method.of_layers
    of_layers.generator.manual_seed(seed)
    rankings: dict[str, Ranking] = {}
    waiting: dict[str, dict[str, Reader]] = {site.name: {} for site in sites}
    for layers, statistics in source.groups(of_layers.scoring_collection):
        for layer in layers:
            # What a bias can absorb costs nothing.
            centred = of_layers.recovery.centres(layer.linear.bias is not None)
            inputs = statistics.inputs(layer, centred)
            weight = layer.weight.detach().float()
            for site in sites:
                if layer.name not in site.readers:
                    continue
                read = waiting[site.name]
                read[layer.name] = Reader(weight, inputs, site.readers[layer.name])
                if len(read) == len(site.readers):
                    readers = list(waiting.pop(site.name).values())
                    rankings[site.name] = rank(
                        site,
                        readers,
                        of_layers.criterion,
                        of_layers.generator,
                        _writers(model, site),
                    )
            progress.finished(f"scores of {layer.name}")
    ordered = [rankings[site.name] for site in sites]
    left = counts(ordered, method.structures, method.sparsity, method.allocator)
    return {
        ranking.site.name: ranking.order[ranking.site.groups - count :].sort().values
        for ranking, count in zip(ordered, left, strict=True)
    }


def _writers(model: nn.Module, site: Site) -> list[tuple[Tensor, Tensor]]:
    return [
        (weight_of(model.get_submodule(name)).detach().float(), groups)
        for name, groups in site.writers.items()
    ]


def _settings(sites: list[Site], kept: Mapping[str, Tensor]) -> dict[str, Setting]:
    """How each layer that reads groups is pruned: it loses the columns of those that go."""
    masks: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for site in sites:
        left = torch.zeros(site.groups + 1, dtype=torch.bool)
        left[kept[site.name]] = True
        left[-1] = True
        for name, groups in site.readers.items():
            own = left[groups]
            masks[name] = masks[name] & own if name in masks else own
            names[name] = site.kind
    return {name: Setting(KeptColumns(names[name], mask), 0.0) for name, mask in masks.items()}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
