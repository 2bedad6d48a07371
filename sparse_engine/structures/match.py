"""How many groups of a site are left in a model whose layers have become smaller."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_engine.structures.site import Site


def kept_of(site: Site, sizes: Mapping[str, tuple[int, int]]) -> Tensor | None:
    """The first groups of a site, as many as fit the sizes of its layers.

    Args:
        site: found in the model as it was built.
        sizes: by layer, its rows and columns as they are; those of an embedding are its features
            and its entries.

    Returns:
        int64, from 0 on; None if the layers have no such number of groups.
    """
    counts = {
        _count(groups, site.groups, sizes[name][side]) if name in sizes else None
        for of, side in ((site.writers, 0), (site.between, 0), (site.readers, 1))
        for name, groups in of.items()
    }
    count = counts.pop()
    return None if counts or count is None else torch.arange(count)


def _count(groups: Tensor, count: int, size: int) -> int | None:
    """How many groups `size` rows or columns hold, where `count` of them hold those in `groups`."""
    fixed = int((groups < 0).sum())
    each, rest = divmod(len(groups) - fixed, count)
    if rest or not each:
        return None
    left, rest = divmod(size - fixed, each)
    return left if not rest and 0 < left <= count else None
