"""Whether a module of transformers is still what its class builds from its config.

Native stacks take sizes, heads, activations and options from the config and weights from the modules.
Both must tell the same: heads that were cut out of one layer, an activation that was exchanged and an
adapter that was put in between are found by comparing with a module built anew, without memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from sparse_engine.modules.eligible import why_not

# Of attention; another one, registered with transformers, computes what it likes.
ATTENTION = (None, "eager", "sdpa", "flex_attention")
# What changes no result in evaluation mode, or says where a layer lies.
UNREAD = ("training", "gradient_checkpointing", "layer_idx", "layer_id")
# Of embeddings, whose tables may have grown since.
UNREAD_OF_EMBEDDINGS = ("num_embeddings", "padding_idx")
PLAIN = (bool, int, float, str, tuple, type(None))


def why_not_as_built(module: nn.Module, name: str, config: Any, layers: tuple[str, ...]) -> str:
    """Why `module`, called `name`, is not what its class makes of `config`; "" if it is.

    Modules in it are named, with the first difference: a class, a hook, a shape, an option. Linear
    layers may be sparse ones.
    layers: names in `module` of its layers, children of one list; some may have been dropped.

    >>> why_not_as_built(model.bert.encoder, "bert.encoder", model.config, ("layer.0", "layer.1"))
    """
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ATTENTION:
        return f"{name} computes attention by {attention!r}"
    there = dict(module.named_modules(remove_duplicate=False))
    for path, child in there.items():
        told = next(filter(None, map(why_not, _stood_for(child))), "")
        if told:
            return f"{_joined(name, path)} {told}"
    try:
        with torch.device("meta"):
            expected = dict(type(module)(deepcopy(config)).named_modules(remove_duplicate=False))
    except Exception as error:  # constructors raise anything
        return f"{name} cannot be built from its config ({type(error).__name__})"
    holder = layers[0].rpartition(".")[0]
    dropped = {path for path in expected if path.rpartition(".")[0] == holder} - set(layers)
    for path, child in there.items():
        if path not in expected:
            return f"{_joined(name, path)} is not in the model that its config describes"
        told = _difference(_stood_for(child)[-1], expected[path])
        if told:
            return f"{_joined(name, path)} {told}"
    for path in expected:
        left = any(f"{path}.".startswith(f"{layer}.") for layer in dropped)
        if path not in there and not left:
            return f"{_joined(name, path)} is missing"
    return ""


def _joined(name: str, path: str) -> str:
    return f"{name}.{path}" if path else name


def _stood_for(module: Any) -> tuple[nn.Module, ...]:
    """A module, and what it stands in for (nn/native/proxy.py)."""
    return (module, *vars(module).get("_original", ()))


def _difference(module: Any, expected: nn.Module) -> str:
    """In what a module is another than `expected`, to follow its name; or ""."""
    sparse = type(module).__name__ == "SparseLinear"
    given, wanted = _shapes(module), _shapes(expected)
    linear = set(wanted) <= {"weight", "bias"} and len(wanted.get("weight", ())) == 2
    if type(module) is not type(expected) and not (sparse and linear):
        return f"is a {type(module).__name__}, not a {type(expected).__name__}"
    if isinstance(expected, nn.Embedding):
        given, wanted = ({k: v[1:] for k, v in shapes.items()} for shapes in (given, wanted))
    for key in given | wanted:
        if given.get(key) != wanted.get(key):
            return f"has {key} {_size(given.get(key))}, its config says {_size(wanted.get(key))}"
    for key, value in () if sparse else _options(expected):
        found = getattr(module, key, None)
        if found != value:
            return f"has {key} {found!r}, its config says {value!r}"
    return ""


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    if type(module).__name__ == "SparseLinear":
        size = tuple(module.weight.shape)
        found = {"weight": size[::-1] if module.is_conv1d else size}
        return found if module.bias is None else found | {"bias": tuple(module.bias.shape)}
    held = module._parameters.items()
    return {name: tuple(tensor.shape) for name, tensor in held if tensor is not None}


def _options(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Numbers, names and flags that were set on a module."""
    if isinstance(module, nn.Dropout):
        return
    skipped = UNREAD + (UNREAD_OF_EMBEDDINGS if isinstance(module, nn.Embedding) else ())
    for name, value in vars(module).items():
        unread = name.startswith("_") or name in skipped or "dropout" in name
        if not unread and isinstance(value, PLAIN):
            yield name, value


def _size(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))
