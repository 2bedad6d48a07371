"""A tensor that tells its shape and dtype and refuses to be computed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparse_engine.errors import UsageError

# Besides attributes such as dtype, whose getters are all called __get__.
TOLD = ("dim", "element_size", "is_complex", "is_floating_point", "nelement", "numel", "size")


class NoValues(Tensor):
    """Stands for the weight of a sparse layer, on the meta device.

    torch multiplies a meta tensor by an ordinary one without an error, and what comes out is
    whatever memory held: a model that reads the weight of a layer instead of calling the layer must
    be told.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__" or name in TOLD:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise UsageError(
            f"{name} needs the values of a sparse layer's weight, which there are none of: the model "
            "reads that weight instead of calling the layer; keep the layer dense with filter_fn"
        )
