"""Which modules may be swapped: those that compute what their class does, and nothing else.

A swap reads a module's weights and never calls it. Whatever would change the call is asked about
here: subclasses, forward hooks, parametrizations, methods set on the instance, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparse_engine.errors import UsageError

# Where the code comes from whose classes are known.
SOURCES = ("torch.", "transformers.", "sparse_engine.")
# Whose hooks collect outputs where they are asked for, and change none: native stacks ask before.
COLLECTING = "transformers.utils.output_capturing"
# Quantised layers of torch, whose weights are packed where nothing but torch reads them.
QUANTISED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torchao.")
# Classes that read or write the weight of a linear layer of theirs, and its name.
READ_WEIGHTS = (
    ("MambaMixer", "dt_proj"),
    ("FalconMambaMixer", "dt_proj"),
    ("JambaMambaMixer", "dt_proj"),
    ("MobileBertLMPredictionHead", "decoder"),
    ("MobileBertLMPredictionHead", "dense"),
    ("RwkvSelfAttention", "output"),
    ("RwkvFeedForward", "value"),
)


def read_weights(model: nn.Module) -> dict[str, str]:
    """Linear layers of `model` whose weight is used in other ways than by calling them: name -> why.

    A sparse layer has no values to read or write. Only classes of transformers are known; where another model
    does so, the layer's `weight` refuses (nn/no_values.py).
    """
    found = {}
    for name, module in model.named_modules():
        for owner, child in READ_WEIGHTS:
            if type(module).__name__ == owner and hasattr(module, child):
                path = f"{name}.{child}" if name else child
                found[path] = (
                    f"its weight is read or written by a {owner}, not only by calling the layer"
                )
    return found


def why_not(module: nn.Module, *kinds: type) -> str:
    """Why `module` must be called rather than read, to follow its name; "" if it may be read.

    kinds: the classes that it may be an instance of, itself and not by a subclass; without any,
    every class of torch, transformers and sparse_engine, and the hooks by which transformers collects
    outputs do not count. Its children are not looked at.

    >>> why_not(torch.nn.Linear(2, 2), torch.nn.Linear)
    ''
    """
    kind = type(module)
    if parametrize.is_parametrized(module):
        return f"has a parametrization of {', '.join(module.parametrizations)}"  # type: ignore
    if not (kind in kinds if kinds else _known(kind)):
        return f"is a {kind.__name__} of {kind.__module__}, which may compute in its own way"
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if hooks if kinds else _changing(hooks):
        return "has forward hooks"
    own = _own_method(module)
    if own:
        return f"has a {own} of its own"
    if not _from_known(kind.forward):
        return f"is a {kind.__name__} whose forward was replaced"
    for name, parameter in module._parameters.items():
        if parameter is not None and not _is_plain(parameter):
            return f"has a {name} that is a {type(parameter).__name__}"
    return ""


def why_not_inside(module: nn.Module, name: str = "") -> str:
    """The first reason of `module`, called `name`, and all modules in it, and whose it is; or ""."""
    for path, child in module.named_modules(prefix=name):
        told = why_not(child)
        if told:
            return f"{path or type(module).__name__} {told}"
    return ""


def check_readable(model: nn.Module) -> None:
    """Raise UsageError where weights cannot be read: on the meta device, offloaded, quantised."""
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith(QUANTISED):
            raise UsageError(
                f"{path or 'the model'} is quantised already ({kind.__module__}.{kind.__name__}): "
                "give the model as it was before; SparseConfig(dtype='int8') stores int8 weights"
            )
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                full = f"{path}.{name}" if path else name
                raise UsageError(
                    f"{full} has no values, it is on the meta device (not loaded, or offloaded): "
                    "load the whole model into memory first"
                )


class Watch:
    """Tells cheaply whether modules are still called as they were when they were looked at.

    Hooks and methods of instances are seen; other modules, weights and classes are not.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """modules: all that a native call stands for."""
        held = tuple(modules)
        self._hooks = [d for m in held for d in (m._forward_hooks, m._forward_pre_hooks)]
        self._own = [vars(m) for m in held]

    def changed(self) -> bool:
        """Whether one of the modules, or torch for all modules, has forward hooks or a forward by now."""
        return (
            any(hooks and _changing(hooks.values()) for hooks in self._hooks)
            or any("forward" in own for own in self._own)
            or bool(nn.modules.module._global_forward_hooks)
            or bool(nn.modules.module._global_forward_pre_hooks)
        )


def _known(kind: type) -> bool:
    return _from_known(kind) and "<locals>" not in kind.__qualname__


def _from_known(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith(SOURCES)


def _changing(hooks: Iterable[Any]) -> bool:
    """Whether one of the hooks may change what comes out."""
    return any(getattr(hook, "__module__", "") != COLLECTING for hook in hooks)


def _own_method(module: nn.Module) -> str:
    """The name of a method that the instance has in place of its class's."""
    kind = type(module)
    return next((n for n in vars(module) if callable(getattr(kind, n, None))), "")


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is an ordinary tensor, or one that torch's 2:4 kernels read."""
    compressed = torch.sparse.SparseSemiStructuredTensor
    return type(parameter) in (nn.Parameter, Tensor) or isinstance(parameter, compressed)
