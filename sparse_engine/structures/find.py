"""Finds the sites of structures in a model."""

from __future__ import annotations

from torch import nn

from sparse_engine.structures.site import Site
from sparse_engine.structures.tables import transformers

TABLES = (transformers.sites,)


def find_sites(model: nn.Module, kinds: tuple[str, ...]) -> list[Site]:
    """The sites of these kinds, in the order of the model.

    Args:
        model: any module, not unrolled; it may be on the meta device.
        kinds: text forms of structures.
    """
    return [site for table in TABLES for site in table(model) if site.kind in kinds]
