"""A tensor that tells its shape, dtype and device and refuses to be computed with or written to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError

# Besides attributes such as dtype, whose getters are all called __get__.
TOLD = (
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


class NoValues(Tensor):
    """Stands for the weight of a sparse layer: on the meta device, but it tells the layer's own, where
    models send their inputs (`x.to(layer.weight.device)`).

    torch multiplies a meta tensor by an ordinary one without an error, and what comes out is
    whatever memory held; writing to one, as merging an adapter does, changes nothing. Whoever reads
    or writes the weight of a layer instead of calling the layer must be told.
    """

    of: torch.device

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
                device = args[0].of
                return device if attribute == "device" else device.type == attribute[3:]
        if name == "__get__" or name in TOLD:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise UsageError(
            f"{name} needs the values of a sparse layer's weight, which there are none of: the model "
            "reads that weight instead of calling the layer; keep the layer dense with filter_fn"
        )


def no_values(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a sparse layer shows as its weight. In a graph it is a plain tensor on the meta device,
    which torch's own checks refuse there.
    """
    weight = torch.empty(tuple(size), dtype=dtype, device="meta")
    if torch.compiler.is_compiling():
        return weight
    told = weight.as_subclass(NoValues)
    told.of = device
    return told
