"""Finds adjacent layers from the structure of a model."""

from __future__ import annotations

from torch import nn

from sparse_engine.pruning.coupling import by_name, recurrent, sequential
from sparse_engine.pruning.coupling.link import Link


def find_links(model: nn.Module) -> list[Link]:
    """Pairs of layers with nothing between them but functions of single units.

    They are those inside an nn.Sequential, up and down projections of feed-forwards and values and
    outputs of attention by their names, and the gates and readers of recurrent states. A norm, or a
    sum with a residual stream, separates layers.

    Args:
        model: a model whose modules are unrolled.

    Returns:
        Each pair once.
    """
    found = {
        (link.producer, link.reader): link
        for kind in (by_name, sequential, recurrent)
        for link in kind.links(model)
    }
    return list(found.values())
