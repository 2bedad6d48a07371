"""Second moments of [x; h] for the gates of a recurrent layer, weighted by gradients.

A change of the pre-activation of row r at step t changes the outputs by about its gradient g_rt. So
row r is fitted with

    H_r = sum_t z_rt z_rt^T,    z_rt = [x_t a; h_t b; a; b],    a = |a_rt|^(1/2), b = |b_rt|^(1/2)

where a_rt and b_rt are the gradients for the outputs of the input and of the recurrent matrix. They
differ only in the candidate gate of a GRU. The last two inputs are those of the two biases. A
layer by itself has neither h nor b. The
gradients are the root of the sum of squares over several draws of a loss. Their magnitude in place
of their square weighs steps more evenly, which keeps more accuracy when many weights are removed.

Rows share one H, with the mean of their weights, if one for each row would take too much memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_ELEMENTS = 1 << 26  # of all H of one pair (256 MB)


class GateMoments:
    """H of every set of adjacent rows, and the weight of every row within its set.

    Args:
        rows: number of rows, gates x units.
        features: number of inputs x.
        units: number of states h.
        biases: how many there are, 0 to 2.
        max_elements: the sets are as small as this number of elements of all H allows.
    """

    def __init__(
        self,
        rows: int,
        features: int,
        units: int,
        biases: int,
        max_elements: int = MAX_ELEMENTS,
    ) -> None:
        width = features + units + biases
        sets = min(max(max_elements // width**2, 1), rows)
        self.set_size = -(-rows // sets)
        self._biases = biases
        self._totals = torch.zeros(rows)
        self.hessians = torch.zeros(-(-rows // self.set_size), width, width)

    def add(self, x: Tensor, h: Tensor, a: Tensor, b: Tensor) -> None:
        """Add the tokens of a batch.

        Args:
            x: [tokens, features], inputs.
            h: [tokens, units], states before the step.
            a: [tokens, rows], magnitudes of the gradients for the outputs of the input matrix.
            b: the same for the outputs of the recurrent matrix.
        """
        if not len(x):
            return
        self._totals += (a + b).sum(0)
        for index, (in_a, in_b) in enumerate(
            zip(a.split(self.set_size, 1), b.split(self.set_size, 1), strict=True)
        ):
            wx, wh = (part.mean(1, keepdim=True).sqrt() for part in (in_a, in_b))
            parts = [x * wx, h * wh, *(wx, wh)[: self._biases]]
            z = torch.cat(parts, 1)
            self.hessians[index].addmm_(z.T, z)

    def scales(self) -> Tensor:
        """The weight of each row relative to the mean of its set, [rows]."""
        means = torch.cat(
            [part.mean().expand(len(part)) for part in self._totals.split(self.set_size)]
        )
        return torch.where(means > 0, self._totals / means.clamp_min(1e-38), 0)
