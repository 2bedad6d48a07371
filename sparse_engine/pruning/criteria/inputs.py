"""What a criterion reads about one layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparse_engine.pruning.coupling import Coupling


@dataclass(frozen=True)
class Inputs:
    """Statistics of a layer and its inputs X [in, tokens]; None for those that were not collected.

    The gradients g are those of the dense model's loss for the dense weight.

    Attributes:
        norms: [in], sqrt(sum x^2) of each input.
        hessian: [in, in], X X^T + lambda I.
        ridge: lambda.
        gradient: [out, in], the mean of g over the calibration batches.
        squared_gradient: [out, in], the mean of g^2 over the calibration batches.
        fisher: [out, blocks, width, width], the mean of g g^T over single examples, for each block
            of `fisher_width` consecutive weights of a row; zero where the last block is not full.
        coupling: of the layer with those next to it.
    """

    norms: Tensor | None = None
    hessian: Tensor | None = None
    ridge: float = 0.0
    gradient: Tensor | None = None
    squared_gradient: Tensor | None = None
    fisher: Tensor | None = None
    coupling: Coupling | None = None
