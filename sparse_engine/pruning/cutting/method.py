"""How structures are removed: the arguments of `prune`, validated, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparse_engine.errors import UsageError
from sparse_engine.named import find
from sparse_engine.pruning.allocators.uniform import Uniform
from sparse_engine.pruning.criteria import Criterion, find_criterion
from sparse_engine.pruning.criteria.sparsegpt import SparseGPT
from sparse_engine.pruning.cutting.counts import ALLOCATORS
from sparse_engine.pruning.granularity import Element
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.recovery import Recovery, find_recovery
from sparse_engine.structures import STRUCTURES, Structure, Unit


@dataclass(frozen=True)
class CutMethod:
    """What is removed, and how.

    Attributes:
        structures: by kind.
        sparsity: fraction of the groups of each kind to remove.
        allocator: how the fraction is shared out among sites; one of ALLOCATORS.
        of_layers: criterion and recovery of the layers that read the groups.
    """

    structures: dict[str, Structure]
    sparsity: float
    allocator: str
    of_layers: Method

    @property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """The modules that are stated to read recurrent networks and cells."""
        unit = self.structures.get(Unit.name)
        return unit.readers_by_network if isinstance(unit, Unit) else {}


def find_structures(granularity: Any) -> tuple[Structure, ...]:
    """The structures among the granularities of `prune`; empty if there are none.

    Args:
        granularity: one, or several; texts, structures or granularities.

    Raises:
        UsageError: for structures beside granularities, or one of them twice.
    """
    one = isinstance(granularity, str) or not isinstance(granularity, Sequence)
    given = [granularity] if one else list(granularity)
    found = [_structure(item) for item in given]
    structures = tuple(item for item in found if item is not None)
    if structures and len(structures) < len(found):
        raise UsageError("structures and granularities are removed in steps of their own")
    names = [structure.name for structure in structures]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"structure {twice} is given twice")
    return structures


def _structure(item: Any) -> Structure | None:
    if isinstance(item, Structure):
        return item
    names = {cls.name for cls in STRUCTURES}
    if isinstance(item, str) and item.partition("(")[0] in names:
        return find(item, STRUCTURES)
    return None


def cut_method(
    structures: tuple[Structure, ...],
    sparsity: float | None,
    criterion: str | Criterion | None,
    recovery: str | Recovery | None,
    allocator: Any,
    has_calibration: bool,
) -> CutMethod:
    """Validate the arguments of a run.

    Raises:
        UsageError: if one of them is unknown, out of range, or does not fit the others.
    """
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise UsageError(
            f"sparsity {sparsity!r} is not a fraction of {structures[0].name}s to remove; expected "
            "0 <= sparsity < 1"
        )
    names = {"local": "uniform", "global": "lamp"}
    how = names.get(str(allocator), str(allocator))
    if how not in ALLOCATORS:
        known = ", ".join(ALLOCATORS)
        raise UsageError(f"allocator {allocator} does not share out structures; choose {known}")
    scoring = find_criterion(criterion or "magnitude")
    if isinstance(scoring, SparseGPT):
        raise UsageError("criterion sparsegpt removes single weights in turn; structures: use obs")
    method = Method(float(sparsity), Element(), scoring, find_recovery(recovery), Uniform())
    if method.needs and not has_calibration:
        needing = next(part for part in (scoring, method.recovery) if part.needs)
        raise UsageError(f"{needing.name} needs calibration inputs; pass calibration=")
    return CutMethod({s.name: s for s in structures}, float(sparsity), how, method)
