"""Gradients of a loss over calibration batches, for the weights and the outputs of layers."""

from sparse_engine.pruning.gradients.groups import group_gradients
from sparse_engine.pruning.gradients.loss import (
    Loss,
    LossFunction,
    check_loss,
    check_mean,
    make_loss,
)
from sparse_engine.pruning.gradients.outputs import LayerTokens, output_gradients
from sparse_engine.pruning.gradients.statistics import GradientStatistics

__all__ = [
    "GradientStatistics",
    "LayerTokens",
    "Loss",
    "LossFunction",
    "check_loss",
    "check_mean",
    "group_gradients",
    "make_loss",
    "output_gradients",
]
