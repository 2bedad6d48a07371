"""Parameters of groups, which Adam trains beside the weights of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError

MOMENTS = ("exp_avg", "exp_avg_sq")


class GroupParameters:
    """A parameter for each group of each layer, with gradients in closed form.

    Kingma and Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.

    Args:
        initial: [count] of each layer.
        learning_rate: of Adam.
        maximize: whether it ascends.
    """

    def __init__(
        self, initial: Sequence[Tensor], learning_rate: float, maximize: bool = False
    ) -> None:
        self._values = [torch.nn.Parameter(values) for values in initial]
        self._adam = torch.optim.Adam(self._values, lr=learning_rate, maximize=maximize)

    @property
    def values(self) -> list[Tensor]:
        """[count] of each layer."""
        return [value.detach() for value in self._values]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step of Adam.

        Args:
            gradients: [count] of each layer.
        """
        for value, gradient in zip(self._values, gradients, strict=True):
            value.grad = gradient.to(value.dtype)
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Values and moments."""
        return {"values": [value.clone() for value in self.values], "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace values and moments.

        Raises:
            InvalidFileError: if they are of other groups.
        """
        copy_tensors(self.values, state["values"])
        own = self._adam.state_dict()
        moments = state["adam"]["state"]
        for index, kept in moments.items():
            names = {"step": torch.zeros(()), **dict.fromkeys(MOMENTS, self.values[index])}
            copy_tensors([torch.empty_like(x) for x in names.values()], [kept[n] for n in names])
        self._adam.load_state_dict({**own, "state": moments})


def copy_tensors(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy stored tensors; raises InvalidFileError unless shapes and dtypes are the same."""
    if [(x.shape, x.dtype) for x in into] != [(x.shape, x.dtype) for x in values]:
        raise InvalidFileError("the state holds numbers of other groups than those of the model")
    for own, stored in zip(into, values, strict=True):
        own.copy_(stored)
