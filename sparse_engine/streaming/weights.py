"""Weights in memory for as long as their module runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.pruning.statistics.capture import StopForward
from sparse_engine.streaming.checkpoint import Checkpoint, StoredTensor


class Weights:
    """Loads parameters and persistent buffers of a checkpoint into its model, and drops them again.

    Floating-point weights are float32 in memory.

    Args:
        checkpoint: where they are read from.
        stack: dotted names of the modules that are loaded as a whole.
    """

    def __init__(self, checkpoint: Checkpoint, stack: list[str]) -> None:
        self._stored = checkpoint.stored
        self._model = checkpoint.model
        self._stack = stack

    @contextmanager
    def loaded(self, name: str) -> Iterator[nn.Module]:
        """A module of the stack with its weights, inside of a `with` block."""
        module = self._model.get_submodule(name)
        with ExitStack() as stack:
            for path, child in module.named_modules():
                stack.enter_context(self._own_loaded(child, f"{name}.{path}".rstrip(".")))
            yield module

    @contextmanager
    def on_demand(self, stacked: list[str]) -> Iterator[None]:
        """Load modules when they are called, and drop them when they return.

        Args:
            stacked: the modules of the stack to which this applies; and to all outside of it.
        """
        with ExitStack() as stack:
            for name in stacked:
                whole = partial(self.loaded, name)
                stack.enter_context(_loaded_while_called(self._model.get_submodule(name), whole))
            for name, module in self._outside():
                if any(True for _ in _own_tensors(module)):
                    own = partial(self._own_loaded, module, name)
                    stack.enter_context(_loaded_while_called(module, own))
            yield

    @contextmanager
    def stopping_after_stack(self) -> Iterator[None]:
        """End forward passes with StopForward at the first module called after the stack."""
        ended = False

        def end(*_: object) -> None:
            nonlocal ended
            ended = True

        def stop_if_ended(*_: object) -> None:
            if ended:
                raise StopForward

        with ExitStack() as stack:
            last = self._model.get_submodule(self._stack[-1])
            stack.callback(last.register_forward_hook(end).remove)
            for _, module in self._outside():
                handle = module.register_forward_pre_hook(stop_if_ended, prepend=True)
                stack.callback(handle.remove)
            yield

    def _outside(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules outside of the stack."""
        inside = tuple(f"{name}." for name in self._stack)
        for name, module in self._model.named_modules():
            if not f"{name}.".startswith(inside):
                yield name, module

    @contextmanager
    def _own_loaded(self, module: nn.Module, name: str) -> Iterator[None]:
        """A module with its own parameters and buffers, not those of its children."""
        before: list[tuple[dict[str, Any], str, Any]] = []
        with ExitStack() as stack:
            try:
                for held, key, tensor in _own_tensors(module):
                    stored = self._stored.get(f"{name}.{key}" if name else key)
                    if stored is None:
                        stored = self._tied(tensor)
                    before.append((held, key, tensor))
                    if type(module) is nn.Embedding:
                        value = stored.mapped()
                        handle = module.register_forward_hook(_to_float32)
                        stack.callback(handle.remove)
                    else:
                        value = read_float32(stored)
                    if isinstance(tensor, nn.Parameter):
                        value = nn.Parameter(value, requires_grad=False)
                    held[key] = value
                yield
            finally:
                for held, key, tensor in before:
                    held[key] = tensor

    def _tied(self, tensor: Tensor) -> StoredTensor:
        """The stored tensor of another name of a tied weight."""
        named = self._model.named_parameters(remove_duplicate=False)
        return next(self._stored[n] for n, p in named if p is tensor and n in self._stored)


def read_float32(stored: StoredTensor) -> Tensor:
    """A tensor in float32; integers as they are. Raises InvalidFileError for NaN or infinity."""
    value = stored.read()
    if not value.is_floating_point():
        return value
    value = value.to(torch.float32)
    check_finite(stored, value)
    return value


def check_finite(stored: StoredTensor, values: Tensor) -> None:
    """Raise InvalidFileError if a value of a tensor, or of a part of it, is NaN or infinite."""
    if values.numel() and not all(bool(end.isfinite()) for end in values.aminmax()):
        raise InvalidFileError(f"{stored.shard}: tensor {stored.name!r} holds NaN or infinity")


def _own_tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Parameters and persistent buffers of a module: the dict that holds each, its key, itself."""
    for key, parameter in module._parameters.items():
        if parameter is not None:
            yield module._parameters, key, parameter
    for key, buffer in module._buffers.items():
        if buffer is not None and key not in module._non_persistent_buffers_set:
            yield module._buffers, key, buffer


@contextmanager
def _loaded_while_called(
    module: nn.Module, load: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Enter a context before each call of a module, and leave it after the call."""
    with ExitStack() as loaded, ExitStack() as hooks:

        def leave(*_: object) -> None:
            loaded.close()

        def enter(*_: object) -> None:
            leave()  # the last call may have been stopped
            loaded.enter_context(load())

        hooks.callback(module.register_forward_pre_hook(enter).remove)
        hooks.callback(module.register_forward_hook(leave).remove)
        yield


def _to_float32(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The output of an embedding, whose weight is in the dtype of the file."""
    return output.float()
