"""torch.nn.Conv1d without groups, whose layer of the unrolled model is linears.0."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.structures.resize.base import Kept, select


def matches(module: nn.Module) -> bool:
    """Whether the module is a convolution over all of its channels."""
    return type(module) is nn.Conv1d and module.groups == 1


def resize(module: Any, kept: dict[str, Kept]) -> None:
    """Keep output channels, and input channels: whole kernels of columns [in x kernel]."""
    of = kept["linears.0"]
    (kernel,) = module.kernel_size
    channels = None if of.columns is None else of.columns[::kernel] // kernel
    module.weight = select(select(module.weight, 0, of.rows), 1, channels)
    module.bias = select(module.bias, 0, of.rows)
    module.out_channels, module.in_channels = module.weight.shape[:2]
