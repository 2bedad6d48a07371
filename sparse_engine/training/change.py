"""What becomes of parameters when structures are taken out while a model is trained.

Parameters are replaced by smaller ones. The optimizer gets the new ones, with what it had gathered
for the weights that are left.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Part:
    """A parameter as it is now, in terms of the one that it was taken from.

    Attributes:
        old: name of that one.
        indices: int64 of the shape of the new parameter, into the old one as a flat tensor; None if
            it is the same parameter.
    """

    old: str
    indices: Tensor | None

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor that has the shape of the old parameter."""
        if self.indices is None:
            return tensor
        return tensor.reshape(-1)[self.indices.to(tensor.device)]


@dataclass(frozen=True)
class Change:
    """The parameters of a model before and after structures were taken out.

    Attributes:
        old: parameters by name, before.
        new: parameters by name, in the order of the model.
        parts: by the names of new parameters.
    """

    old: Mapping[str, nn.Parameter]
    new: Mapping[str, nn.Parameter]
    parts: Mapping[str, Part]

    @property
    def replaced(self) -> list[nn.Parameter]:
        """The old parameters that are no longer in the model."""
        left = {id(parameter) for parameter in self.new.values()}
        return [parameter for parameter in self.old.values() if id(parameter) not in left]

    def carry(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is left of tensors that have the shapes of parameters, by the new names.

        Args:
            tensors: by the names of old parameters.
        """
        return {
            name: part.of(tensors[part.old])
            for name, part in self.parts.items()
            if part.old in tensors
        }

    def carry_gradients(self) -> None:
        """Give new parameters the gradients of the old ones."""
        for name, part in self.parts.items():
            gradient = self.old[part.old].grad
            if part.indices is not None and gradient is not None:
                self.new[name].grad = part.of(gradient)

    def follow_(self, optimizer: Optimizer) -> None:
        """Put the new parameters into the groups of an optimizer, with their state.

        State of another shape than its parameter, such as the factors of Adafactor, cannot be cut:
        it is left out, and the optimizer begins it anew.
        """
        for group in optimizer.param_groups:
            group["params"] = self._params(group["params"])
        names = {id(parameter): name for name, parameter in self.old.items()}
        for old in self.replaced:
            state = optimizer.state.pop(old, None)
            for name, part in self.parts.items():
                if not state or part.old != names[id(old)]:
                    continue
                tensors = [x for x in state.values() if isinstance(x, Tensor) and x.dim()]
                if all(tensor.shape == old.shape for tensor in tensors):
                    optimizer.state[self.new[name]] = {
                        key: _carried(value, part) for key, value in state.items()
                    }

    def _params(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        """The parameters of a group, in the order of the model if that was their order."""
        before = {id(parameter): i for i, parameter in enumerate(self.old.values())}
        after = {id(parameter): i for i, parameter in enumerate(self.new.values())}
        found: list[nn.Parameter] = []
        for parameter in params:
            if id(parameter) in after or id(parameter) not in before:
                found.append(parameter)
            else:
                old = list(self.old)[before[id(parameter)]]
                found += [self.new[name] for name, part in self.parts.items() if part.old == old]
        places = [before.get(id(parameter), -1) for parameter in params]
        if -1 not in places and places == sorted(places):
            found.sort(key=lambda parameter: after[id(parameter)])
        return found


class Numbered:
    """A copy of a model whose parameters hold the numbers of their elements.

    What is done to the model is done to the copy too. Then the numbers tell where the elements of
    every new parameter were.

    Args:
        model: before anything is taken out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._old = dict(model.named_parameters())
        self._first: dict[str, int] = {}
        memo: dict[int, object] = {}
        count = 0
        for name, parameter in self._old.items():
            self._first[name] = count
            numbers = torch.arange(count, count + parameter.numel()).view(parameter.shape)
            memo[id(parameter)] = nn.Parameter(numbers, requires_grad=False)
            count += parameter.numel()
        memo |= {id(buffer): buffer.detach() for buffer in model.buffers()}
        for module in model.modules():  # hooks may hold results of the last call
            memo |= {id(hooks): OrderedDict() for hooks in _hooks(module)}
        self.copy = copy.deepcopy(model, memo)

    def change(self, model: nn.Module) -> Change:
        """What became of the parameters, when the copy and the model were changed alike."""
        new = dict(model.named_parameters())
        numbers = dict(self.copy.named_parameters())
        own = {id(parameter): name for name, parameter in self._old.items()}
        parts = {}
        for name, parameter in new.items():
            if id(parameter) in own:
                parts[name] = Part(own[id(parameter)], None)
            else:
                first = int(numbers[name].flatten()[0])
                old = next(n for n in reversed(self._first) if self._first[n] <= first)
                parts[name] = Part(old, numbers[name].detach() - self._first[old])
        return Change(self._old, new, parts)


def _hooks(module: nn.Module) -> Iterator[object]:
    return (vars(module)[name] for name in HOOKS if name in vars(module))


def _carried(value: object, part: Part) -> object:
    """An entry of the state of a parameter, for one that was taken from it."""
    if not isinstance(value, Tensor):
        return value
    return part.of(value) if value.dim() else value.clone()
