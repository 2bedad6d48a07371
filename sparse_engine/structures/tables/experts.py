"""Mixtures of experts in fused parameters: the units of each expert, and whole experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sparse_engine.modules.experts import (
    DOWN,
    expert_linears,
    is_experts,
    refusal,
    up_name,
)
from sparse_engine.modules.names import join
from sparse_engine.structures.resize.router import is_router
from sparse_engine.structures.site import Site, Size

# Attributes of modules of experts that count units; of these modules and of routers, experts.
UNITS = ("intermediate_dim", "intermediate_size", "expert_dim")
EXPERTS = ("num_experts", "num_local_experts")
# torch's grouped product, which runs all experts at once, needs rows of a multiple of 16 bytes.
MULTIPLE = 8


def sites(model: nn.Module) -> Iterator[Site]:
    """The sites of all fused experts; those that cannot run as linear layers have a refusal."""
    for name, module in model.named_modules():
        if not is_experts(module):
            continue
        reason = refusal(module)
        if reason:
            yield Site(name, "unit", 0, {}, {}, refusal=f"{name}: {reason}")
            yield Site(name, "expert", 0, {}, {}, refusal=f"{name}: {reason}")
            continue
        yield from _units(name, module)
        yield _experts(model, name, module)


def _units(name: str, module: Any) -> Iterator[Site]:
    """The units of each expert; all experts of a module have equally many."""
    first = str(up_name(module))
    linears = expert_linears(module)
    width = linears[DOWN][0].in_features
    units = torch.arange(width)
    gates = linears[first][0].out_features // width
    # Gates and their factors are halves of the rows, or take turns.
    halves = getattr(module, "is_concatenated", True)
    rows = units.repeat(gates) if halves else units.repeat_interleave(gates)
    own_gate = hasattr(module, "_apply_gate") and not hasattr(module, "is_concatenated")
    kind = type(module).__name__
    reason = f"{name}: it is not known which rows a {kind} gates together" if own_gate else ""
    sizes = _sizes(name, module, UNITS, width)
    for expert in range(len(linears[first])):
        up, down = f"{name}.{first}.{expert}", f"{name}.{DOWN}.{expert}"
        yield Site(
            up,
            "unit",
            width,
            {up: rows},
            {down: units},
            sizes=sizes,
            even=name,
            refusal=reason,
            multiple=MULTIPLE,
        )


def _experts(model: nn.Module, name: str, module: Any) -> Site:
    """The experts of a module; the router loses their rows, and chooses among those left."""
    first, linears = str(up_name(module)), expert_linears(module)
    count = len(linears[first])
    parent = name.rpartition(".")[0]
    routers = [
        join(parent, child)
        for child, other in model.get_submodule(parent).named_children()
        if is_router(other, count)
    ]
    if len(routers) != 1:
        reason = f"{name}: it is not known which layer chooses the experts"
        return Site(name, "expert", 0, {}, {}, refusal=reason)
    router: Any = model.get_submodule(routers[0])
    members = [torch.full((layer.out_features,), i) for i, layer in enumerate(linears[first])]
    columns = [torch.full((layer.in_features,), i) for i, layer in enumerate(linears[DOWN])]
    return Site(
        name,
        "expert",
        count,
        {f"{name}.{first}.{i}": of for i, of in enumerate(members)},
        {f"{name}.{DOWN}.{i}": of for i, of in enumerate(columns)},
        between={routers[0]: torch.arange(count)},
        sizes=(*_sizes(name, module, EXPERTS, count), *_sizes(routers[0], router, EXPERTS, count)),
        least=int(router.top_k),
        rerouted=True,
    )


def _sizes(name: str, module: nn.Module, names: tuple[str, ...], value: int) -> tuple[Size, ...]:
    """The attributes of a module that have the expected value."""
    return tuple(Size(name, each, 1) for each in names if getattr(module, each, None) == value)
