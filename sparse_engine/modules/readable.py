"""Which weights can be read: they have values, and only their own layer reads them."""

from __future__ import annotations

from torch import nn
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
        UsageError: A module is quantised, or a parameter is lazy or on the meta device.
    """
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
