"""Finds the sites of structures in a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from torch import nn

from sparse_engine.structures.chains import is_layer
from sparse_engine.structures.site import Left, Site
from sparse_engine.structures.tables import (
    experts,
    recurrent,
    sequential,
    stated,
    torch_transformers,
    transformers,
)

TABLES = (transformers.sites, experts.sites, torch_transformers.sites, sequential.sites)
NONE: Mapping[str, Sequence[str]] = MappingProxyType({})


def find_sites(
    model: nn.Module, kinds: tuple[str, ...], readers: Mapping[str, Sequence[str]] = NONE
) -> list[Site]:
    """The sites of these kinds, in the order of the model; some may have a refusal.

    Args:
        model: any module, not unrolled; it may be on the meta device.
        kinds: text forms of structures.
        readers: by network, cell, linear layer or Conv1d, the modules that read its outputs.

    Raises:
        UsageError: if a name in `readers` is wrong.
    """
    found = [site for site in _all(model) if isinstance(site, Site)]
    readers = stated.expanded(model, readers)
    layers = {name for name, module in model.named_modules() if is_layer(module)}
    networks = {name: of for name, of in readers.items() if name not in layers}
    found += recurrent.sites(model, networks)
    of_layers = {name: of for name, of in readers.items() if name in layers}
    found += stated.sites(model, kinds, of_layers)
    return [site for site in found if site.kind in kinds]


def find_left(model: nn.Module, kind: str) -> list[Left]:
    """The groups of a kind that cannot be removed, and why.

    Args:
        model: as `find_sites` takes it.
        kind: text form of a structure.
    """
    return [left for left in _all(model) if isinstance(left, Left) and left.kind == kind]


def _all(model: nn.Module) -> Iterator[Site | Left]:
    for table in TABLES:
        yield from table(model)
