"""The description of a kind of module, and parameters that share memory with other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Kind:
    """How modules of certain types become linear layers.

    Attributes:
        matches: whether a module is of this kind. Subclasses of torch's modules do not match, as
            they may use their weights in another way.
        base: the types that match; subclasses of them are reported as left alone.
        parameters: names of the weights and biases that the linear layers hold.
        layers: layers(module, views) gives the linear layers by their names below the module.
        forward: the forward pass, called with the module first, which runs these layers.
        refusal: why a module that matches is left as it is; "" if it is not.
    """

    matches: Callable[[Any], bool]
    base: tuple[type[nn.Module], ...]
    parameters: Callable[[Any], list[str]]
    layers: Callable[[Any, ParameterViews], dict[str, nn.Module]]
    forward: Callable[..., Any]
    refusal: Callable[[Any], str] = lambda module: ""


class UnrolledForward(partial[Any]):
    """The forward pass of a module that runs through its linear layers."""


class NumberedLayers(nn.Module):
    """Numbered linear layers of a module; not an nn.ModuleList, which `find_stacks` looks for."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)


class ParameterViews:
    """Parameters that are views of parts of other parameters.

    The same part always gives the same parameter. So a weight that several modules share is one
    parameter in all of them.
    """

    def __init__(self) -> None:
        self._parameters: dict[tuple[Any, ...], nn.Parameter] = {}
        self._copies: list[tuple[Tensor, nn.Parameter]] = []

    def linear(self, weight: Tensor, bias: Tensor | None, cls: type[nn.Linear] = nn.Linear) -> Any:
        """A linear layer of a weight [out, in] and a bias [out], parameters or parts of them."""
        linear = cls(1, 1, bias=False, device="meta")
        linear.out_features, linear.in_features = weight.shape
        linear.weight = self._parameter(weight)
        bias_parameter: Any = None if bias is None else self._parameter(bias)
        linear.bias = bias_parameter
        return linear

    def matrix(self, weight: Tensor) -> Tensor:
        """A weight [out, ...] as [out, in].

        It is a view if the layout of the memory allows one, and otherwise a copy, which
        `write_back` writes into the weight.
        """
        try:
            return weight.detach().view(weight.shape[0], -1)
        except RuntimeError:
            key = _key(weight)
            if key not in self._parameters:
                copy = nn.Parameter(weight.detach().flatten(1), requires_grad=False)
                self._parameters[key] = copy
                self._copies.append((weight.detach(), copy))
            return self._parameters[key]

    def write_back(self) -> None:
        """Write the values of the copies into the weights that they were made from."""
        with torch.no_grad():
            for original, copy in self._copies:
                original.copy_(copy.view_as(original))

    def _parameter(self, part: Tensor) -> nn.Parameter:
        if isinstance(part, nn.Parameter):
            return part
        key = _key(part)
        if key not in self._parameters:
            self._parameters[key] = nn.Parameter(part.detach(), requires_grad=False)
        return self._parameters[key]


def _key(part: Tensor) -> tuple[Any, ...]:
    return part.data_ptr(), part.dtype, part.shape, part.stride()
