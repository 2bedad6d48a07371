"""Takes groups of sites out of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.structures.resize import (
    attention,
    channels,
    conv,
    embedding,
    experts,
    linear,
    recurrent,
    router,
)
from sparse_engine.structures.resize.base import Kept
from sparse_engine.structures.site import Site

KINDS: tuple[ModuleType, ...] = (
    linear,
    embedding,
    recurrent,
    conv,
    channels,
    attention,
    experts,
    router,
)


def check_resizable(model: nn.Module, sites: Sequence[Site]) -> None:
    """Raise UsageError if a layer of a site cannot be resized, or is shared with other modules."""
    affected = {
        owner_of(model, name)[0]
        for site in sites
        for name in (*site.writers, *site.readers, *site.between)
    }
    for name in sorted(affected):
        module = model.get_submodule(name)
        if _kind(module) is None:
            raise UsageError(f"{name}: a {type(module).__name__} cannot be resized")
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(path)
    for names in owners.values():
        if len(names) > 1 and not affected.isdisjoint(names):
            raise UsageError(f"{' and '.join(names[:2])} share a weight, which cannot be resized")


def resize_(model: nn.Module, kept: Mapping[str, Tensor], sites: Sequence[Site]) -> None:
    """Keep some groups of sites; parameters, buffers and attributes shrink in place.

    Args:
        model: the model in which the sites were found; `check_resizable` has passed.
        kept: by the name of a site, the numbers of its groups that remain, ascending.
        sites: those that are named; others stay as they are.
    """
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for site in sites:
        if site.name not in kept:
            continue
        left = torch.zeros(site.groups + 1, dtype=torch.bool)
        left[kept[site.name]] = True
        left[-1] = True  # the number -1: what belongs to no group
        for name, groups in (*site.writers.items(), *site.between.items()):
            _intersect(rows, name, left[groups])
        for name, groups in site.readers.items():
            _intersect(columns, name, left[groups])
        for size in site.sizes:
            value = size.per_group * len(kept[site.name]) + size.fixed
            setattr(model.get_submodule(size.module), size.attribute, value)
    by_module: dict[str, dict[str, Kept]] = {}
    for name in {**rows, **columns}:
        owner, inside = owner_of(model, name)
        of_layer = Kept(_indices(rows.get(name)), _indices(columns.get(name)))
        by_module.setdefault(owner, {})[inside] = of_layer
    for name, parts in by_module.items():
        module = model.get_submodule(name)
        kind = _kind(module)
        assert kind is not None
        kind.resize(module, parts)


def _kind(module: nn.Module) -> ModuleType | None:
    return next((kind for kind in KINDS if kind.matches(module)), None)


def _intersect(masks: dict[str, Tensor], name: str, mask: Tensor) -> None:
    masks[name] = masks[name] & mask if name in masks else mask


def _indices(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.nonzero()[:, 0]


def owner_of(model: nn.Module, layer: str) -> tuple[str, str]:
    """The module that holds a layer of the unrolled model, and the layer's name below it."""
    name, inside = layer, ""
    while not _has(model, name):
        name, _, last = name.rpartition(".")
        inside = f"{last}.{inside}" if inside else last
    return name, inside


def _has(model: nn.Module, name: str) -> bool:
    try:
        return model.get_submodule(name) is not None
    except AttributeError:
        return False
