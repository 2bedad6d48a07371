"""A loss of the outputs, the large ones above all, whose squared gradients are a curvature.

The labels of a sure classifier are always the same, so their Fisher information is almost zero, and
says little about what remains when many weights are removed. The squared error of the logits that
compete for the answer does not vanish. So the outputs y of each token are weighted by p = softmax(y
/ T), and E[g g^T] with g the gradient of sum_k s_k p_k^(1/2) y_k, and s random signs, is the
Gauss-Newton matrix of the weighted squared error. Outputs of a small range, such as those of an
embedding, have nearly equal weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients.loss import Loss
from sparse_engine.pruning.gradients.sampled import output_rows, signed_sum

TEMPERATURE = 5.0  # between 2 and 10 the accuracy of a pruned tagger is the same


class WeightedOutputs(Loss):
    """The sum of the outputs of every token, weighted by their size, with random signs."""

    mean_is_zero = True

    def compute(self, model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        with batch.naming_errors(model):
            output = model(*batch.args, **batch.kwargs)
        rows, _ = output_rows(output, batch)
        return torch.stack([signed_sum(_weighted(x.float()), generator) for x in rows]).sum()


def _weighted(outputs: Tensor) -> Tensor:
    """Outputs [tokens, features] times the root of their softmax."""
    return outputs * (outputs.detach() / TEMPERATURE).softmax(-1).sqrt()
