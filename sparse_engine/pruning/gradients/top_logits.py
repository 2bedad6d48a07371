"""A loss of the largest logits, whose squared gradients are the curvature of their squared error.

The labels of a sure classifier are always the same, so their Fisher information is almost zero, and
says little about what remains when many weights are removed. The squared error of the logits that
compete for the answer does not vanish: its Gauss-Newton matrix is E[g g^T] with g the gradient of
sum_k s_k y_k, where y_1 to y_4 are the largest logits of a token, and s random signs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients.loss import Loss
from sparse_engine.pruning.gradients.sampled import output_rows, signed_sum

TOP = 4  # logits of each token


class TopLogitsLoss(Loss):
    """The sum of the largest outputs of every token with random signs; all outputs if no logits."""

    mean_is_zero = True

    def compute(self, model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        with batch.naming_errors(model):
            output = model(*batch.args, **batch.kwargs)
        rows, are_logits = output_rows(output, batch)
        if are_logits:
            rows = [x.topk(min(TOP, x.shape[1]), dim=1).values for x in rows]
        return torch.stack([signed_sum(x, generator) for x in rows]).sum()
