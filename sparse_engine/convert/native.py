"""Whole blocks natively: swap the layers of a known model family for one native call, and back."""

from __future__ import annotations

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import LayerStack, find_family
from sparse_engine.modules.as_built import difference_from_config
from sparse_engine.nn import NativeDecoder, NativeEncoder, NativeStack, SparseLinear, SparseRNNBase
from sparse_engine.nn.native.fused import FusedProjections, SparseGatedMLP


def install_native(model: nn.Module) -> str:
    """Let the library run the layers of `model` in one call, in place; says what was done or why not.

    Names of parameters and buffers stay what they are. Done once a linear layer is sparse.
    """
    known = [module for module in model.modules() if isinstance(module, NativeStack)]
    below = {name for name, _ in model.named_modules()}
    for module in known:
        module.reset()
        if module.stack.name in below:  # its names are those below this model
            _join(model, module.stack)
    if known:
        told = next(filter(None, (module.changed() for module in known)), "")
        return f"layers run one by one: {told}" if told else "the layers run natively already"
    if not any(isinstance(module, SparseLinear) for module in model.modules()):
        return "layers run one by one: none of them is sparse"
    networks = [name for name, m in model.named_modules() if isinstance(m, SparseRNNBase)]
    family = find_family(model)
    if family is None and networks:
        names = ", ".join(networks)
        return f"recurrent networks run natively, whole sequences in one call: {names}"
    if family is None:
        return "layers run one by one: the model is of no family that has native blocks"
    try:
        stacks = family.stacks(model)
    except UnsupportedModelError as error:
        return f"layers run one by one: {error}"
    if not all(stack.name for stack in stacks):
        return "layers run one by one: the model is a bare decoder, load it with its head"
    originals = [model.get_submodule(stack.name) for stack in stacks]
    # Decoders of two stacks have a config each.
    configs = [getattr(original, "config", model.config) for original in originals]
    for stack, original, config in zip(stacks, originals, configs, strict=True):
        told = difference_from_config(original, stack.name, config, stack.layers)
        if told:
            return f"layers run one by one: {told}"
    for stack, original, config in zip(stacks, originals, configs, strict=True):
        parent, _, child = stack.name.rpartition(".")
        native = NativeDecoder if stack.causal else NativeEncoder
        setattr(model.get_submodule(parent), child, native(original, stack, config))
        _join(model, stack)
    told = ", ".join(f"{stack.name}: {len(stack.blocks)}" for stack in stacks)
    return f"{told} {family.name} layers run natively, in one call; on a GPU one by one"


def _join(model: nn.Module, stack: LayerStack) -> None:
    """Let what reads the same x run in one launch on a GPU: query, key and value, gate and up."""
    names = stack.layer
    for block in stack.blocks:
        sides = (names.query, names.key, names.value)
        linears = [model.get_submodule(f"{block}.{side}") for side in sides if side is not None]
        sparse = [linear for linear in linears if isinstance(linear, SparseLinear)]
        if len({id(linear) for linear in sparse}) == 3:
            FusedProjections(sparse)
        if names.gate is None:
            continue
        parent, _, gate = names.gate.rpartition(".")
        up, down = (name.removeprefix(f"{parent}.") for name in (names.up, names.down))
        if "." in up + down:  # they are no neighbours
            continue
        grandparent, _, child = f"{block}.{parent}".rpartition(".")
        mlp = model.get_submodule(f"{block}.{parent}")
        if isinstance(mlp, SparseGatedMLP):
            continue
        joined = SparseGatedMLP(mlp, gate, up, down, stack.activation)
        setattr(model.get_submodule(grandparent), child, joined)


def remove_native(model: nn.Module) -> None:
    """Put the modules back that `install_native` stands in for."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SparseLinear):
            module.fused = None
        if isinstance(module, NativeStack | SparseGatedMLP):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.original)
