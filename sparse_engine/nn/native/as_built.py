"""Whether a module of transformers is still what its class builds from its config.

Native stacks read activations and options from the config and weights from the modules. Both must
agree. An activation that was exchanged and an adapter that was inserted are found by comparing the
module with one that is built again, on the meta device. Heads and units may have been removed, if
all layers that write and read them agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.models import LayerStack
from sparse_engine.modules.eligible import skip_reason
from sparse_engine.modules.names import join
from sparse_engine.structures import find_fit
from sparse_engine.structures.tables.transformers import stack_sites

# Implementations of attention with known results. Others can be registered with transformers.
ATTENTION = (None, "eager", "sdpa", "flex_attention")
# Attributes that change no result in evaluation mode, or are the index of a layer.
IGNORED = ("training", "gradient_checkpointing", "layer_idx", "layer_id")
# Of embeddings, whose tables may have grown since.
IGNORED_OF_EMBEDDINGS = ("num_embeddings", "padding_idx")
PLAIN = (bool, int, float, str, tuple, type(None))


def difference_from_config(module: nn.Module, stack: LayerStack, config: Any) -> str:
    """In what `module` is not what its class builds from `config`; "" if it is the same.

    The difference begins with the name of the module that has it: another class, a hook, a shape,
    an option. Linear layers may be sparse ones.

    Args:
        module: the module that runs a model's layers.
        stack: its name in the model, and the names of its layers; some of those that the config
            describes may have been dropped.
        config: what transformers builds it from.

    >>> difference_from_config(model.bert.encoder, stack, model.config)
    """
    name, layers = stack.name, stack.local_layers
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ATTENTION:
        return f"{name} computes attention by {attention!r}"
    present = dict(module.named_modules(remove_duplicate=False))
    for path, child in present.items():
        reason = next(filter(None, map(skip_reason, _with_original(child))), "")
        if reason:
            return f"{join(name, path)} {reason}"
    try:
        with torch.device("meta"):
            built = type(module)(deepcopy(config))
    except Exception as error:  # constructors raise anything
        return f"{name} cannot be built from its config ({type(error).__name__})"
    _shrink(built, module, stack)
    expected = dict(built.named_modules(remove_duplicate=False))
    parent = layers[0].rpartition(".")[0]
    dropped = {path for path in expected if path.rpartition(".")[0] == parent} - set(layers)
    for path, child in present.items():
        if path not in expected:
            return f"{join(name, path)} is not in the model that its config describes"
        reason = _difference(_with_original(child)[-1], expected[path])
        if reason:
            return f"{join(name, path)} {reason}"
    for path in expected:
        may_miss = any(f"{path}.".startswith(f"{layer}.") for layer in dropped)
        if path not in present and not may_miss:
            return f"{join(name, path)} is missing"
    return ""


def _shrink(built: nn.Module, module: nn.Module, stack: LayerStack) -> None:
    """Remove as many heads and units from `built` as were removed from `module`."""
    if not set(stack.local_layers) <= dict(built.named_modules()).keys():
        return
    sites = stack_sites(built, replace(stack, layers=stack.local_layers))
    shapes = {
        join(name, key): shape
        for name, child in module.named_modules()
        for key, shape in _shapes(child).items()
    }
    try:
        find_fit(built, shapes, sites=sites).apply_(built)
    except InvalidFileError:  # no whole groups: the comparison names the module
        return


def _with_original(module: Any) -> tuple[nn.Module, ...]:
    """A module, and the one that it replaces if it is a proxy (nn/native/proxy.py)."""
    return (module, *vars(module).get("_original", ()))


def _difference(module: Any, expected: nn.Module) -> str:
    """In what a module differs from `expected`, to follow its name in a sentence; or ""."""
    sparse = type(module).__name__ == "SparseLinear"
    shapes, built = _shapes(module), _shapes(expected)
    linear = set(built) <= {"weight", "bias"} and len(built.get("weight", ())) == 2
    if type(module) is not type(expected) and not (sparse and linear):
        return f"is a {type(module).__name__}, not a {type(expected).__name__}"
    if isinstance(expected, nn.Embedding):
        shapes, built = ({k: v[1:] for k, v in sizes.items()} for sizes in (shapes, built))
    for key in shapes | built:
        if shapes.get(key) != built.get(key):
            return f"has {key} {_size(shapes.get(key))}, by its config {_size(built.get(key))}"
    for key, value in () if sparse else _options(expected):
        found = getattr(module, key, None)
        if found != value:
            return f"has {key} {found!r}, by its config {value!r}"
    return ""


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters and buffers; of a sparse layer those of the dense one."""
    if type(module).__name__ == "SparseLinear":
        size = tuple(module.weight.shape)
        found = {"weight": size[::-1] if module.is_conv1d else size}
        return found if module.bias is None else found | {"bias": tuple(module.bias.shape)}
    tensors: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}


def _options(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Numbers, names and flags that were set on a module."""
    if isinstance(module, nn.Dropout):
        return
    ignored = IGNORED + (IGNORED_OF_EMBEDDINGS if isinstance(module, nn.Embedding) else ())
    for name, value in vars(module).items():
        skipped = name.startswith("_") or name in ignored or "dropout" in name
        if not skipped and isinstance(value, PLAIN):
            yield name, value


def _size(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))
