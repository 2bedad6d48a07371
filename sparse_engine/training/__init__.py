"""Pruning while training: a recipe of modifiers, and the Pruner that runs it in any loop."""

from __future__ import annotations

from sparse_engine.training.modifiers import (
    MODIFIERS,
    Distil,
    Freeze,
    Hold,
    LearningRate,
    Modifier,
    Prune,
    Regrow,
)
from sparse_engine.training.pruner import Pruner
from sparse_engine.training.recipe import TrainingRecipe, read_training_recipe
from sparse_engine.training.report import Event, TrainingReport
from sparse_engine.training.schedules import SCHEDULES, Schedule

__all__ = [
    "MODIFIERS",
    "SCHEDULES",
    "Distil",
    "Event",
    "Freeze",
    "Hold",
    "LearningRate",
    "Modifier",
    "Prune",
    "Pruner",
    "Regrow",
    "Schedule",
    "TrainingRecipe",
    "TrainingReport",
    "read_training_recipe",
]
