"""Modifiers: what a recipe is made of; each is a file, and a line of MODIFIERS."""

from __future__ import annotations

from sparse_engine.training.modifier import Modifier
from sparse_engine.training.modifiers.distil import Distil
from sparse_engine.training.modifiers.hold import Hold
from sparse_engine.training.modifiers.prune import Prune
from sparse_engine.training.modifiers.scheduled import Scheduled

MODIFIERS: tuple[type[Modifier], ...] = (Prune, Hold, Distil)

__all__ = ["MODIFIERS", "Distil", "Hold", "Modifier", "Prune", "Scheduled"]
