"""Finds the groups of weights of a granularity, or of structures, in a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.cutting import cut_method, find_structures, sites_of
from sparse_engine.pruning.granularity import Tiles, parse_granularity
from sparse_engine.pruning.plan import Selection, make_plan
from sparse_engine.structures import Filter, Head, Structure, Unit
from sparse_engine.training.layers import TrainedLayer, trained_layers
from sparse_engine.training.learned.groups import WeightGroups
from sparse_engine.training.learned.sites import SiteGroups
from sparse_engine.training.learned.tiles import LayerTiles

STRUCTURES = (Head, Unit, Filter)


def find_groups(
    model: nn.Module, granularity: Any, selection: Selection, owner: str
) -> list[WeightGroups]:
    """The groups of a model, by layer or site, in the order of the model.

    Args:
        model: the model, not unrolled.
        granularity: a granularity without a sparsity of its own, or one or several structures, as
            `prune` takes them.
        selection: which layers take part.
        owner: the modifier, for messages.

    Raises:
        UsageError: if there are none, or they cannot be masked.
    """
    structures = find_structures(granularity)
    if structures:
        return _of_sites(model, structures, selection, owner)
    one = granularity[0] if isinstance(granularity, tuple) and len(granularity) == 1 else None
    tiles = parse_granularity(one or granularity)
    if not isinstance(tiles, Tiles):
        raise UsageError(
            f"{owner}: {tiles} has a sparsity of its own, which no mask learns; give element, "
            "blocks such as 4x1, row, column, or structures"
        )
    layers = trained_layers(model, lambda m: make_plan(m, None, tiles, selection))
    _check_trained(model, layers, owner)
    return [
        LayerTiles(layer, tiles, model.get_parameter(layer.parameter).device) for layer in layers
    ]


def _of_sites(
    model: nn.Module, structures: Sequence[Structure], selection: Selection, owner: str
) -> list[WeightGroups]:
    for structure in structures:
        if not isinstance(structure, STRUCTURES):
            names = ", ".join(cls.name for cls in STRUCTURES)
            raise UsageError(f"{owner}: a mask of a {structure.name} is not learned; give {names}")
        if structure.round_to != 1:
            raise UsageError(
                f"{owner}: {structure}: zeros do not change a shape, so leave out round_to; give "
                "it when the structures are taken out"
            )
    method = cut_method(tuple(structures), 0.5, None, None, "uniform", has_calibration=False)
    sites = sites_of(model, method, selection, None)
    wanted = {name for site in sites for name in (*site.writers, *site.readers)}
    found = trained_layers(model, lambda m: make_plan(m, lambda module, name: name in wanted))
    layers = {layer.name: layer for layer in found}
    if missing := sorted(wanted - layers.keys()):
        raise UsageError(f"{owner}: {missing[0]} shares its weight with another layer; ignore it")
    _check_trained(model, found, owner)
    kinds = method.structures
    return [
        SiteGroups.of(
            f"{site.name} ({site.kind})",
            site.groups,
            min(max(kinds[site.kind].keep, site.least), site.groups),
            site.writers,
            site.readers,
            layers,
            model.get_parameter(layers[next(iter(site.readers))].parameter).device,
        )
        for site in sites
    ]


def _check_trained(model: nn.Module, layers: Sequence[TrainedLayer], owner: str) -> None:
    for layer in layers:
        if not model.get_parameter(layer.parameter).requires_grad:
            raise UsageError(
                f"{owner}: {layer.parameter} is not trained, so no mask of {layer.name} can be "
                "learned; leave it out with ignore"
            )
