"""The method of `prune` for a target: its arguments, validated with each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from sparse_engine.backends import backend_of
from sparse_engine.errors import UsageError
from sparse_engine.formats import NM
from sparse_engine.pruning.allocators import Allocator
from sparse_engine.pruning.allocators.uniform import Uniform
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.criteria import Criterion, find_criterion
from sparse_engine.pruning.granularity import Granularity, parse_granularity
from sparse_engine.pruning.method import Method, make_method
from sparse_engine.pruning.overrides import Override, Variant
from sparse_engine.pruning.plan import NamePattern
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.pruning.recovery import Recovery
from sparse_engine.pruning.target.allocator import ByTarget
from sparse_engine.pruning.target.machine import Machine
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.target.timing import inputs_of

Granularities: TypeAlias = str | Granularity | Sequence[str | Granularity]
AUTO = "auto"


def find_method(
    target: Target | None,
    sparsity: float | None,
    granularity: Granularities | None,
    criterion: str | Criterion | None,
    recovery: str | Recovery | None,
    allocator: str | Allocator,
    has_calibration: bool,
    overrides: Iterable[Override | Mapping[str, Any]] = (),
) -> Method:
    """Validate the arguments of `prune`, each by itself and with the others.

    Raises:
        UsageError: if an argument is unknown or out of range, or does not fit another one.
    """
    if target is not None:
        if not isinstance(target, Target):
            raise UsageError(f"target is {target!r:.80}; give one such as se.Target(speedup=3)")
        if list(overrides):
            raise UsageError("a target decides for every layer: leave out overrides, or use ignore")
        return _by_target(
            target, sparsity, granularity, criterion, recovery, allocator, has_calibration
        )
    return make_method(
        sparsity,
        _single(granularity),
        criterion or "magnitude",
        recovery,
        allocator,
        has_calibration,
        overrides,
    )


def _by_target(
    target: Target,
    sparsity: float | None,
    granularity: Granularities | None,
    criterion: str | Criterion | None,
    recovery: str | Recovery | None,
    allocator: str | Allocator,
    has_calibration: bool,
) -> Method:
    """The method of a target; its allocator is complete after `bind`."""
    if sparsity is not None:
        raise UsageError(f"give a sparsity or a target, not both: {sparsity} and {target}")
    if str(allocator) != "uniform":
        raise UsageError(
            f"a target shares out the sparsity itself: leave out allocator {allocator}"
        )
    scoring = find_criterion(criterion or "obs")
    if scoring.decides_sparsity or scoring.needs_whole_rows:
        how = "scores whole rows only" if scoring.needs_whole_rows else "decides what is removed"
        raise UsageError(f"criterion {scoring} {how}: it cannot meet a target; take another one")
    if isinstance(granularity, str | Granularity):
        granularity = [granularity]
    chosen = granularity is not None and [*granularity] != [AUTO]
    patterns = tuple(map(parse_granularity, granularity or ())) if chosen else ()
    if chosen and not patterns:
        raise UsageError("granularity is empty: give at least one, or leave it out")
    return make_method(
        0.0,
        "element",
        scoring,
        "least_squares" if recovery is None else recovery,
        ByTarget(target, patterns),
        has_calibration,
    )


def _single(granularity: Granularities | None) -> str | Granularity:
    """The one granularity of a run without a target; None is "element"."""
    if granularity is None:
        return "element"
    if isinstance(granularity, str | Granularity | NM):
        return granularity
    if not isinstance(granularity, Sequence):
        return parse_granularity(granularity)  # which refuses it
    if not granularity:
        raise UsageError("granularity is empty: give one, or leave it out")
    if len(granularity) != 1:
        raise UsageError("several granularities need a target: give one")
    return granularity[0]


def bind(
    method: Method,
    model: nn.Module,
    dense: nn.Module,
    batches: list[Batch],
    seed: int,
    progress: ProgressCallback | None,
) -> Method:
    """The method with an allocator that measures on this machine.

    Args:
        method: of `target_method`.
        model: what is pruned, not unrolled; it is copied, never changed.
        dense: what the target compares with: the model before structures were removed.
        batches: calibration inputs.
        seed: of the search.
        progress: called with (done, total, text).
    """
    unbound = method.allocator
    assert isinstance(unbound, ByTarget)
    target = unbound.target
    backend = backend_of(next(model.parameters()))
    patterns = unbound.granularities or tuple(map(parse_granularity, backend.patterns))
    inputs = inputs_of(dense, target.tokens, batches) if target.is_time else {}
    machine = Machine(model, target, inputs, dense)
    return replace(method, allocator=ByTarget(target, patterns, machine, seed, progress))


def settled(method: Method) -> Method:
    """The method that prunes again to what a target has chosen, whatever the machine's speed."""
    allocator = method.allocator
    assert isinstance(allocator, ByTarget)
    variants = tuple(
        Variant(NamePattern.exactly(name), setting, method.criterion)
        for name, setting in allocator.settings.items()
    )
    return replace(method, allocator=Uniform(), variants=variants)
