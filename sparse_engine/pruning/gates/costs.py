"""What removals cost a recurrent layer: `RemovalCosts` with one H for each set of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_engine.pruning.gates.moments import GateMoments
from sparse_engine.pruning.recovery.removal import RemovalCosts
from sparse_engine.pruning.statistics.system import RIDGE


class GateCosts:
    """Least-squares fits of [ih | hh] on any supports, and what each tile of them is worth.

    Args:
        weight: [rows, features + units], [ih | hh].
        biases: [rows, 2], or [rows, 0]. They are fitted with the weights and never removed.
        moments: of the inputs.
        span: number of columns of a tile, which divides features and units.
    """

    def __init__(self, weight: Tensor, biases: Tensor, moments: GateMoments, span: int) -> None:
        self._biases = biases.shape[1]
        self._set_size = moments.set_size
        self._scales = moments.scales()[:, None]
        target = torch.cat([weight, biases], 1)
        self._hessians = [with_ridge(hessian) for hessian in moments.hessians]
        self._targets = target.split(moments.set_size)
        self._costs = [
            RemovalCosts(rows, hessian, span)
            for rows, hessian in zip(self._targets, self._hessians, strict=True)
        ]

    def of(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The fit and the scores on supports, bool [rows, features + units]; see `RemovalCosts`.

        The scores are weighted by the importance of each row, so that all rows can compete.
        """
        parts = [costs.of(rows) for costs, rows in self._with_support(keep)]
        fitted, score = (torch.cat(part) for part in zip(*parts, strict=True))
        width = keep.shape[1]
        return fitted[:, :width], score[:, :width] * self._scales

    def fit(self, keep: Tensor) -> Tensor:
        """The fit alone, [rows, features + units]."""
        return self.fit_with_biases(keep)[0]

    def fit_with_biases(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The fit [rows, features + units], and the biases [rows, 2] that belong to it."""
        fitted = torch.cat([costs.fit(rows) for costs, rows in self._with_support(keep)])
        return fitted[:, : keep.shape[1]], fitted[:, keep.shape[1] :]

    def error(self, weight: Tensor, biases: Tensor) -> float:
        """The error of the pre-activations relative to the dense ones, weighted by their gradients.

        Args:
            weight: [rows, features + units].
            biases: [rows, 2], or [rows, 0].
        """
        difference, full = 0.0, 0.0
        rows = torch.cat([weight, biases], 1).split(self._set_size)
        scales = self._scales.split(self._set_size)
        for v, t, hessian, scale in zip(rows, self._targets, self._hessians, scales, strict=True):
            difference += float(scale.mT @ (((v - t) @ hessian) * (v - t)).sum(1))
            full += float(scale.mT @ ((t @ hessian) * t).sum(1))
        return (difference / max(full, 1e-30)) ** 0.5

    def _with_support(self, keep: Tensor) -> Iterator[tuple[RemovalCosts, Tensor]]:
        always = keep.new_ones(len(keep), self._biases)
        supports = torch.cat([keep, always], 1).split(self._set_size)
        return zip(self._costs, supports, strict=True)


def with_ridge(hessian: Tensor) -> Tensor:
    """H + lambda I; the identity for rows that nothing depends on."""
    ridge = RIDGE * float(hessian.diagonal().mean()) or 1.0
    return hessian + ridge * torch.eye(len(hessian))
