"""Which modules may be replaced: those that compute what their class computes, and nothing else.

A replacement reads a module's weights and never calls it. So whatever would change the result of
the call is checked here: subclasses, forward hooks, parametrizations, methods set on the instance,
quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# Packages whose classes are known.
SOURCES = ("torch.", "transformers.", "sparse_engine.")
# Hooks of transformers that collect outputs when asked and change none. Native stacks check
# separately whether outputs are collected.
COLLECTING = "transformers.utils.output_capturing"


def skip_reason(module: nn.Module, *types: type) -> str:
    """Why `module` must be called rather than read; "" if it may be read.

    The reason follows the module's name in a sentence. Children are not checked.

    Args:
        module: any module.
        types: the classes of which `module` may be an instance, exactly, not by a subclass. Without
            any, every class of torch, transformers and sparse_engine is accepted, and hooks by
            which transformers collects outputs are ignored.

    >>> skip_reason(torch.nn.Linear(2, 2), torch.nn.Linear)
    ''
    """
    kind = type(module)
    if parametrize.is_parametrized(module):
        return f"has a parametrization of {', '.join(module.parametrizations)}"  # type: ignore
    if not (kind in types if types else _is_known(kind)):
        return f"is a {kind.__name__} of {kind.__module__}, which may compute in its own way"
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if hooks if types else any_changes_output(hooks):
        return "has forward hooks"
    own = _own_method(module)
    if own:
        return f"has a {own} of its own"
    if not _is_from_known(kind.forward):
        return f"is a {kind.__name__} whose forward was replaced"
    for name, parameter in module._parameters.items():
        if parameter is not None and not _is_plain(parameter):
            return f"has a {name} that is a {type(parameter).__name__}"
    return ""


def skip_reason_inside(module: nn.Module, name: str = "") -> str:
    """The first reason among `module`, called `name`, and all modules in it; "" if there is none.

    The reason begins with the name of the module that has it.
    """
    for path, child in module.named_modules(prefix=name):
        reason = skip_reason(child)
        if reason:
            return f"{path or type(module).__name__} {reason}"
    return ""


def any_changes_output(hooks: Iterable[Any]) -> bool:
    """Whether one of the forward hooks may change a module's output."""
    return any(getattr(hook, "__module__", "") != COLLECTING for hook in hooks)


def _is_known(kind: type) -> bool:
    return _is_from_known(kind) and "<locals>" not in kind.__qualname__


def _is_from_known(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith(SOURCES)


def _own_method(module: nn.Module) -> str:
    """The name of a method that the instance has in place of its class's; "" if there is none."""
    kind = type(module)
    methods = (n for n in vars(module) if callable(getattr(kind, n, None)))
    return next((n for n in methods if n != "forward" or not is_proxied(module)), "")


def is_proxied(module: nn.Module) -> bool:
    """Whether a proxy of `module` runs in place of its forward; see nn/native/proxy.py."""
    proxy = getattr(vars(module).get("forward"), "__self__", None)
    return getattr(proxy, "original", None) is module


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is an ordinary tensor, or one that torch's 2:4 kernels read."""
    compressed = torch.sparse.SparseSemiStructuredTensor
    return type(parameter) in (nn.Parameter, Tensor) or isinstance(parameter, compressed)
