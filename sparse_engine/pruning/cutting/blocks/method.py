"""How blocks are removed: the arguments of `prune`, validated, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators.uniform import Uniform
from sparse_engine.pruning.criteria.magnitude import Magnitude
from sparse_engine.pruning.cutting.blocks.criteria import BlockCriterion, find_block_criterion
from sparse_engine.pruning.granularity import Element
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.recovery import Recovery, find_recovery
from sparse_engine.pruning.recovery.none import NoRecovery
from sparse_engine.structures import Layer, Structure

ALLOCATORS = {"uniform": "uniform", "local": "uniform", "raw": "raw", "global": "raw"}


@dataclass(frozen=True)
class BlockMethod:
    """What is removed, and how.

    Attributes:
        structure: its options.
        sparsity: fraction of the blocks to remove; None if the structure has a count.
        criterion: chooses them.
        competing: whether the blocks of all stacks compete; else each stack loses its share.
        of_layers: recovery of the layers that remain; it removes nothing.
        original: by stack, the number of blocks of which the sparsity is a fraction, if some are
            gone already; it may then be that none are left to remove.
    """

    structure: Layer
    sparsity: float | None
    criterion: BlockCriterion
    competing: bool
    of_layers: Method
    original: Mapping[str, int] = field(default_factory=dict)

    @property
    def repairs(self) -> bool:
        """Whether layers that remain are changed."""
        return not isinstance(self.of_layers.recovery, NoRecovery)

    @property
    def needs_calibration(self) -> bool:
        """Whether the model is run."""
        return self.criterion.needs_calibration or self.repairs

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is removed: text forms of structures, without options."""
        return (self.structure.name,)

    def to_dict(self) -> dict[str, Any]:
        """The arguments of `prune` as plain values, for JSON."""
        return {
            **({} if self.sparsity is None else {"sparsity": self.sparsity}),
            "granularity": str(self.structure),
            "criterion": str(self.criterion),
            "recovery": str(self.of_layers.recovery),
            "allocator": "raw" if self.competing else "uniform",
        }


def find_layer(structures: Sequence[Structure]) -> Layer | None:
    """The structure Layer, if it is the one to remove.

    Raises:
        UsageError: if there are others beside it.
    """
    layer = next((s for s in structures if isinstance(s, Layer)), None)
    if layer is not None and len(structures) > 1:
        raise UsageError("structure layer is removed in a step of its own, not with others")
    return layer


def block_method(
    structure: Layer,
    sparsity: float | None,
    criterion: Any,
    recovery: str | Recovery | None,
    allocator: Any,
    has_calibration: bool,
) -> BlockMethod:
    """Validate the arguments of a run.

    Raises:
        UsageError: if one of them is unknown, out of range, or does not fit the others.
    """
    if structure.count is None:
        if not isinstance(sparsity, int | float) or not 0 < sparsity < 1:
            raise UsageError(
                f"sparsity {sparsity!r:.80} is not a fraction of layers to remove; expected 0 < "
                "sparsity < 1, or give Layer(count=1)"
            )
    elif sparsity is not None:
        raise UsageError(f"sparsity {sparsity!r} and {structure} both tell how many layers go")
    if str(allocator) not in ALLOCATORS:
        known = ", ".join(ALLOCATORS)
        raise UsageError(f"allocator {allocator} does not share out layers; choose {known}")
    chosen = find_block_criterion("outputs" if criterion is None else criterion)
    repair = find_recovery(recovery)
    if not isinstance(repair, NoRecovery) and not repair.fits_dense_model:
        raise UsageError(
            f"recovery {repair.name} does not make up for removed layers; choose least_squares "
            "or blocks"
        )
    method = BlockMethod(
        structure,
        sparsity,
        chosen,
        ALLOCATORS[str(allocator)] == "raw",
        Method(0.0, Element(), Magnitude(), repair, Uniform()),
    )
    if method.needs_calibration and not has_calibration:
        needing = repair if method.repairs else chosen
        raise UsageError(f"{needing.name} needs calibration inputs; pass calibration=")
    return method
