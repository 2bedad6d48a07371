"""What the removal of weights costs a layer, exactly: the scores of optimal brain surgeon."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.recovery.cholesky import factorise, inverse_of_lower
from sparse_engine.pruning.recovery.least_squares import refit
from sparse_engine.pruning.recovery.supports import SupportBatch, for_each_support


class RemovalCosts:
    """Least-squares fits of a weight on any supports, and what each tile of them is worth.

    Args:
        target: [out, in], T.
        hessian: [in, in], positive definite.
        span: number of columns of a tile; tiles begin at its multiples.
    """

    def __init__(self, target: Tensor, hessian: Tensor, span: int = 1) -> None:
        self._target, self._rhs = target, target @ hessian
        self._hessian = hessian
        # In float64, because removals subtract from it.
        self._inverse = torch.cholesky_inverse(factorise(hessian.double())).to(hessian.dtype)
        self._span = span

    def of(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The fit v = argmin |(v - t) H^(1/2)| on the support of each row, and its scores.

        For the weights C of one tile in a row, the sum of the scores is the increase of that
        minimum, squared, if they are removed and the others are fitted again: v_C (H_SS^-1)_CC^-1
        v_C^T.

        Args:
            keep: bool [out, in].

        Returns:
            The fit and the scores, [out, in], zero outside of the supports.
        """
        fitted, score = torch.zeros_like(self._rhs), torch.zeros_like(self._rhs)

        def solve(kept: SupportBatch) -> None:
            removed = kept.complement(keep.shape[1])
            values, tiles = (
                self._from_inverse(kept, removed)
                if _few(removed.width, kept.width)
                else self._from_hessian(kept)
            )
            kept.write(values, fitted)
            kept.write(values * _solve_tiles(tiles, values), score)

        for_each_support(keep, solve, self._span)
        return fitted, score

    def fit(self, keep: Tensor) -> Tensor:
        """The fit alone."""
        return refit(self._rhs, self._hessian, keep)

    def _from_hessian(self, kept: SupportBatch) -> tuple[Tensor, Tensor]:
        """v and the tiles of H_SS^-1, with H_SS = L L^T, from L^-1.

        Returns:
            v [batch, width, rows], and the tiles on the diagonal [batch, tiles, span, span].
        """
        factor = factorise(kept.submatrices(self._hessian))
        values = torch.cholesky_solve(kept.read(self._rhs), factor)
        return values, self._gram(inverse_of_lower(factor))

    def _from_inverse(self, kept: SupportBatch, removed: SupportBatch) -> tuple[Tensor, Tensor]:
        """The same from P = H^-1, which is faster if few columns D are removed.

        H_SS^-1 = P_SS - P_SD P_DD^-1 P_DS, and v = t_S - P_SD P_DD^-1 t_D.
        """
        factor = factorise(removed.submatrices(self._inverse))
        across = torch.linalg.solve_triangular(
            factor, removed.submatrices(self._inverse, kept), upper=False
        )
        step = torch.linalg.solve_triangular(factor, removed.read(self._target), upper=False)
        values = kept.read(self._target) - across.mT @ step
        tiles = self._tiles(kept) - self._gram(across)
        return values, tiles

    def _tiles(self, kept: SupportBatch) -> Tensor:
        """Tiles on the diagonal of P_SS, [batch, tiles, span, span], the identity at padding."""
        columns = kept.columns.unflatten(1, (-1, self._span))
        real = kept.real.unflatten(1, (-1, self._span))
        tiles = self._inverse[columns[..., :, None], columns[..., None, :]]
        tiles = tiles * (real[..., :, None] & real[..., None, :])
        tiles.diagonal(dim1=2, dim2=3).add_(~real)
        return tiles

    def _gram(self, matrix: Tensor) -> Tensor:
        """M_C^T M_C for the columns C of each tile.

        Args:
            matrix: [batch, rows, width], M.

        Returns:
            [batch, tiles, span, span].
        """
        if self._span == 1:
            return torch.linalg.vector_norm(matrix, dim=1).square()[:, :, None, None]
        by_tile = matrix.unflatten(2, (-1, self._span)).transpose(1, 2)
        return by_tile.mT @ by_tile


def _few(removed: int, kept: int) -> bool:
    """Whether it takes fewer operations to start from H^-1 than from H."""
    return removed**3 / 3 + removed**2 * kept < kept**3


def _solve_tiles(tiles: Tensor, values: Tensor) -> Tensor:
    """Solve with one matrix for each tile.

    Args:
        tiles: [batch, tiles, span, span], positive definite.
        values: [batch, tiles * span, rows].

    Returns:
        [batch, tiles * span, rows].
    """
    span = tiles.shape[-1]
    if span == 1:
        return values / tiles[..., 0]
    by_tile = values.unflatten(1, (-1, span))
    return torch.cholesky_solve(by_tile, factorise(tiles)).flatten(1, 2)
