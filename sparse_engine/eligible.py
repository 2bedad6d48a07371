"""Which modules may be swapped: those that compute what their class does, and nothing else.

A swap reads a module's weights and never calls it. Whatever would change the call is asked about
here: subclasses, forward hooks, parametrizations, methods set on the instance, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# Where the code comes from whose classes are known.
SOURCES = ("torch.", "transformers.", "sparse_engine.")
# Of attention; another one, registered with transformers, computes what it likes.
ATTENTION = (None, "eager", "sdpa", "flex_attention")
# What says where a layer lies, or how it is trained, and changes no result.
UNREAD = ("training", "gradient_checkpointing", "layer_idx", "layer_id", "dropout")
PLAIN = (bool, int, float, str, tuple, type(None))


def why_not(module: nn.Module, *kinds: type) -> str:
    """Why `module` must be called rather than read, to follow its name; "" if it may be read.

    kinds: the classes that it may be an instance of, itself and not by a subclass; without any,
    every class of torch, transformers and sparse_engine. Its children are not looked at.

    >>> why_not(torch.nn.Linear(2, 2), torch.nn.Linear)
    ''
    """
    kind = type(module)
    if parametrize.is_parametrized(module):
        return f"has a parametrization of {', '.join(module.parametrizations)}"  # type: ignore
    if not (kind in kinds if kinds else _known(kind)):
        return f"is a {kind.__name__}, which may compute in its own way"
    if module._forward_hooks or module._forward_pre_hooks:
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


def why_not_as_built(module: Any, name: str, config: Any, layers: Iterable[str] = ()) -> str:
    """Why `module`, called `name`, is not what its class makes of `config`; or "".

    Compared are the classes, sizes, shapes and options of everything in it with those of a module
    that is built anew, without memory: heads that were cut out of one layer, an activation that was
    exchanged and an adapter all show. Linear layers may be sparse ones.

    layers: names in `module` of its layers, children of one list; there may be fewer than built.
    """
    told = why_not_inside(module, name)
    if told:
        return told
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ATTENTION:
        return f"{name} computes attention by {attention!r}"
    try:
        with torch.device("meta"):
            built: nn.Module = type(module)(deepcopy(config))
    except Exception as error:  # a constructor may raise anything
        return f"{name} cannot be built from its config: {type(error).__name__}"
    expected = dict(built.named_modules())
    there = dict(module.named_modules(remove_duplicate=False))
    missing = [path for path in expected if path not in there and not _below(path, layers, there)]
    if missing:
        return f"{name}.{missing[0]} is missing"
    for path, child in there.items():
        full = f"{name}.{path}" if path else name
        if path not in expected:
            return f"{full} is not in the model that its config describes"
        told = _difference(child, expected[path])
        if told:
            return f"{full} {told}"
    return ""


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
        """Whether a hook or a `forward` was added to one of the modules, or a hook to all modules."""
        torch_module = nn.modules.module
        return bool(
            any(self._hooks)
            or any("forward" in own for own in self._own)
            or torch_module._global_forward_hooks
            or torch_module._global_forward_pre_hooks
        )


def _known(kind: type) -> bool:
    return _from_known(kind) and "<locals>" not in kind.__qualname__


def _from_known(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith(SOURCES)


def _own_method(module: nn.Module) -> str:
    """The name of a method that the instance has in place of its class's."""
    kind = type(module)
    return next((n for n in vars(module) if callable(getattr(kind, n, None))), "")


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is an ordinary tensor, or one that torch's 2:4 kernels read."""
    compressed = torch.sparse.SparseSemiStructuredTensor
    return type(parameter) in (nn.Parameter, Tensor) or isinstance(parameter, compressed)


def _below(path: str, layers: Iterable[str], there: dict[str, nn.Module]) -> bool:
    """Whether `path` is a layer that the model no longer has, or lies in one."""
    first = next(iter(layers), "")
    holder = first.rpartition(".")[0]
    if not first or not path.startswith(f"{holder}."):
        return False
    return f"{holder}.{path.removeprefix(f'{holder}.').split('.')[0]}" not in there


def _difference(module: Any, expected: Any) -> str:
    """In what a module is another than `expected`, to follow its name; or ""."""
    given, wanted = dict(_shapes(module)), dict(_shapes(expected))
    sparse = _is_sparse_linear(module) and "weight" in wanted and len(wanted["weight"]) == 2
    if type(module) is not type(expected) and not sparse:
        return f"is a {type(module).__name__}, not a {type(expected).__name__}"
    if sparse and module.is_conv1d:
        given["weight"] = given["weight"][::-1]
    for name in given | wanted:
        if given.get(name) != wanted.get(name):
            return f"has {name} {_size(given.get(name))}, its config says {_size(wanted.get(name))}"
    if sparse:
        return ""
    for name, value in _options(expected):
        if getattr(module, name, None) != value:
            return f"has {name} {getattr(module, name, None)!r}, its config says {value!r}"
    return ""


def _is_sparse_linear(module: nn.Module) -> bool:
    return type(module).__name__ == "SparseLinear" and _known(type(module))


def _shapes(module: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    if _is_sparse_linear(module):
        yield "weight", tuple(module.weight.shape)
        if module.bias is not None:
            yield "bias", tuple(module.bias.shape)
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, tuple(parameter.shape)


def _options(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Numbers, names and flags that were set on a module."""
    for name, value in vars(module).items():
        if not name.startswith("_") and name not in UNREAD and isinstance(value, PLAIN):
            yield name, value


def _size(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))
