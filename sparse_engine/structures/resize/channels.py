"""Modules with values for each channel: BatchNorm1d, InstanceNorm1d and PReLU."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.structures.resize.base import Kept, select

# The attribute that counts the channels.
COUNTS = {
    nn.BatchNorm1d: "num_features",
    nn.InstanceNorm1d: "num_features",
    nn.PReLU: "num_parameters",
}


def matches(module: nn.Module) -> bool:
    """Whether the module is one of these."""
    return type(module) in COUNTS


def resize(module: Any, kept: dict[str, Kept]) -> None:
    """Keep the values of some channels."""
    rows = kept[""].rows
    assert rows is not None
    for name, parameter in module._parameters.items():
        module._parameters[name] = select(parameter, 0, rows)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.dim():  # num_batches_tracked has no channels
            module._buffers[name] = select(buffer, 0, rows)
    setattr(module, COUNTS[type(module)], len(rows))
