"""Modifiers: what a recipe is made of; each is a file, and a line of MODIFIERS."""

from __future__ import annotations

from sparse_engine.training.modifier import Modifier
from sparse_engine.training.modifiers.cut import Cut
from sparse_engine.training.modifiers.distil import Distil
from sparse_engine.training.modifiers.freeze import Freeze
from sparse_engine.training.modifiers.hold import Hold
from sparse_engine.training.modifiers.l0 import L0
from sparse_engine.training.modifiers.lasso import Lasso
from sparse_engine.training.modifiers.learning_rate import LearningRate
from sparse_engine.training.modifiers.movement import Movement
from sparse_engine.training.modifiers.prune import Prune
from sparse_engine.training.modifiers.regrow import Regrow
from sparse_engine.training.modifiers.scheduled import Scheduled
from sparse_engine.training.modifiers.snip_momentum import SnipMomentum
from sparse_engine.training.modifiers.soft_movement import SoftMovement

MODIFIERS: tuple[type[Modifier], ...] = (
    Cut,
    Prune,
    Hold,
    Regrow,
    Freeze,
    LearningRate,
    Distil,
    Movement,
    SoftMovement,
    SnipMomentum,
    Lasso,
    L0,
)

__all__ = [
    "L0",
    "MODIFIERS",
    "Cut",
    "Distil",
    "Freeze",
    "Hold",
    "Lasso",
    "LearningRate",
    "Modifier",
    "Movement",
    "Prune",
    "Regrow",
    "Scheduled",
    "SnipMomentum",
    "SoftMovement",
]
