"""A tensor with a shape, dtype and device but no values, in place of a sparse layer's weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError

# Functions that need no values. Attributes such as dtype have getters that are all called __get__.
ALLOWED = (
    "__len__",
    "__repr__",
    "dim",
    "element_size",
    "is_complex",
    "is_contiguous",
    "is_floating_point",
    "nelement",
    "numel",
    "size",
    "stride",
)


class PlaceholderWeight(Tensor):
    """A meta tensor that reports the device of its layer, and raises where values are needed.

    Models read `layer.weight.device` to move their inputs there. torch multiplies a meta tensor by
    an ordinary one without an error and returns uninitialised memory; writing to one, as merging an
    adapter does, has no effect. So any use of the values raises UsageError.
    """

    layer_device: torch.device

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            attribute = getattr(getattr(func, "__self__", None), "__name__", "")
            if attribute == "data":
                return args[0]
            if attribute in ("device", "is_cpu", "is_cuda"):
                device = args[0].layer_device
                return device if attribute == "device" else device.type == attribute[3:]
        if name == "__get__" or name in ALLOWED:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise UsageError(
            f"{name} needs the values of a sparse layer's weight, which has none: the model reads "
            "that weight instead of calling the layer; keep the layer dense with filter_fn"
        )


def placeholder_weight(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The `weight` of a sparse layer.

    In a graph it is a plain tensor on the meta device, which torch's own checks reject there.

    Args:
        size: of the dense weight.
        dtype: of the dense weight.
        device: where the layer is.
    """
    weight = torch.empty(tuple(size), dtype=dtype, device="meta")
    if torch.compiler.is_compiling():
        return weight
    placeholder = weight.as_subclass(PlaceholderWeight)
    placeholder.layer_device = device
    return placeholder
