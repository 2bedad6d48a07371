"""Snapshots: a model as it was, to be restored after an error or an interrupt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

CONTAINERS: tuple[type[Any], ...] = (dict, list, set)


class Snapshot:
    """The modules, tensors and attributes of a model at one time.

    Modules may be exchanged, parameters replaced or given other memory, and entries of configs and
    other dicts, lists and sets changed: references to what was there are enough to undo that. Only
    tensors that are written in place need a copy of their values, which `keep` takes. So memory is
    needed for what changes, once.

    Args:
        model: any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._classes: list[tuple[nn.Module, type, dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []  # containers, with shallow copies of them
        # Tensors, others that hold their memory, and whether they require gradients.
        self._memory: dict[int, tuple[Tensor, Tensor, bool]] = {}
        self._values: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        seen: set[int] = set()
        for module in model.modules():
            self._classes.append((module, type(module), _computed(module)))
            self._record(module.__dict__, seen)
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and not is_lazy(tensor):
                    self._memory[id(tensor)] = tensor, tensor.data, tensor.requires_grad
        # Unrolled modules have copies of weights whose memory is not in one piece.
        scattered = [data for _, data, _ in self._memory.values() if not data.is_contiguous()]
        self.keep((data, data.clone()) for data in scattered)

    def keep(self, copies: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Keep the values of tensors that are going to be written in place.

        Args:
            copies: parameters of the model, or views of them, each with a copy of its values as
                they are now. Only the first copy counts; tensors of other memory, such as those
                that replaced parameters of the model, are left out.
        """
        own = {data.untyped_storage().data_ptr() for _, data, _ in self._memory.values()}
        for tensor, copy in copies:
            memory = tensor.detach()
            if memory.untyped_storage().data_ptr() in own:
                key = memory.data_ptr(), memory.dtype, memory.shape, memory.stride()
                self._values.setdefault(key, (memory, copy))

    def restore(self) -> None:
        """Make the model what it was."""
        for module, cls, computed in self._classes:
            if type(module) is not cls:
                module.__class__ = cls
            for name, value in computed.items():
                setattr(cls, name, value)
        for container, contents in self._contents:
            if isinstance(container, list):
                container[:] = contents
            else:
                container.clear()
                container.update(contents)
        for tensor, memory, trained in self._memory.values():
            tensor.data = memory
            if tensor.requires_grad is not trained:
                tensor.requires_grad_(trained)
        with torch.no_grad():  # what was kept first is the oldest
            for memory, copy in reversed(self._values.values()):
                memory.copy_(copy)

    def _record(self, container: Any, seen: set[int]) -> None:
        """Record a dict, list or set, and those in it; the parts of modules come by themselves."""
        waiting = [container]
        while waiting:
            found = waiting.pop()
            if id(found) in seen:
                continue
            seen.add(id(found))
            kind = next(kind for kind in CONTAINERS if isinstance(found, kind))
            self._contents.append((found, kind(found)))
            values = found.values() if kind is dict else found
            waiting += chain.from_iterable(map(_containers, values))


@contextmanager
def unchanged_after_error(model: nn.Module) -> Iterator[Snapshot]:
    """Inside of a `with` block, an error or an interrupt makes a model what it was before.

    Example:
        with unchanged_after_error(model) as snapshot:
            snapshot.keep([(model.weight, model.weight.detach().clone())])
            model.weight.data.zero_()
    """
    snapshot = Snapshot(model)
    try:
        yield snapshot
    except BaseException:
        snapshot.restore()
        raise


def _computed(module: nn.Module) -> dict[str, Any]:
    """The parametrized tensors of a module, which are properties of a class of its own."""
    if not parametrize.is_parametrized(module):
        return {}
    names = module._modules["parametrizations"]._modules  # type: ignore[union-attr]
    return {name: vars(type(module))[name] for name in names if name in vars(type(module))}


def _containers(value: Any) -> Iterator[Any]:
    """A value that is a container, or the attributes of a config of transformers."""
    if isinstance(value, CONTAINERS):
        yield value
    elif not isinstance(value, type) and hasattr(value, "to_dict") and hasattr(value, "__dict__"):
        yield value.__dict__
