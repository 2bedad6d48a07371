"""Chains: modules of an nn.Sequential that follow each other, feature by feature.

A linear layer or Conv1d computes features, modules that treat every feature by itself follow, and
the next linear layer or Conv1d reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.modules.linears import is_linear, weight_of

# Modules that work on every element by itself.
ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
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
    nn.Dropout1d,
    nn.AlphaDropout,
    nn.Identity,
)
# Modules that work on the positions of every channel by itself.
POOLING = (
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.LPPool1d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveAvgPool1d,
)
# Modules with values for every channel, which is the second dimension of their input.
OF_CHANNELS = (nn.BatchNorm1d, nn.InstanceNorm1d, nn.PReLU)


@dataclass(frozen=True)
class Chain:
    """Two modules, the second of which reads the features that the first computes.

    Attributes:
        first: name of the module that computes the features.
        last: name of the module that reads them; "" if `broken_by` comes before one, or the
            nn.Sequential ends.
        features: how many there are.
        writers: by linear layer of the first module, the feature of each row.
        readers: by linear layer of the last module, the feature of each column.
        between: by module, the feature of each of its channels.
        modules: names of all modules from the first to the last.
        broken_by: name of a module that may mix the features; "" if there is none.
    """

    first: str
    last: str
    features: int
    writers: Mapping[str, Tensor]
    readers: Mapping[str, Tensor]
    between: Mapping[str, Tensor]
    modules: tuple[str, ...]
    broken_by: str = ""


def chains(model: nn.Module) -> Iterator[Chain]:
    """The chains inside every nn.Sequential, those inside of it joined to its own order.

    Args:
        model: any module, also an unrolled one.
    """
    names = {
        name: module for name, module in model.named_modules() if type(module) is nn.Sequential
    }
    for name, module in names.items():
        if name.rpartition(".")[0] not in names or name == "":
            yield from _in_order(list(_flat(name, module)))


def outputs_of(name: str, module: Any) -> dict[str, Tensor]:
    """By linear layer of a linear module or Conv1d, the feature or channel of each row."""
    if is_linear(module):
        return {name: torch.arange(weight_of(module).shape[0])}
    each = module.out_channels // module.groups
    return {
        f"{name}.linears.{group}": group * each + torch.arange(each)
        for group in range(module.groups)
    }


def inputs_of(name: str, module: Any) -> dict[str, Tensor]:
    """By linear layer of a linear module or Conv1d, the feature or channel of each column."""
    if is_linear(module):
        return {name: torch.arange(weight_of(module).shape[1])}
    each, (kernel,) = module.in_channels // module.groups, module.kernel_size
    return {
        f"{name}.linears.{group}": group * each + torch.arange(each).repeat_interleave(kernel)
        for group in range(module.groups)
    }


def is_layer(module: nn.Module) -> bool:
    """Whether a module is linear or a Conv1d."""
    return is_linear(module) or type(module) is nn.Conv1d


@dataclass
class _Open:
    """A chain of which the end has not been found.

    Attributes:
        name, module: the first module.
        has_positions: whether the features are followed by positions, so that they are the second
            dimension.
        is_last: whether the features are the last dimension, as a linear layer computes them.
        is_flat: whether all dimensions but the first have become one.
    """

    name: str
    module: Any
    has_positions: bool
    between: dict[str, Tensor] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    is_flat: bool = False

    @property
    def is_last(self) -> bool:
        return is_linear(self.module)

    @property
    def features(self) -> int:
        return sum(len(rows) for rows in outputs_of(self.name, self.module).values())

    def groups(self, width: int) -> Tensor | None:
        """The feature of each of `width` columns, or channels; None if the numbers do not fit."""
        each, rest = divmod(width, self.features)
        if rest or not each or (each > 1 and not self.is_flat):
            return None
        features = torch.arange(self.features)
        return features.repeat(each) if self.is_last else features.repeat_interleave(each)

    def passes(self, name: str, module: Any) -> bool:
        """Whether a module treats every feature by itself; if so it becomes part of the chain."""
        if not self._passes(name, module):
            return False
        self.modules.append(name)
        return True

    def _passes(self, name: str, module: Any) -> bool:
        kind = type(module)
        if kind in ELEMENTWISE or (kind is nn.PReLU and module.num_parameters == 1):
            return True
        if kind in POOLING:
            return self.has_positions and not self.is_last and not self.is_flat
        if kind is nn.Flatten:
            self.is_flat = True
            return (module.start_dim, module.end_dim) in ((1, -1), (1, 2))
        if kind not in OF_CHANNELS or (self.has_positions and self.is_last and not self.is_flat):
            return False
        if kind is nn.InstanceNorm1d and (self.is_last or self.is_flat):
            return False
        width = module.num_parameters if kind is nn.PReLU else module.num_features
        groups = self.groups(width)
        if groups is not None:
            self.between[name] = groups
        return groups is not None

    def read_by(self, name: str, module: Any) -> dict[str, Tensor]:
        """By linear layer of the module that follows, the feature of each column."""
        if not is_layer(module):
            return {}
        columns = inputs_of(name, module)
        if is_linear(module):
            groups = self.groups(len(columns[name])) if self.is_last or self.is_flat else None
            return {} if groups is None else {name: groups}
        fits = not self.is_last and not self.is_flat and module.in_channels == self.features
        return columns if fits else {}

    def end(self, name: str = "", module: Any = None) -> Chain:
        """The chain that ends with this module, or with the nn.Sequential."""
        readers = self.read_by(name, module) if name else {}
        return Chain(
            self.name,
            name if readers else "",
            self.features,
            outputs_of(self.name, self.module),
            readers,
            self.between,
            (self.name, *self.modules, *([name] if name else [])),
            "" if readers else name,
        )


def _flat(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module._modules.items():  # one that runs twice is there twice
        if child is None:
            continue
        full = f"{name}.{child_name}" if name else child_name
        if type(child) is nn.Sequential:
            yield from _flat(full, child)
        else:
            yield full, child


def _in_order(modules: list[tuple[str, nn.Module]]) -> Iterator[Chain]:
    current: _Open | None = None
    has_positions = False
    for name, module in modules:
        if type(module) is nn.Conv1d:
            has_positions = True
        elif type(module) is nn.Flatten:
            has_positions = False
        if current is not None:
            if current.passes(name, module):
                continue
            yield current.end(name, module)
        current = _Open(name, module, has_positions) if is_layer(module) else None
    if current is not None:
        yield current.end()
