"""Pruning while training: a recipe of modifiers, and the Pruner that runs it in any loop."""

from __future__ import annotations

from sparse_engine.training.modifiers import (
    L0,
    MODIFIERS,
    Cut,
    Distil,
    Freeze,
    Hold,
    Lasso,
    LearningRate,
    Modifier,
    Movement,
    Prune,
    Regrow,
    SnipMomentum,
    SoftMovement,
)
from sparse_engine.training.pruner import Pruner
from sparse_engine.training.recipe import TrainingRecipe, read_training_recipe
from sparse_engine.training.report import Event, TrainingReport
from sparse_engine.training.schedules import SCHEDULES, Schedule

__all__ = [
    "L0",
    "MODIFIERS",
    "SCHEDULES",
    "Cut",
    "Distil",
    "Event",
    "Freeze",
    "Hold",
    "Lasso",
    "LearningRate",
    "Modifier",
    "Movement",
    "Prune",
    "Pruner",
    "Regrow",
    "Schedule",
    "SnipMomentum",
    "SoftMovement",
    "TrainingRecipe",
    "TrainingReport",
    "read_training_recipe",
]
