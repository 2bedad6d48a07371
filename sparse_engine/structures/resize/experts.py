"""Fused experts of transformers: gate_up_proj.3 and down_proj.3 are the layers of expert 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparse_engine.modules.experts import DOWN, expert_linears, is_experts, is_transposed, up_name
from sparse_engine.structures.resize.base import Kept, select


def matches(module: nn.Module) -> bool:
    """Whether the module holds fused experts."""
    return is_experts(module)


def resize(module: Any, kept: dict[str, Kept]) -> None:
    """Keep rows and columns of layers; an expert whose first layer keeps no row goes as a whole.

    All experts that stay keep equally many.
    """
    first, transposed = str(up_name(module)), is_transposed(module)
    linears = expert_linears(module)
    stay = [
        i
        for i in range(len(linears[first]))
        if (rows := kept.get(f"{first}.{i}", Kept()).rows) is None or len(rows)
    ]
    for name in (first, DOWN):
        weights, biases = [], []
        for i in stay:
            of, layer = kept.get(f"{name}.{i}", Kept()), linears[name][i]
            weight = select(select(layer.weight.detach(), 0, of.rows), 1, of.columns)
            weights.append(weight.t() if transposed else weight)
            if layer.bias is not None:
                biases.append(select(layer.bias.detach(), 0, of.rows))
        _replace(module, name, torch.stack(weights))
        if biases:
            _replace(module, f"{name}_bias", torch.stack(biases))


def _replace(module: nn.Module, name: str, value: torch.Tensor) -> None:
    old = module.get_parameter(name)
    setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))
