"""Finds the input and the recurrent matrix of each recurrent layer or cell of an unrolled model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True)
class SingleLayer:
    """A linear layer whose inputs are weighted in the same way, such as one that reads states."""

    layer: Layer
    is_reverse = False

    @property
    def layers(self) -> tuple[Layer]:
        """The layer."""
        return (self.layer,)


def joint_weights(layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """The weights of layers side by side [rows, columns], and their biases [rows, 0 to 2]."""
    weight = torch.cat([layer.weight.detach().float() for layer in layers], 1)
    given: list[Any] = [layer.linear.bias for layer in layers]
    biases = [bias.detach().float() for bias in given if bias is not None]
    return weight, torch.stack(biases, 1) if biases else weight.new_zeros(len(weight), 0)


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
