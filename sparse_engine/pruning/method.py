"""How a model is pruned: the arguments of `prune`, validated, as values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import find_allocator
from sparse_engine.pruning.allocators.base import Allocator
from sparse_engine.pruning.allocators.uniform import Uniform
from sparse_engine.pruning.criteria import Criterion, find_criterion
from sparse_engine.pruning.criteria.magnitude import Magnitude
from sparse_engine.pruning.granularity import Granularity, parse_granularity
from sparse_engine.pruning.recovery import NoRecovery, Recovery, find_recovery
from sparse_engine.pruning.statistics.collector import Collection
from sparse_engine.pruning.statistics.needs import Statistic


@dataclass(frozen=True)
class Method:
    """Criterion x granularity x allocator x recovery, and the sparsity of the whole model.

    Attributes:
        generator: the source of random numbers of the criterion, on the CPU.
        note: what differs from the method that was requested, or "".
    """

    sparsity: float
    granularity: Granularity
    criterion: Criterion
    recovery: Recovery
    allocator: Allocator
    generator: torch.Generator = field(default_factory=torch.Generator)
    note: str = ""

    @property
    def needs(self) -> set[Statistic]:
        """The statistics that calibration has to collect."""
        return {*self.layer_needs, *self.allocator.needs}

    @property
    def layer_needs(self) -> set[Statistic]:
        """The statistics that are read while a layer is pruned."""
        return {*self.criterion.needs, *self.recovery.needs}

    @property
    def collection(self) -> Collection:
        """What is collected while layers are pruned."""
        return Collection(
            "hessian" in self.layer_needs,
            self.recovery.fits_dense_model,
            self.recovery.tunes_blocks,
        )

    @property
    def scoring_collection(self) -> Collection:
        """What is collected to score the layers of the dense model."""
        return Collection(
            "hessian" in {*self.criterion.needs, *self.allocator.needs}, pruned_inputs=False
        )

    def without_statistics(self) -> Method:
        """The method for an expert that no calibration token reaches.

        It has no recovery, and scores by magnitude if the criterion needs statistics.
        """
        if not self.layer_needs:
            return self
        blind = not self.criterion.needs
        return replace(
            self,
            criterion=self.criterion if blind else Magnitude(),
            recovery=NoRecovery(),
            note="no calibration token reached it: "
            + ("not refitted" if blind else "pruned by magnitude"),
        )


def make_method(
    sparsity: float | None,
    granularity: str | Granularity,
    criterion: str | Criterion,
    recovery: str | Recovery | None,
    allocator: str | Allocator,
    has_calibration: bool,
) -> Method:
    """Validate the arguments of `prune`, each by itself and with the others.

    Raises:
        UsageError: if an argument is unknown or out of range, or does not fit another one.
    """
    pattern, scoring = parse_granularity(granularity), find_criterion(criterion)
    if scoring.needs_whole_rows and not pattern.has_whole_rows:
        raise UsageError(
            f"criterion {scoring} scores whole output rows, not {pattern}; give granularity 1xall, "
            "or 64xall for 64 rows"
        )
    method = Method(
        _check_sparsity(sparsity, pattern, scoring),
        pattern,
        scoring,
        find_recovery(recovery),
        find_allocator(allocator),
    )
    if scoring.decides_sparsity and str(method.allocator) != Uniform.name:
        raise UsageError(
            f"allocator {method.allocator} has nothing to share out: {scoring} decides how much of "
            "each layer is removed"
        )
    method.allocator.check(method.sparsity)
    if pattern.fixed_sparsity is not None and not method.allocator.is_uniform:
        raise UsageError(
            f"allocator {method.allocator} has nothing to share out: {pattern} fixes every row"
        )
    if method.needs and not has_calibration:
        parts = (method.criterion, method.recovery, method.allocator)
        needing = next(part for part in parts if part.needs)
        raise UsageError(
            f"{needing.name} needs calibration inputs; pass calibration=, an iterable of model "
            "inputs (dicts of keyword arguments, tuples or tensors)"
        )
    return method


def _check_sparsity(
    sparsity: float | None, granularity: Granularity, criterion: Criterion
) -> float:
    """The sparsity to prune to; that of the pattern if it fixes one, 0 if the criterion decides."""
    fixed = granularity.fixed_sparsity
    if criterion.decides_sparsity:
        given = f"granularity {granularity}" if fixed is not None else f"sparsity {sparsity}"
        if fixed is not None or sparsity is not None:
            raise UsageError(f"criterion {criterion} decides what is removed; leave out {given}")
        return 0.0
    if fixed is None:
        if sparsity is None:
            raise UsageError("no sparsity given; give a fraction of zeros such as 0.9")
        if not 0 <= sparsity < 1:
            raise UsageError(
                f"sparsity {sparsity} is not a fraction of zeros; expected 0 <= sparsity < 1"
            )
        return sparsity
    if sparsity is not None and abs(sparsity - fixed) > 1e-6:
        raise UsageError(
            f"sparsity {sparsity} does not fit {granularity}, which has {fixed:g}; leave it out"
        )
    return fixed
