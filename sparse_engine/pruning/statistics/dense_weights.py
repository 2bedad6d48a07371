"""Copies of the dense parameters: the dense model while another one is being pruned."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from sparse_engine.pruning.plan import Layer


class DenseWeights:
    """Copies of the parameters that pruning changes."""

    def __init__(self, layers: list[Layer]) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in layers:
            for parameter in layer.linear._parameters.values():
                if parameter is not None:
                    self._copies[id(parameter)] = parameter, parameter.detach().clone()

    def of(self, module: nn.Module) -> dict[str, Tensor]:
        """The dense parameters of a module by name, for `torch.func.functional_call`."""
        named = module.named_parameters(remove_duplicate=False)
        return {name: self._copies[id(p)][1] for name, p in named if id(p) in self._copies}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameters, each with the copy of its values."""
        return iter(self._copies.values())
