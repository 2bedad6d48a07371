"""Finds the stacks of a model: lists of layers of a Transformer, or of other repeated modules."""

from __future__ import annotations

from torch import nn


def find_stacks(model: nn.Module, linears: list[str]) -> list[list[str]]:
    """Find the modules of each stack that hold linear layers.

    Stacks are the outermost nn.ModuleLists, and the outermost nn.Sequentials whose children have
    one class. A child that is itself a linear layer does not count.

    Args:
        model: any module.
        linears: dotted names of its linear layers.

    Returns:
        By stack, the dotted names of its modules in order.
    """
    stacks: list[list[str]] = []
    above: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or is_below(name, above):
            continue
        prefix = f"{name}." if name else ""
        children = {
            f"{prefix}{child_name}": type(child)
            for child_name, child in module.named_children()
            if any(linear.startswith(f"{prefix}{child_name}.") for linear in linears)
        }
        repeated = len(children) > 1 and len(set(children.values())) == 1
        if children and (isinstance(module, nn.ModuleList) or repeated):
            stacks.append(list(children))
            above += [f"{child}." for child in children]
    return stacks


def is_below(name: str, prefixes: list[str]) -> bool:
    """Whether a dotted name begins with one of these prefixes."""
    return name.startswith(tuple(prefixes))
