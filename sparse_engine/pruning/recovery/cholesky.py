"""Cholesky factors of positive definite matrices, robust against rounding errors."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.errors import UsageError

# Added to the diagonal, relative to its mean, one after the other until a factorisation succeeds.
DAMPING = (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

SMALL = 128  # size up to which a triangular matrix is inverted by solving


def factorise(matrix: Tensor) -> Tensor:
    """Cholesky factor L with L L^T = matrix.

    If the factorisation fails in the dtype of the matrix, it is repeated in float64, with DAMPING
    on the diagonal if that fails as well.

    Args:
        matrix: [..., n, n], symmetric and positive definite up to rounding.

    Returns:
        [..., n, n], lower triangular, in the dtype of the matrix.

    Raises:
        UsageError: if the matrix holds NaN or infinity, or is far from positive semidefinite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any() and _is_finite(factor):
        return factor
    if not matrix.isfinite().all():
        raise UsageError("the second moments of the calibration inputs hold NaN or infinity")
    info = info | ~factor.isfinite().all(-1).all(-1)
    failed = matrix[info > 0] if matrix.ndim > 2 else matrix
    repaired = _factorise_float64(failed.double()).to(matrix.dtype)
    if matrix.ndim == 2:
        return repaired
    factor[info > 0] = repaired
    return factor


def _is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, without temporary tensors of their size."""
    return not values.numel() or all(bool(end.isfinite()) for end in values.aminmax())


def _factorise_float64(matrix: Tensor) -> Tensor:
    """Cholesky factor with as little damping as possible."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for damping in DAMPING:
        factor, info = torch.linalg.cholesky_ex(matrix + damping * scale * identity)
        if not info.any():
            return factor
    raise UsageError("the second moments of the calibration inputs are not positive semidefinite")


def upper_factor_of_inverse(matrix: Tensor) -> Tensor:
    """Upper triangular U with U^T U = matrix^-1, computed without the inverse.

    With the order of rows and columns reversed, matrix = L L^T; then U is L^-1 reversed.

    Args:
        matrix: [n, n], symmetric and positive definite up to rounding.

    Returns:
        [n, n].
    """
    lower = factorise(matrix.flip(0, 1))
    # Columns are contiguous, so that it is solved in place.
    inverse = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device).T
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower  # these matrices are the largest that pruning holds
    return inverse.flip(0, 1)


def inverse_of_lower(factor: Tensor) -> Tensor:
    """Inverse of lower triangular matrices, by halves.

        [A 0]^-1   [   A^-1          0  ]
        [B C]    = [-C^-1 B A^-1   C^-1 ]

    Nearly all of it is matrix products, which makes it up to three times as fast as
    `torch.linalg.solve_triangular` with the identity.

    Args:
        factor: [..., n, n], lower triangular with a nonzero diagonal.

    Returns:
        [..., n, n].
    """
    n = factor.shape[-1]
    if n <= SMALL:
        identity = torch.eye(n, dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    half = n // 2
    inverse = torch.zeros_like(factor)
    inverse[..., :half, :half] = inverse_of_lower(factor[..., :half, :half])
    inverse[..., half:, half:] = inverse_of_lower(factor[..., half:, half:])
    inverse[..., half:, :half] = -inverse[..., half:, half:] @ (
        factor[..., half:, :half] @ inverse[..., :half, :half]
    )
    return inverse
