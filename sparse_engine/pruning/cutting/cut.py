"""Cutting: structures are removed from a model, so that its weights become smaller."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparse_engine.convert.census import census
from sparse_engine.errors import UsageError
from sparse_engine.modules.linears import weight_of
from sparse_engine.pruning.adversarial import train_masks
from sparse_engine.pruning.allocators import Sensitivity, Setting
from sparse_engine.pruning.calibration import Batch, merge_batches
from sparse_engine.pruning.coverage import add_cut_coverage
from sparse_engine.pruning.criteria import GeneratorMask, Groups, Reader
from sparse_engine.pruning.criteria.obs import OBS
from sparse_engine.pruning.cutting.counts import SiteCount, counts
from sparse_engine.pruning.cutting.method import CutMethod
from sparse_engine.pruning.cutting.ranking import Ranking, rank, rank_unseen
from sparse_engine.pruning.cutting.selection import chosen_sites, own_sparsities
from sparse_engine.pruning.evaluation import evaluation_mode
from sparse_engine.pruning.gates import find_pairs
from sparse_engine.pruning.gates.joint import refits_gates
from sparse_engine.pruning.gates.units import unit_removals
from sparse_engine.pruning.gradients import (
    LossFunction,
    check_mean,
    group_gradients,
    make_loss,
)
from sparse_engine.pruning.granularity import KeptColumns
from sparse_engine.pruning.heads import heads_of
from sparse_engine.pruning.loop import new_report, prune_layers
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.plan import (
    Filter,
    Layer,
    NamePattern,
    Plan,
    Selection,
    check_finite,
    make_plan,
)
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.recipe import recipe_of
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.run import Run
from sparse_engine.pruning.site_report import SiteReport
from sparse_engine.pruning.source import ModelSource
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.unrolled import unrolled
from sparse_engine.structures import Site, check_resizable, find_sites, resize_


def cut(
    model: nn.Module,
    method: CutMethod,
    selection: Selection,
    filter_fn: Filter | None,
    seed: int,
    run: Run,
) -> PruneReport:
    """Remove structures from a model in place.

    The groups to remove are chosen in the dense model. Then the layers that read them are refitted
    one after another, and at last the rows and columns are taken out.

    Args:
        model: with plain weights.
        method: what is removed, and how.
        selection: which sites take part, by the names of their layers.
        filter_fn: as `prune` takes it; a site takes part if all of its layers pass.
        seed: of the random numbers of the criterion.
        run: calibration inputs, and what else the steps share.

    Raises:
        UsageError: if there is no such structure, or it cannot be removed.
    """
    started = time.perf_counter()
    sites = sites_of(model, method, selection, filter_fn)
    own = own_sparsities(sites, method)
    before, counted = _parameters(model), census(model)
    of_layers = method.of_layers
    with unrolled(model):
        plan = _plan(model, sites, method.of_readers)
        report = new_report(of_layers)
        weights = {
            name: weight_of(model.get_submodule(name))
            for site in sites
            for name in (*site.writers, *site.readers)
        }
        for name, weight in weights.items():
            check_finite(f"{name}.weight", weight)
        cut_weights = {name: weight.numel() for name, weight in weights.items()}
        dense = DenseWeights(plan.layers)
        run.snapshot.keep(dense)
        steps = Progress(run.progress, 2 * len(plan.layers))
        with evaluation_mode(model), torch.no_grad():
            slopes = _gradients(model, sites, run.batches, run.loss, of_layers, seed, steps)
            masks = _masks(model, sites, run.batches, of_layers, seed, steps)
            merged = merge_batches(model, run.batches)
            source = ModelSource(model, plan, merged, dense, steps)
            rankings = _rankings(model, source, sites, slopes, masks, method, seed, report, steps)
            sizes = counts(
                rankings,
                method.structures,
                of_layers.sparsity,
                of_layers.allocator,
                own,
                method.original,
            )
            kept = {
                ranking.site.name: ranking.order[ranking.site.groups - size.kept :].sort().values
                for ranking, size in zip(rankings, sizes, strict=True)
            }
            settings = _settings(sites, kept, plan.layers)
            readers = method.of_readers
            if not readers.layer_needs:  # no statistics, so that the model need not run
                source = ModelSource(model, plan, [], dense, steps)
            untouched = {layer.name for layer in plan.layers} - settings.keys()
            source = source.without(untouched)
            prune_layers(source, settings, readers, seed, report, steps)
    changed = [site for site in sites if len(kept[site.name]) < site.groups]
    resize_(model, kept, changed)
    report.granularity = ", ".join(map(str, method.structures.values()))
    report.sites = _site_reports(report, sites, kept, sizes)
    report.layers = []  # they have no zeros any more
    report.unseen = list(dict.fromkeys(report.unseen))
    report.parameters = (before, _parameters(model))
    kinds = " or ".join(method.structures)
    add_cut_coverage(report, model, counted, cut_weights, f"no {kinds} of it was to be removed")
    report.heads = heads_of(model)
    if filter_fn is not None:  # a recipe holds the names that it chose
        names = (name for site in sites for name in site.writers)
        selection = replace(selection, layers=tuple(map(NamePattern.exactly, names)))
    report.recipe = recipe_of(method, seed, selection)
    report.seconds = time.perf_counter() - started
    return report


def sites_of(
    model: nn.Module, method: CutMethod, selection: Selection, filter_fn: Filter | None
) -> list[Site]:
    """The sites of a model from which groups are removed.

    Raises:
        UsageError: if a kind has none, a pattern matches none, or one cannot be resized.
    """
    sites = find_sites(model, tuple(method.structures), method.readers)
    sites = chosen_sites(model, sites, method, selection, filter_fn)
    check_resizable(model, sites)
    return sites


def _site_reports(
    report: PruneReport, sites: list[Site], kept: Mapping[str, Tensor], sizes: list[SiteCount]
) -> list[SiteReport]:
    """What is left of each site, with the errors of the layers that read it."""
    rows = {row.name: row for row in report.layers}
    return [
        SiteReport.of(
            site,
            kept[site.name],
            [rows[name] for name in site.readers if name in rows],
            size.at_floor,
        )
        for site, size in zip(sites, sizes, strict=True)
    ]


def _plan(model: nn.Module, sites: list[Site], method: Method) -> Plan:
    """The layers that read the groups of sites, and those that are refitted together with them."""
    readers = {name for site in sites for name in site.readers}
    if refits_gates(method):
        everything = make_plan(model, lambda module, name: True).layers
        for pair in find_pairs(model, everything):
            both = {layer.name for layer in pair.layers}
            readers |= both if both & readers else set()
    plan = make_plan(model, lambda module, name: name in readers)
    if missing := readers - {layer.name for layer in plan.layers}:
        raise UsageError(f"{min(missing)} is no linear layer with a weight of its own")
    return plan


def _gradients(
    model: nn.Module,
    sites: list[Site],
    batches: list[Batch],
    loss: LossFunction | None,
    method: Method,
    seed: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """The gradients of the groups of each site; empty if the criterion reads none."""
    if not method.needs_gradients:
        return {}
    made = make_loss(loss, batches)
    if "gradient" in method.needs:
        check_mean(made)
    per_example = "fisher" in method.needs
    return group_gradients(model, sites, batches, made, per_example, seed, progress)


def _masks(
    model: nn.Module,
    sites: list[Site],
    batches: list[Batch],
    method: Method,
    seed: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """The trained masks of the groups of each site; empty if the criterion reads none."""
    criterion = method.criterion
    if not isinstance(criterion, GeneratorMask):
        return {}
    return train_masks(model, sites, batches, criterion, seed, progress)


def _rankings(
    model: nn.Module,
    source: ModelSource,
    sites: list[Site],
    gradients: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    method: CutMethod,
    seed: int,
    report: PruneReport,
    progress: Progress,
) -> list[Ranking]:
    """The groups of all sites in the dense model, in the order of their removal.

    Layers that no calibration token reaches, which only those of experts may be, count for nothing;
    sites with no others are ranked by magnitude. The report receives the layers.
    """
    of_layers = method.of_layers
    of_layers.generator.manual_seed(seed)
    measures_errors = isinstance(of_layers.allocator, Sensitivity)
    rankings: dict[str, Ranking] = {}
    if isinstance(of_layers.criterion, OBS) and not measures_errors:
        for name, removals in unit_removals(source, sites, seed).items():
            site = next(site for site in sites if site.name == name)
            rankings[name] = Ranking(site, removals.order, removals.costs)
    rest = [site for site in sites if site.name not in rankings]
    waiting: dict[str, dict[str, Reader]] = {site.name: {} for site in rest}
    for layers, statistics in source.groups(of_layers.scoring_collection):
        unseen = bool(of_layers.needs) and statistics.are_missing
        for layer in layers:
            # What a bias can absorb costs nothing.
            centred = of_layers.recovery.centres(layer.linear.bias is not None)
            inputs = statistics.inputs(layer, centred)
            weight = layer.weight.detach().float()
            report.unseen += [layer.name] if unseen else []
            for site in rest:
                if layer.name not in site.readers:
                    continue
                read = waiting[site.name]
                read[layer.name] = Reader(weight, inputs, site.readers[layer.name])
                if len(read) < len(site.readers):
                    continue
                all_readers = waiting.pop(site.name)
                readers = [of for name, of in all_readers.items() if name not in report.unseen]
                slopes = gradients.get(site.name)
                groups = Groups(
                    site.groups,
                    readers,
                    _writers(model, site),
                    slopes,
                    masks.get(site.name),
                    site.layers,
                )
                if not readers:
                    groups = replace(groups, readers=list(all_readers.values()))
                    rankings[site.name] = rank_unseen(
                        site, groups, of_layers.criterion, of_layers.generator
                    )
                    continue
                rankings[site.name] = rank(
                    site, groups, of_layers.criterion, of_layers.generator, measures_errors
                )
            progress.finished(f"scores of {layer.name}")
    return [rankings[site.name] for site in sites]


def _writers(model: nn.Module, site: Site) -> list[tuple[Tensor, Tensor]]:
    return [
        (weight_of(model.get_submodule(name)).detach().float(), groups)
        for name, groups in site.writers.items()
    ]


def _settings(
    sites: list[Site], kept: Mapping[str, Tensor], layers: list[Layer]
) -> dict[str, Setting]:
    """How each layer is pruned: it loses the columns that read the groups that go.

    Where others take over what a removed group has computed, zeros in its place would be another
    model: the layers that read such groups stay as they are.
    """
    rerouted, read = (
        {name for site in sites if site.rerouted is of for name in site.readers}
        for of in (True, False)
    )
    masks = {
        layer.name: torch.ones(layer.shape[1], dtype=torch.bool)
        for layer in layers
        if layer.name not in rerouted - read
    }
    names = dict.fromkeys(masks, sites[0].kind)
    for site in sites:
        if site.rerouted:
            continue
        left = torch.zeros(site.groups + 1, dtype=torch.bool)
        left[kept[site.name]] = True
        left[-1] = True
        for name, groups in site.readers.items():
            masks[name] &= left[groups]
            names[name] = site.kind
    return {name: Setting(KeptColumns(names[name], mask), 0.0) for name, mask in masks.items()}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
