"""What a native view was made from, so that it can be made anew when anything was replaced or written to.

Noted once, when the view is made; `_core.unchanged` then compares all of it in one call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

# The dict that holds a tensor or module, its name there, the object; of a tensor also where it lies and
# how often it was written to, which inference tensors do not count.
Watched = tuple[dict[str, Any], str, Any, int | None, int | None]


def tensor_entry(tensors: dict[str, Any], name: str) -> Watched:
    """For one name in a module's `_parameters` or `_buffers`; the value may be None."""
    tensor: Tensor | None = tensors.get(name)
    if tensor is None:
        return tensors, name, None, None, None
    version = None if tensor.is_inference() else tensor._version
    return tensors, name, tensor, tensor.data_ptr(), version


def child_entries(modules: Iterable[nn.Module]) -> list[Watched]:
    """The submodules that each module has, under their names."""
    return [
        (module._modules, name, child, None, None)
        for module in modules
        for name, child in module._modules.items()
    ]
