"""Unrolls the modules of a model for the time of pruning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sparse_engine.pruning.unrolled.attention import ATTENTION
from sparse_engine.pruning.unrolled.base import Kind, ParameterViews, UnrolledForward
from sparse_engine.pruning.unrolled.cells import CELL
from sparse_engine.pruning.unrolled.conv import CONV1D
from sparse_engine.pruning.unrolled.experts import EXPERTS
from sparse_engine.pruning.unrolled.recurrent import NETWORK

KINDS = (NETWORK, CELL, ATTENTION, CONV1D, EXPERTS)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that `unrolled` unrolls; None if it leaves the module as it is."""
    kind = next((kind for kind in KINDS if kind.matches(module)), None)
    return kind if kind is not None and not _refusal(module, kind) else None


def left_alone(model: nn.Module) -> dict[str, str]:
    """Modules of a known kind, or of a subclass, that are not unrolled: the reason by name."""
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        for kind in KINDS:
            if kind.matches(module):
                reason = _refusal(module, kind)
            elif isinstance(module, kind.base):
                base = next(base for base in kind.base if isinstance(module, base))
                reason = f"it is a subclass of torch.nn.{base.__name__}"
            else:
                continue
            if reason:
                reasons[name] = reason
            break
    return reasons


def is_unrolled(module: nn.Module) -> bool:
    """Whether a module runs through linear layers at the moment."""
    return isinstance(module.__dict__.get("forward"), UnrolledForward)


@contextmanager
def unrolled(model: nn.Module) -> Iterator[nn.Module]:
    """Run the modules of all KINDS through linear layers, inside of a `with` block.

    The modules stay in the model, with their attributes and hooks. For the time of the block they
    have the linear layers as children, which hold their parameters, and another forward pass.
    torch's fused encoder layers and nested tensors, which read weights without running the modules,
    are off.
    """
    views = ParameterViews()
    with ExitStack() as stack:
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(views.write_back)
        for module in list(model.modules()):
            if kind := kind_of(module):
                stack.enter_context(_unrolled_module(module, kind, views))
        yield model


@contextmanager
def _unrolled_module(module: nn.Module, kind: Kind, views: ParameterViews) -> Iterator[None]:
    layers = kind.layers(module, views)
    parameters, modules = dict(module._parameters), dict(module._modules)
    replaced = [name for name in kind.parameters(module) if parameters.get(name) is not None]
    # The parameters remain readable as attributes, but the module lists only those of its layers.
    attributes: dict[str, Any] = {name: parameters[name] for name in replaced if name not in layers}
    for layer in layers.values():
        layer.train(module.training)
    try:
        for name in replaced:
            del module._parameters[name]
        module._modules.clear()
        module._modules.update({**layers, **modules})
        module.__dict__.update(attributes, forward=UnrolledForward(kind.forward, module))
        yield
    finally:
        for name in (*attributes, "forward"):
            module.__dict__.pop(name, None)
        module._modules.clear()
        module._modules.update(modules)
        module._parameters.clear()
        module._parameters.update(parameters)


def _refusal(module: Any, kind: Kind) -> str:
    if "forward" in module.__dict__:
        return "its forward pass was replaced"
    return kind.refusal(module)
