"""Adjacent layers in an nn.Sequential: its order is that of the computation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sparse_engine.modules.linears import is_linear
from sparse_engine.pruning.coupling.link import Link
from sparse_engine.structures.chains import chains


def links(model: nn.Module) -> Iterator[Link]:
    """The links inside every nn.Sequential; the scales of norms are not counted."""
    linears = {name for name, module in model.named_modules() if is_linear(module)}
    for chain in chains(model):
        for above, rows in chain.writers.items():
            for below, columns in chain.readers.items():
                if {above, below} <= linears and torch.isin(rows, columns).any():
                    yield Link(above, below, rows, columns)
