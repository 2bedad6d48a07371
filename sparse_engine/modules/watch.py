"""Cheap checks of whether modules have changed since a native view of them was made.

`_core.unchanged` compares a list of entries in one call: submodules and tensors that were replaced,
tensors that were written to. `HookWatch` sees hooks and methods of instances.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sparse_engine.modules.eligible import any_changes_output, is_proxied

# A dict that holds a tensor or module, its key there, and the object. Of a tensor also its address
# and its version, which inference tensors do not have.
Watched = tuple[dict[str, Any], str, Any, int | None, int | None]


def tensor_entry(tensors: dict[str, Any], name: str) -> Watched:
    """The entry of one name in a module's `_parameters` or `_buffers`; its value may be None."""
    tensor: Tensor | None = tensors.get(name)
    if tensor is None:
        return tensors, name, None, None, None
    written = None if tensor.is_inference() else tensor._version
    return tensors, name, tensor, tensor.data_ptr(), written


def child_entries(modules: Iterable[nn.Module]) -> list[Watched]:
    """The entries of all submodules of each module."""
    return [
        (module._modules, name, child, None, None)
        for module in modules
        for name, child in module._modules.items()
    ]


def version(tensor: Tensor | None) -> int:
    """How often a tensor was written to; always 0 for inference tensors, which do not count it."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def same(a: Any, b: Any) -> bool:
    """Whether two nested tuples hold the same objects and integers."""
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return a is b or (type(a) is int and a == b)


def is_dropping(module: nn.Module) -> bool:
    """Whether `module` is a dropout layer in training mode, as for Monte Carlo dropout."""
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0


class HookWatch:
    """Checks for forward hooks, `forward` methods set on instances, and active dropout."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Watch `modules`: all that a native call replaces."""
        watched = tuple(modules)
        self._hooks = [d for m in watched for d in (m._forward_hooks, m._forward_pre_hooks)]
        self._attributes = [vars(m) for m in watched if not is_proxied(m)]
        self._dropouts = [m for m in watched if isinstance(m, nn.modules.dropout._DropoutNd)]

    def changed(self) -> bool:
        """Whether a module has forward hooks or a forward of its own, or torch has global hooks."""
        return (
            any(hooks and any_changes_output(hooks.values()) for hooks in self._hooks)
            or any("forward" in attributes for attributes in self._attributes)
            or bool(nn.modules.module._global_forward_hooks)
            or bool(nn.modules.module._global_forward_pre_hooks)
        )

    def dropping(self) -> bool:
        """Whether a dropout layer is in training mode."""
        return any(map(is_dropping, self._dropouts))
