"""Allocators: how much of each layer is removed. A new one is a file and an entry in ALLOCATORS."""

from __future__ import annotations

from sparse_engine.named import find
from sparse_engine.pruning.allocators.base import Allocator, Candidate, DenseModel, Setting
from sparse_engine.pruning.allocators.erk import ERK
from sparse_engine.pruning.allocators.lamp import Lamp
from sparse_engine.pruning.allocators.owl import OWL
from sparse_engine.pruning.allocators.raw import Raw
from sparse_engine.pruning.allocators.sensitivity import Sensitivity
from sparse_engine.pruning.allocators.uniform import Uniform
from sparse_engine.pruning.controller.allocator import Controller

ALLOCATORS: tuple[type[Allocator], ...] = (
    Uniform,
    ERK,
    Lamp,
    Raw,
    OWL,
    Sensitivity,
    Controller,
)


def find_allocator(allocator: str | Allocator) -> Allocator:
    """Return the allocator of a text form; an instance is returned as it is.

    Args:
        allocator: such as "uniform", or its alias "local".

    Raises:
        UsageError: if the text is unknown.
    """
    return allocator if isinstance(allocator, Allocator) else find(allocator, ALLOCATORS)


__all__ = [
    "ALLOCATORS",
    "ERK",
    "OWL",
    "Allocator",
    "Candidate",
    "Controller",
    "DenseModel",
    "Lamp",
    "Sensitivity",
    "Setting",
    "Uniform",
    "find_allocator",
]
