"""Modifiers: what a recipe is made of; each is a file, and a line of MODIFIERS."""

from __future__ import annotations

from sparse_engine.training.modifier import Modifier
from sparse_engine.training.modifiers.distil import Distil
from sparse_engine.training.modifiers.freeze import Freeze
from sparse_engine.training.modifiers.hold import Hold
from sparse_engine.training.modifiers.learning_rate import LearningRate
from sparse_engine.training.modifiers.prune import Prune
from sparse_engine.training.modifiers.regrow import Regrow
from sparse_engine.training.modifiers.scheduled import Scheduled

MODIFIERS: tuple[type[Modifier], ...] = (Prune, Hold, Regrow, Freeze, LearningRate, Distil)

__all__ = [
    "MODIFIERS",
    "Distil",
    "Freeze",
    "Hold",
    "LearningRate",
    "Modifier",
    "Prune",
    "Regrow",
    "Scheduled",
]
