"""Linear operators as torch sees them, so that models compile, trace and export.

One operator serves every packing of a backend: a packing crosses as the list of its buffers and the
list of its parameters. Exported programs hold the operators' names and signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

library = torch.library.Library("sparse_engine", "FRAGMENT")
LINEAR = (
    "(Tensor x, Tensor[] buffers, int[] params, str packing, Tensor? bias, "
    "Tensor? residual, int out_features, str activation) -> Tensor"
)


def is_plain(x: Tensor) -> bool:
    """Whether nothing traces the call, so that an op may skip torch's dispatcher, half its cost."""
    return (
        type(x) is Tensor
        and not x.is_meta
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
    )


def define_linear(
    name: str,
    dispatch_keys: Sequence[str],
    load: Callable[[str, list[Tensor], list[int], tuple[int, int]], Any],
    run: Callable[[Any, Tensor, Tensor | None, str, Tensor | None], Tensor],
    width: Callable[[str, list[int], int], int] = lambda packing, params, rows: rows,
) -> Callable[[Any, Tensor, Tensor | None, str, Tensor | None], Tensor]:
    """Register `sparse_engine::<name>`: y = act(x Wᵀ + bias) + residual on a packed weight.

    Args:
        name: The operator's name, which exported programs hold.
        dispatch_keys: torch's names of the devices that it serves.
        load: Makes what `run` multiplies from a packing's kind, buffers, parameters and shape.
        run: Computes y from the loaded weight, x, bias, activation and residual.
        width: Output features from a packing's kind, parameters and rows.

    Returns:
        A function that calls the operator with a packing: (packed, x, bias, activation, residual).
    """

    def compute(
        x: Tensor,
        buffers: list[Tensor],
        params: list[int],
        packing: str,
        bias: Tensor | None,
        residual: Tensor | None,
        out_features: int,
        activation: str,
    ) -> Tensor:
        weight = load(packing, buffers, params, (out_features, x.shape[-1]))
        return run(weight, x, bias, activation, residual)

    def infer(
        x: Tensor, buffers: list[Tensor], params: list[int], packing: str, *rest: Any
    ) -> Tensor:
        _, _, out_features, _ = rest
        return x.new_empty(*x.shape[:-1], width(packing, params, out_features))

    library.define(name + LINEAR)
    for key in dispatch_keys:
        library.impl(name, compute, key)
    torch.library.register_fake(f"sparse_engine::{name}", infer, lib=library)
    operator = getattr(torch.ops.sparse_engine, name)

    def call(
        packed: Any, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
    ) -> Tensor:
        buffers, params = list(packed.tensors().values()), list(packed.params().values())
        rows = packed.shape[0]
        return operator(x, buffers, params, packed.kind, bias, residual, rows, activation)

    return call
