"""Gradients of a loss over calibration batches, for the weights and the outputs of layers."""

from sparse_engine.pruning.gradients.loss import Loss, LossFunction, make_loss
from sparse_engine.pruning.gradients.outputs import LayerTokens, output_gradients

__all__ = ["LayerTokens", "Loss", "LossFunction", "make_loss", "output_gradients"]
