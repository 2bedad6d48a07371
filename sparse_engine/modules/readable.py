"""Which weights can be read: they have values, and only their own layer reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparse_engine.errors import UsageError
from sparse_engine.modules.names import join

# Quantised layers of torch and torchao, whose weights are packed for their own kernels.
QUANTISED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torchao.")
# Classes that read or write the weight of a linear layer of theirs, and its name.
DIRECT_READERS = (
    ("MambaMixer", "dt_proj"),
    ("FalconMambaMixer", "dt_proj"),
    ("JambaMambaMixer", "dt_proj"),
    ("MobileBertLMPredictionHead", "decoder"),
    ("MobileBertLMPredictionHead", "dense"),
    ("RwkvSelfAttention", "output"),
    ("RwkvFeedForward", "value"),
)


def directly_read(model: nn.Module) -> dict[str, str]:
    """Linear layers of `model` whose weight is read or written other than by calling the layer.

    A sparse layer has no dense weight to read or write. Only classes of transformers are listed;
    where another model does so, the layer's `weight` raises (modules/placeholder.py).

    Returns:
        Names of the layers, with the reason for the report.
    """
    found = {}
    for name, module in model.named_modules():
        for owner, child in DIRECT_READERS:
            if type(module).__name__ == owner and hasattr(module, child):
                found[join(name, child)] = (
                    f"its weight is read or written by a {owner}, not only by calling the layer"
                )
    return found


def check_readable(model: nn.Module) -> None:
    """Check that every parameter of `model` has values that can be read.

    Raises:
        UsageError: The model is TorchScript, a module is quantised, or a parameter is lazy, on the
            meta device, sparse or expanded.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError("the model is compiled by torch.jit: give the one that it was made from")
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith(QUANTISED):
            raise UsageError(
                f"{path or 'the model'} is quantised already ({kind.__module__}.{kind.__name__}): "
                "give the model as it was before; SparseConfig(dtype='int8') stores int8 weights"
            )
        for name, parameter in module._parameters.items():
            if is_lazy(parameter):
                raise UsageError(
                    f"{join(path, name)} of a {kind.__name__} has no shape yet: run the model once "
                    "first"
                )
            if parameter is not None and parameter.is_meta:
                raise UsageError(
                    f"{join(path, name)} has no values, it is on the meta device (not loaded, or "
                    "offloaded): load the whole model into memory first"
                )
            if parameter is not None and parameter.layout is not torch.strided:
                raise UsageError(
                    f"{join(path, name)} is a sparse tensor of torch: give a dense one, "
                    "tensor.to_dense()"
                )
            if parameter is not None and _is_expanded(parameter):
                raise UsageError(
                    f"{join(path, name)} has elements that share memory, as expand() makes them: "
                    "give a tensor.clone()"
                )


def _is_expanded(tensor: Tensor) -> bool:
    """Whether one place in memory is several elements of a tensor along a dimension."""
    return any(step == 0 and n > 1 for n, step in zip(tensor.shape, tensor.stride(), strict=True))
