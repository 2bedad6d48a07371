"""Finds the sites of structures in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from sparse_engine.structures.site import Site
from sparse_engine.structures.tables import recurrent, transformers

TABLES = (transformers.sites,)
NONE: Mapping[str, Sequence[str]] = MappingProxyType({})


def find_sites(
    model: nn.Module, kinds: tuple[str, ...], readers: Mapping[str, Sequence[str]] = NONE
) -> list[Site]:
    """The sites of these kinds, in the order of the model; some may have a refusal.

    Args:
        model: any module, not unrolled; it may be on the meta device.
        kinds: text forms of structures.
        readers: by recurrent network or cell, the modules that read its outputs.

    Raises:
        UsageError: if a name in `readers` is wrong.
    """
    found = [site for table in TABLES for site in table(model)]
    found += recurrent.sites(model, readers)
    return [site for site in found if site.kind in kinds]
