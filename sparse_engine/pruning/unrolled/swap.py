"""Opens a model's modules for pruning, and closes them afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sparse_engine.pruning.unrolled.attention import ATTENTION
from sparse_engine.pruning.unrolled.cells import CELL
from sparse_engine.pruning.unrolled.conv import CONV1D
from sparse_engine.pruning.unrolled.experts import EXPERTS
from sparse_engine.pruning.unrolled.kind import Forward, Kind, Views
from sparse_engine.pruning.unrolled.recurrent import NETWORK

KINDS = (NETWORK, CELL, ATTENTION, CONV1D, EXPERTS)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that `unrolled` opens; None if it leaves it as it is."""
    kind = next((kind for kind in KINDS if kind.matches(module)), None)
    return kind if kind is not None and not _refusal(module, kind) else None


def left_alone(model: nn.Module) -> dict[str, str]:
    """Modules of a kind that is opened, or of a subclass, which are not: name -> why."""
    why: dict[str, str] = {}
    for name, module in model.named_modules():
        for kind in KINDS:
            if kind.matches(module):
                reason = _refusal(module, kind)
            elif isinstance(module, kind.base):
                reason = _subclass(module, kind)
            else:
                continue
            if reason:
                why[name] = reason
            break
    return why


def is_unrolled(module: nn.Module) -> bool:
    """Whether `module` runs through linear layers at the moment."""
    return isinstance(module.__dict__.get("forward"), Forward)


@contextmanager
def unrolled(model: nn.Module) -> Iterator[nn.Module]:
    """`model` with the modules of all KINDS running through linear layers of theirs, until the end.

    The modules themselves stay, with their attributes and hooks; for a while they have the layers
    as children, which hold their parameters, and another forward pass. torch's fused encoder layers
    and nested tensors, which read weights past the modules, are off.
    """
    views = Views()
    with ExitStack() as stack:
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(views.write_back)
        for module in list(model.modules()):
            if kind := kind_of(module):
                stack.enter_context(_opened(module, kind, views))
        yield model


@contextmanager
def _opened(module: nn.Module, kind: Kind, views: Views) -> Iterator[None]:
    layers = kind.layers(module, views)
    parameters, modules = dict(module._parameters), dict(module._modules)
    held = [name for name in kind.parameters(module) if parameters.get(name) is not None]
    # The model's code may still look at them; they are only no parameters a second time.
    aside: dict[str, Any] = {name: parameters[name] for name in held if name not in layers}
    for layer in layers.values():
        layer.train(module.training)
    try:
        for name in held:
            del module._parameters[name]
        module._modules.clear()
        module._modules.update({**layers, **modules})
        module.__dict__.update(aside, forward=Forward(kind.forward, module))
        yield
    finally:
        for name in (*aside, "forward"):
            module.__dict__.pop(name, None)
        module._modules.clear()
        module._modules.update(modules)
        module._parameters.clear()
        module._parameters.update(parameters)


def _refusal(module: Any, kind: Kind) -> str:
    if "forward" in module.__dict__:
        return "its forward pass was replaced"
    return kind.refusal(module)


def _subclass(module: nn.Module, kind: Kind) -> str:
    base = next(base for base in kind.base if isinstance(module, base))
    return f"it is a subclass of torch.nn.{base.__name__}"
