"""Native layers: proxies that run the layers of a known family in one call."""

from __future__ import annotations

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import LayerStack, find_family
from sparse_engine.nn import NativeDecoder, NativeEncoder, NativeStack, SparseLinear, SparseRNNBase
from sparse_engine.nn.native.as_built import difference_from_config
from sparse_engine.nn.native.fused import FusedProjections, SparseGatedMLP
from sparse_engine.nn.native.stack import native_stacks


def install_native(model: nn.Module) -> str:
    """Let the library run the layers of `model` in one call, in place.

    Names of parameters and buffers stay what they are. Nothing is done before a linear layer is
    sparse.

    Returns:
        What was done, or why not; one line for reports.
    """
    installed = [stack for _, stack in native_stacks(model)]
    if installed:
        return _refresh(model, installed)
    if not any(isinstance(module, SparseLinear) for module in model.modules()):
        return "layers run one by one: none of them is sparse"
    networks = [name for name, m in model.named_modules() if isinstance(m, SparseRNNBase)]
    family = find_family(model)
    if family is None and networks:
        names = ", ".join(networks)
        return f"recurrent networks run natively, whole sequences in one call: {names}"
    if family is None:
        return "layers run one by one: the model is of no family that has native layers"
    try:
        stacks = family.stacks(model)
    except UnsupportedModelError as error:
        return f"layers run one by one: {error}"
    originals = [model.get_submodule(stack.name) for stack in stacks]
    # The encoder and the decoder of one model have a config each.
    configs = [getattr(original, "config", model.config) for original in originals]
    for stack, original, config in zip(stacks, originals, configs, strict=True):
        reason = difference_from_config(original, stack, config)
        if reason:
            return f"layers run one by one: {reason}"
    for stack, original, config in zip(stacks, originals, configs, strict=True):
        proxy = NativeDecoder if stack.causal else NativeEncoder
        proxy(original, stack, config).install(model, stack.name)
        _fuse_projections(model, stack)
    counts = ", ".join(
        f"{stack.name}: {len(stack.layers)}" if stack.name else str(len(stack.layers))
        for stack in stacks
    )
    one = len(stacks) == 1 and len(stacks[0].layers) == 1
    layers = "layer runs" if one else "layers run"
    return f"{counts} {family.name} {layers} natively, in one call; on a GPU one by one"


def _refresh(model: nn.Module, installed: list[NativeStack]) -> str:
    """Let proxies see weights that were swapped below them."""
    names = {name for name, _ in model.named_modules()}
    for proxy in installed:
        proxy.reset()
        if proxy.stack.name in names:  # else `model` is a part of the model that it was made for
            _fuse_projections(model, proxy.stack)
    reason = next(filter(None, (proxy.changed() for proxy in installed)), "")
    return f"layers run one by one: {reason}" if reason else "the layers run natively already"


def _fuse_projections(model: nn.Module, stack: LayerStack) -> None:
    """Let projections of the same x be one launch on a GPU: query, key and value; gate and up."""
    attention, feed_forward = stack.names.attention, stack.names.feed_forward
    for layer, geometry in zip(stack.layers, stack.geometry, strict=True):
        projections = (attention.query, attention.key, attention.value)
        linears = [model.get_submodule(f"{layer}.{name}") for name in projections if name]
        sparse = [linear for linear in linears if isinstance(linear, SparseLinear)]
        if len({id(linear) for linear in sparse}) == 3:
            FusedProjections(sparse)
        if feed_forward.gate is None:
            continue
        parent, _, gate = feed_forward.gate.rpartition(".")
        up, down = (
            name.removeprefix(f"{parent}.") for name in (feed_forward.up, feed_forward.down)
        )
        if "." in up + down:  # not children of one module
            continue
        grandparent, _, child = f"{layer}.{parent}".rpartition(".")
        mlp = model.get_submodule(f"{layer}.{parent}")
        if not isinstance(mlp, SparseGatedMLP):
            fused = SparseGatedMLP(mlp, gate, up, down, geometry.activation)
            setattr(model.get_submodule(grandparent), child, fused)


def remove_native(model: nn.Module) -> None:
    """Put the modules back that `install_native` replaced."""
    for name, stack in native_stacks(model):
        stack.remove(model, name)
    for name, module in list(model.named_modules()):
        if isinstance(module, SparseLinear):
            module.fused = None
        if isinstance(module, SparseGatedMLP):
            module.remove(model, name)
