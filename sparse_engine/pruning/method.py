"""How a model is pruned: the arguments of `prune`, validated, as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import find_allocator
from sparse_engine.pruning.allocators.base import Allocator, Setting
from sparse_engine.pruning.allocators.uniform import Uniform
from sparse_engine.pruning.criteria import Criterion, find_criterion
from sparse_engine.pruning.criteria.magnitude import Magnitude
from sparse_engine.pruning.granularity import Granularity, parse_granularity
from sparse_engine.pruning.overrides import Override, Variant, find_overrides
from sparse_engine.pruning.plan import NamePattern
from sparse_engine.pruning.recovery import NoRecovery, Recovery, find_recovery
from sparse_engine.pruning.statistics.collector import Collection
from sparse_engine.pruning.statistics.needs import GRADIENTS, Statistic


@dataclass(frozen=True)
class Method:
    """Criterion x granularity x allocator x recovery, and the sparsity of the whole model.

    Attributes:
        generator: the source of random numbers of the criterion, on the CPU.
        note: what differs from the method that was requested, or "".
        variants: layers that are pruned in another way; the first match counts.
    """

    sparsity: float
    granularity: Granularity
    criterion: Criterion
    recovery: Recovery
    allocator: Allocator
    generator: torch.Generator = field(default_factory=torch.Generator)
    note: str = ""
    variants: tuple[Variant, ...] = ()

    @property
    def needs(self) -> set[Statistic]:
        """The statistics that calibration has to collect."""
        return {*self.layer_needs, *self.allocator.needs}

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration inputs are read."""
        return bool(self.needs)

    @property
    def layer_needs(self) -> set[Statistic]:
        """The statistics that are read while a layer is pruned."""
        return {*self.recovery.needs, *(need for c in self.criteria for need in c.needs)}

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criterion, and those of the variants."""
        return (self.criterion, *(variant.criterion for variant in self.variants))

    @property
    def needs_coupling(self) -> bool:
        """Whether a criterion reads how layers are connected to those next to them."""
        return any(criterion.needs_coupling for criterion in self.criteria)

    @property
    def granularities(self) -> tuple[tuple[NamePattern, Granularity], ...]:
        """Those of the variants, by pattern."""
        return tuple((variant.pattern, variant.setting.granularity) for variant in self.variants)

    def variant_of(self, name: str) -> Variant | None:
        """How a layer is pruned in another way; None if it is not."""
        return next((v for v in self.variants if v.pattern.matches(name)), None)

    def for_layer(self, name: str) -> Method:
        """The method of one layer, with its criterion."""
        variant = self.variant_of(name)
        if variant is None or variant.criterion is self.criterion:
            return self
        return replace(self, criterion=variant.criterion, variants=())

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

    @property
    def needs_gradients(self) -> bool:
        """Whether the model is differentiated before its layers are pruned."""
        return bool(self.needs & GRADIENTS)

    def gradients_of(self, name: str) -> set[Statistic]:
        """The statistics of gradients that one layer needs."""
        return {*self.for_layer(name).criterion.needs, *self.allocator.needs} & GRADIENTS

    def fisher_width(self, name: str, in_features: int) -> int:
        """Width of the blocks of the Fisher information of one layer."""
        variant = self.variant_of(name)
        granularity = variant.setting.granularity if variant else self.granularity
        return self.for_layer(name).criterion.fisher_width(granularity.span(in_features))

    def to_dict(self) -> dict[str, Any]:
        """The arguments of `prune` as plain values, for JSON."""
        decided = self.criterion.decides_sparsity or self.granularity.fixed_sparsity is not None
        overrides = [variant.to_dict() for variant in self.variants]
        return {
            **({} if decided else {"sparsity": self.sparsity}),
            "granularity": str(self.granularity),
            "criterion": str(self.criterion),
            "recovery": str(self.recovery),
            "allocator": str(self.allocator),
            **({"overrides": overrides} if overrides else {}),
        }

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
    overrides: Iterable[Override | Mapping[str, Any]] = (),
) -> Method:
    """Validate the arguments of `prune`, each by itself and with the others.

    Raises:
        UsageError: if an argument is unknown or out of range, or does not fit another one.
    """
    pattern, scoring = parse_granularity(granularity), find_criterion(criterion)
    _check_rows(scoring, pattern)
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
    variants = tuple(_variant(override, method) for override in find_overrides(overrides))
    method = replace(method, variants=variants)
    if pattern.fixed_sparsity is not None and not method.allocator.is_uniform:
        raise UsageError(
            f"allocator {method.allocator} has nothing to share out: {pattern} fixes every row"
        )
    if method.needs and not has_calibration:
        parts: tuple[Any, ...] = (*method.criteria, method.recovery, method.allocator)
        needing = next(part for part in parts if part.needs)
        raise UsageError(
            f"{needing.name} needs calibration inputs; pass calibration=, an iterable of model "
            "inputs (dicts of keyword arguments, tuples or tensors)"
        )
    return method


def _variant(override: Override, method: Method) -> Variant:
    """An override with what it leaves to the method of the model."""
    granularity = parse_granularity(override.granularity or method.granularity)
    criterion = find_criterion(override.criterion or method.criterion)
    _check_rows(criterion, granularity)
    decided = method.criterion.decides_sparsity or criterion.decides_sparsity
    sparsity = override.sparsity
    if sparsity is None and granularity.fixed_sparsity is None and not decided:
        sparsity = method.sparsity
    sparsity = _check_sparsity(sparsity, granularity, criterion)
    return Variant(NamePattern(override.match), Setting(granularity, sparsity), criterion)


def _check_rows(criterion: Criterion, granularity: Granularity) -> None:
    if criterion.needs_structures:
        raise UsageError(
            f"criterion {criterion} scores structures; give granularity head, unit or filter"
        )
    if criterion.needs_whole_rows and not granularity.has_whole_rows:
        raise UsageError(
            f"criterion {criterion} scores whole output rows, not {granularity}; give granularity "
            "1xall, or 64xall for 64 rows"
        )


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
        if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
            raise UsageError(
                f"sparsity {sparsity!r} is not a fraction of zeros; expected 0 <= sparsity < 1"
            )
        return sparsity
    if sparsity is not None and abs(sparsity - fixed) > 1e-6:
        raise UsageError(
            f"sparsity {sparsity} does not fit {granularity}, which has {fixed:g}; leave it out"
        )
    return fixed
