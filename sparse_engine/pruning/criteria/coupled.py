"""Coupled: (|w_ij| |a_j| |b_i|)^2, the magnitude of all paths through a weight.

a_j is the row of the layer before that computes input j, b_i the column of the layer after that
reads output i. The paths from i to j over the units k of a hidden layer have the magnitude
sqrt(sum_k w_ik^2 w_kj^2); a weight has that of all paths that it lies on.

Park et al. 2020, "Lookahead: A Far-Sighted Alternative of Magnitude-based Pruning",
arXiv:2002.04809. The norms are those of the dense layers.

Of a structure it is the magnitude of all paths through its units k, from the inputs j of the rows
that compute them to the outputs i of the columns that read them: sum_ij w_ik^2 w_kj^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups
from sparse_engine.pruning.criteria.inputs import Inputs

LOOKS = ("both", "forward", "backward")


@dataclass(frozen=True)
class Coupled(Criterion):
    """Magnitude that counts the weights before and after; a layer without neighbours has its own.

    Args:
        look: "both", or only at the layers after ("forward") or before ("backward"); with "forward"
            a structure has the magnitude of the columns that read it.
        keep_rows: the best group of every row of groups is kept, so that no output is lost.
    """

    name = "coupled"
    needs_coupling = True
    for_elements = ("keep_rows",)
    look: str = "both"
    keep_rows: bool = False

    def __post_init__(self) -> None:
        if self.look not in LOOKS:
            raise UsageError(f"criterion coupled: look={self.look!r} is not {', '.join(LOOKS)}")

    @property
    def keeps_rows(self) -> bool:
        return self.keep_rows

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        before, after = self._neighbours(inputs)
        score = weight.square()
        if before is not None:
            score = score * before
        return score if after is None else score * after[:, None]

    def group_scores(self, groups: Groups, generator: torch.Generator) -> Tensor:
        read = groups.of_columns([x.weight.double().square().sum(0) for x in groups.readers])
        written = groups.of_rows([w.double().square().sum(1) for w, _ in groups.writers])
        if self.look == "forward" or not groups.writers:
            return read
        # A path leads through one layer, not from one into another.
        return written if self.look == "backward" else read * written / groups.layers

    def note(self, inputs: Inputs) -> str:
        if any(energies is not None for energies in self._neighbours(inputs)):
            return ""
        return "no adjacent layer was found: scored by its own magnitude"

    def _neighbours(self, inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
        coupling = inputs.coupling
        if coupling is None:
            return None, None
        before = None if self.look == "forward" else coupling.before
        return before, None if self.look == "backward" else coupling.after
