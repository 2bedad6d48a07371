"""Adjacent layers in an nn.Sequential: its order is that of the computation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.pruning.coupling.link import Link, in_order, side_by_side
from sparse_engine.pruning.unrolled import is_unrolled

# Modules that work on every unit by itself.
ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Hardshrink,
    nn.LogSigmoid,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
    nn.Dropout,
    nn.AlphaDropout,
    nn.Identity,
)
# Modules that work on every channel by itself. The scales of a batch norm are not counted.
OF_CHANNELS = (
    nn.BatchNorm1d,
    nn.Dropout1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveAvgPool1d,
)


@dataclass(frozen=True)
class _Side:
    """The units of a module, on the side of its outputs or of its inputs.

    Attributes:
        parts: the linear layers of the module with the units of their rows or columns.
        units: how many units there are.
        is_convolution: whether units are channels, which come before the positions.
    """

    parts: list[tuple[str, Tensor]]
    units: int
    is_convolution: bool


def links(model: nn.Module) -> Iterator[Link]:
    """The links inside every nn.Sequential, those inside of it joined to its own order."""
    names = {
        name: module for name, module in model.named_modules() if type(module) is nn.Sequential
    }
    for name, module in names.items():
        if name.rpartition(".")[0] not in names or name == "":
            yield from _in_order(list(_flat(name, module)))


def _flat(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if type(child) is nn.Sequential:
            yield from _flat(full, child)
        else:
            yield full, child


def _in_order(modules: list[tuple[str, nn.Module]]) -> Iterator[Link]:
    producer: _Side | None = None
    for name, module in modules:
        if isinstance(module, ELEMENTWISE):
            continue
        if isinstance(module, OF_CHANNELS) and producer is not None and producer.is_convolution:
            continue
        reader = _inputs(name, module)
        if producer is not None and reader is not None and _fit(producer, reader):
            for above, rows in producer.parts:
                for below, columns in reader.parts:
                    if torch.isin(rows, columns).any():
                        yield Link(above, below, rows, columns)
        producer = _outputs(name, module)


def _fit(producer: _Side, reader: _Side) -> bool:
    return (producer.units, producer.is_convolution) == (reader.units, reader.is_convolution)


def _inputs(name: str, module: nn.Module) -> _Side | None:
    if is_linear(module):
        units = weight_of(module).shape[1]
        return _Side([(name, in_order(units))], units, False)
    if type(module) is nn.Conv1d and is_unrolled(module):
        (kernel,), each = module.kernel_size, module.in_channels // module.groups
        parts = [
            (f"{name}.linears.{group}", group * each + side_by_side(each, kernel))
            for group in range(module.groups)
        ]
        return _Side(parts, module.in_channels, True)
    return None


def _outputs(name: str, module: nn.Module) -> _Side | None:
    if is_linear(module):
        units = weight_of(module).shape[0]
        return _Side([(name, in_order(units))], units, False)
    if type(module) is nn.Conv1d and is_unrolled(module):
        each = module.out_channels // module.groups
        parts = [
            (f"{name}.linears.{group}", group * each + in_order(each))
            for group in range(module.groups)
        ]
        return _Side(parts, module.out_channels, True)
    return None
