"""Routers of transformers that choose the experts of the largest logits: a row for each expert."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.structures.resize.base import Kept, select

# Classes that compute softmax(x Wᵀ) and choose the largest of all experts.
ROUTERS = ("MixtralTopKRouter", "OlmoeTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter")


def matches(module: nn.Module) -> bool:
    """Whether the module is a router of a known class."""
    return type(module).__name__ in ROUTERS


def is_router(module: nn.Module, experts: int) -> bool:
    """Whether the module is a router of a known class for so many experts."""
    weight: Any = getattr(module, "weight", None)
    return matches(module) and weight is not None and len(weight) == experts


def resize(module: Any, kept: dict[str, Kept]) -> None:
    """Keep rows of the router, whose own name is ""."""
    module.weight = select(module.weight, 0, kept[""].rows)
