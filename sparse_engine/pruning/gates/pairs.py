"""Finds the input and the recurrent matrix of each recurrent layer or cell of an unrolled model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.unrolled import is_unrolled
from sparse_engine.pruning.unrolled.cells import TYPES as CELLS
from sparse_engine.pruning.unrolled.recurrent import TYPES as NETWORKS


@dataclass(frozen=True)
class GatePair:
    """The two linear layers whose outputs a recurrent layer adds up.

    Attributes:
        ih: reads the input x, [gates x units, features].
        hh: reads the state h, [gates x units, units].
        is_reverse: whether the steps run from the last time step to the first.
    """

    ih: Layer
    hh: Layer
    is_reverse: bool

    @property
    def layers(self) -> tuple[Layer, Layer]:
        """ih and hh."""
        return self.ih, self.hh


def find_pairs(model: nn.Module, layers: list[Layer]) -> list[GatePair]:
    """The pairs of a model of which both matrices are to be pruned.

    Args:
        model: the unrolled model.
        layers: the layers to prune.
    """
    by_name = {layer.name: layer for layer in layers}
    pairs = []
    for name, module in model.named_modules():
        if not (is_unrolled(module) and isinstance(module, (*NETWORKS, *CELLS))):
            continue
        prefix = f"{name}." if name else ""
        for child in module._modules:
            ih, hh = (by_name.get(f"{prefix}{part}{child[2:]}") for part in ("ih", "hh"))
            if child.startswith("ih") and ih is not None and hh is not None:
                pairs.append(GatePair(ih, hh, child.endswith("_reverse")))
    return pairs
