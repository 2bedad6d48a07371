"""The energies of adjacent layers: squared norms of the rows and columns that a weight meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.pruning.coupling.link import Link


@dataclass(frozen=True)
class Coupling:
    """How strongly a layer is connected to those next to it; None where there is none.

    Attributes:
        before: float32 [in], sum of w^2 over the rows that compute each input.
        after: float32 [out], sum of w^2 over the columns that read each output.
    """

    before: Tensor | None = None
    after: Tensor | None = None


def couple(weights: Mapping[str, Tensor], links: Sequence[Link]) -> dict[str, Coupling]:
    """The couplings of layers; those without a link are left out.

    Args:
        weights: by dotted name, [out, in].
        links: adjacent layers. Several producers or readers of one unit add up.
    """
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for link in links:
        made, read = weights[link.producer], weights[link.reader]
        rows, columns = link.rows.to(made.device), link.columns.to(made.device)
        units = int(rows.max()) + 1
        of_rows = _by_unit(made.detach().double().square().sum(1), rows, units)
        of_columns = _by_unit(read.detach().double().square().sum(0), columns, units)
        _add(before, link.reader, _at(of_rows, columns))
        _add(after, link.producer, _at(of_columns, rows))
    return {name: Coupling(before.get(name), after.get(name)) for name in {**before, **after}}


def _by_unit(energies: Tensor, units_of: Tensor, units: int) -> Tensor:
    """Sum of the energies of each unit; -1 belongs to none."""
    known = (units_of >= 0) & (units_of < units)
    return energies.new_zeros(units).index_add_(0, units_of[known], energies[known])


def _at(of_units: Tensor, units_of: Tensor) -> Tensor:
    """The energy of the unit of each row or column, 0 for -1."""
    known = (units_of >= 0) & (units_of < len(of_units))
    return torch.where(known, of_units[units_of.clamp(0, len(of_units) - 1)], 0.0).float()


def _add(sums: dict[str, Tensor], name: str, energies: Tensor) -> None:
    sums[name] = sums[name] + energies if name in sums else energies
