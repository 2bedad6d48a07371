"""Structures and zeros for one target: several shares of structures are tried.

Each share is removed from a copy of the model, and the zeros that the rest needs for the target are
chosen there. The model is pruned with the share whose outputs are closest to the dense model's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import Allocator
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.cutting import CutMethod, cut, cut_method, sites_of
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.overrides import Override
from sparse_engine.pruning.plan import Filter, Selection
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.pruning.recovery import Recovery
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.run import Run
from sparse_engine.pruning.target.allocator import ByTarget, OutOfReachError
from sparse_engine.pruning.target.method import find_method
from sparse_engine.pruning.target.report import TargetShare
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.zeros import choose_zeros, set_zeros
from sparse_engine.structures import Structure


@dataclass(frozen=True)
class MixedMethod:
    """How structures are removed and zeros set for one target.

    Attributes:
        cuts: how structures are removed, for each share that is tried; 0 is none.
        zeros: how the rest is pruned, by a target.
    """

    cuts: tuple[CutMethod, ...]
    zeros: Method

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration inputs are read."""
        return True

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which structures may be removed."""
        return self.cuts[0].kinds


def mixed_method(
    target: Target | None,
    structures: tuple[Structure, ...],
    granularity: Sequence[Any],
    sparsity: float | None,
    criterion: str | Criterion | None,
    recovery: str | Recovery | None,
    allocator: str | Allocator,
    has_calibration: bool,
    overrides: Iterable[Override | Mapping[str, Any]] = (),
) -> MixedMethod:
    """Validate the arguments of a run, each by itself and with the others.

    Args:
        target: what the model may cost.
        structures: that may be removed.
        granularity: those of the zeros.
        sparsity, criterion, recovery, has_calibration, overrides: as for `prune`.
        allocator: shares out the structures; the target shares out the zeros.

    Raises:
        UsageError: if an argument is unknown or out of range, or does not fit another one.
    """
    if not granularity:
        raise UsageError(
            "a target needs zeros beside structures: add a granularity such as 4x1, or auto"
        )
    scoring = criterion or "obs"
    refit = "least_squares" if recovery is None else recovery
    if isinstance(target, Target):
        seconds = target.search_seconds / len(target.shares)
        target = replace(target, search_seconds=seconds)
    zeros = find_method(
        target, sparsity, granularity, scoring, refit, "uniform", has_calibration, overrides
    )
    assert target is not None
    cuts = (
        cut_method(structures, share, scoring, refit, allocator, has_calibration)
        for share in target.shares
    )
    return MixedMethod(tuple(cuts), zeros)


def prune_mixed(
    model: nn.Module,
    method: MixedMethod,
    selection: Selection,
    filter_fn: Filter | None,
    seed: int,
    run: Run,
) -> list[PruneReport]:
    """Remove the share of structures that suits a target best, and set zeros in the rest, in place.

    Args:
        model: with plain weights.
        method: what is removed, and how.
        selection: which layers take part.
        filter_fn: as `prune` takes it.
        seed: of the random numbers of the criterion.
        run: calibration inputs, and what else the steps share.

    Returns:
        The reports of the cut, if there is one, and of the zeros.

    Raises:
        UsageError: if there is nothing to remove, or the target is out of reach with every share.
    """
    sites_of(model, method.cuts[0], selection, filter_fn)
    if run.dense is None:
        run = replace(run, dense=copy.deepcopy(model).eval())
    best: tuple[float, CutMethod, Method] | None = None
    tried: list[TargetShare] = []
    missed: list[OutOfReachError] = []
    for cutting in method.cuts:
        share = cutting.of_layers.sparsity
        own = replace(run, progress=_of_share(run.progress, share, method.kinds))
        clone = copy.deepcopy(model)
        if share:
            cut(clone, cutting, selection, filter_fn, seed, own)
        try:
            zeros = choose_zeros(clone, method.zeros, selection, filter_fn, seed, own)
        except OutOfReachError as error:
            missed.append(error)
            tried.append(TargetShare(share, error.best, None))
            continue
        allocator = zeros.allocator
        assert isinstance(allocator, ByTarget)
        assert allocator.error is not None
        tried.append(TargetShare(share, allocator.predicted, allocator.error))
        if best is None or allocator.error < best[0]:
            best = allocator.error, cutting, zeros
    if best is None:
        raise min(missed, key=lambda error: error.best)
    _, cutting, zeros = best
    share = cutting.of_layers.sparsity
    reports = [cut(model, cutting, selection, filter_fn, seed, run)] if share else []
    report = set_zeros(model, zeros, selection, filter_fn, seed, run)
    assert report.target is not None
    shares = tuple(replace(row, is_chosen=row.share == share) for row in tried)
    report.target = replace(report.target, shares=shares)
    return [*reports, report]


def _of_share(
    progress: ProgressCallback | None, share: float, kinds: tuple[str, ...]
) -> ProgressCallback | None:
    """The callback while one share is tried, which it adds to the text."""
    if progress is None:
        return None
    without = f"without {share:.1%} of {' and '.join(kinds)}s" if share else "all structures kept"
    return lambda done, total, text: progress(done, total, f"{without}: {text}")
