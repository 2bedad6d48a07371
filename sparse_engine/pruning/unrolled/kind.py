"""What a kind of module says of itself, and parameters that share memory with its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Kind:
    """How modules of some types become linear layers.

    matches:     whether a module is of this kind: of its exact type, as a subclass may do something
                 else with its weights
    base:        types that `matches` takes exactly; subclasses of them are reported as left alone
    parameters:  names of the weights and biases that the linear layers hold
    layers:      (module, views) -> the linear layers by the names that they get below the module
    forward:     the module's forward pass, called with the module first, through these layers
    refusal:     why a module that matches is left as it is; "" if it is not
    """

    matches: Callable[[Any], bool]
    base: tuple[type[nn.Module], ...]
    parameters: Callable[[Any], list[str]]
    layers: Callable[[Any, Views], dict[str, nn.Module]]
    forward: Callable[..., Any]
    refusal: Callable[[Any], str]


class Forward(partial[Any]):
    """The forward pass of a module that runs through linear layers."""


class Parts(nn.Module):
    """Numbered linear layers of a module; no ModuleList, which holds a model's blocks."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)


class Views:
    """Parameters over parts of other parameters: a part that was asked for before is the same one.

    So weights that several modules share are one weight in all of them.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], nn.Parameter] = {}
        self._copies: list[tuple[Tensor, nn.Parameter]] = []

    def linear(self, weight: Tensor, bias: Tensor | None, cls: type[nn.Linear] = nn.Linear) -> Any:
        """A linear layer around a weight [out, in] and a bias [out], or parts of parameters."""
        linear = cls(1, 1, bias=False, device="meta")
        linear.out_features, linear.in_features = weight.shape
        linear.weight = self._parameter(weight)
        held: Any = None if bias is None else self._parameter(bias)
        linear.bias = held
        return linear

    def matrix(self, weight: Tensor) -> Tensor:
        """A weight [out, ...] as [out, in]: a view, or where its memory has no such order a copy,
        which `write_back` returns.
        """
        try:
            return weight.detach().view(weight.shape[0], -1)
        except RuntimeError:
            key = self._key(weight)
            if key not in self._made:
                self._made[key] = nn.Parameter(weight.detach().flatten(1), requires_grad=False)
                self._copies.append((weight.detach(), self._made[key]))
            return self._made[key]

    def write_back(self) -> None:
        """Put what the copies hold now where it belongs."""
        with torch.no_grad():
            for original, copy in self._copies:
                original.copy_(copy.view_as(original))

    def _parameter(self, part: Tensor) -> nn.Parameter:
        if isinstance(part, nn.Parameter):
            return part
        key = self._key(part)
        if key not in self._made:
            self._made[key] = nn.Parameter(part.detach(), requires_grad=False)
        return self._made[key]

    @staticmethod
    def _key(part: Tensor) -> tuple[Any, ...]:
        return part.data_ptr(), part.dtype, part.shape, part.stride()
