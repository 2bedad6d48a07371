"""The steps of a run: structures are removed first, then weights of what is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.cutting import (
    BlockMethod,
    CutMethod,
    block_method,
    cut_method,
    find_layer,
    find_structures,
    sites_of,
    split_structures,
    wanted_blocks,
)
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.mixed import MixedMethod, mixed_method
from sparse_engine.pruning.plan import Filter, Selection
from sparse_engine.pruning.recipe import ARGUMENTS
from sparse_engine.pruning.seed import check_seed
from sparse_engine.pruning.target.method import find_method
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.unrolled import unrolled
from sparse_engine.pruning.zeros import plan_of
from sparse_engine.structures import Layer

NAMES = (*(name for name in ARGUMENTS if name != "steps"), "filter_fn", "target")
"""The arguments of `prune` that a step may have."""


AnyMethod: TypeAlias = Method | CutMethod | BlockMethod | MixedMethod


@dataclass(frozen=True)
class Step:
    """One step, validated.

    Attributes:
        method: how weights are set to zero, structures removed, or both.
        selection: which layers take part.
        seed: of the random numbers of the criterion.
        filter_fn: as `prune` takes it.
        target: what the converted model may cost after the step.
    """

    method: AnyMethod
    selection: Selection
    seed: int
    filter_fn: Filter | None
    target: Target | None

    def check(self, model: nn.Module) -> None:
        """Raise UsageError if the step has nothing to do in a model, as far as is known before."""
        if isinstance(self.method, CutMethod):
            sites_of(model, self.method, self.selection, self.filter_fn)
        elif isinstance(self.method, BlockMethod):
            wanted_blocks(model, self.method, self.selection)
        else:
            zeros = self.method
            if isinstance(zeros, MixedMethod):
                sites_of(model, zeros.cuts[0], self.selection, self.filter_fn)
                zeros = zeros.zeros
            with unrolled(model):
                plan_of(model, zeros, self.selection, self.filter_fn)


def find_steps(
    steps: Iterable[Mapping[str, Any]] | None, defaults: Mapping[str, Any], has_calibration: bool
) -> list[Step]:
    """Validate the steps of a run, each by itself and all of them together.

    Args:
        steps: of each the arguments that differ from `defaults`; None for one step without any.
        defaults: the arguments of all steps, by the NAMES.
        has_calibration: whether there are calibration inputs.

    Raises:
        UsageError: if an argument is unknown or out of range, or does not fit another one, or the
            steps do not fit each other.
    """
    if steps is None:
        return [_step(defaults, has_calibration)]
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise UsageError(f"steps is {steps!r:.80}; give a list of mappings, one for each step")
    # Every step reads them.
    defaults = {n: list(v) if isinstance(v, Iterator) else v for n, v in defaults.items()}
    found = []
    for number, given in enumerate(steps, 1):
        with naming_step(number):
            values = {name: value for name, value in _named(given).items() if value is not None}
            found.append(_step({**defaults, **values}, has_calibration))
    _check_order(found)
    return found


@contextmanager
def naming_step(number: int | None) -> Iterator[None]:
    """Inside of a `with` block, a UsageError begins with the number of the step, if it has one."""
    try:
        yield
    except UsageError as error:
        if number is None:
            raise
        raise UsageError(f"step {number}: {error}") from None


def _named(step: Any) -> Mapping[str, Any]:
    """A step as it is given; raises UsageError for what is no mapping, or has unknown names."""
    if not isinstance(step, Mapping):
        raise UsageError(f"{step!r:.80} is no mapping, such as {{'granularity': 'head'}}")
    for name in step:
        if name not in NAMES:
            near = ", ".join(get_close_matches(str(name), NAMES, 3, cutoff=0.0))
            raise UsageError(f"{name!r} is no argument of a step; the nearest are {near}")
    return step


def _step(values: Mapping[str, Any], has_calibration: bool) -> Step:
    granularity, target, filter_fn = (values[n] for n in ("granularity", "target", "filter_fn"))
    names = ("sparsity", "criterion", "recovery", "allocator", "overrides")
    common = {name: values[name] for name in names}
    structures, others = split_structures(granularity)
    method: AnyMethod
    if layer := find_layer(structures):
        method = _block_method(layer, values, has_calibration)
    elif structures and target is not None:
        method = mixed_method(target, structures, others, **common, has_calibration=has_calibration)
    elif find_structures(granularity):
        method = cut_method(structures, **common, has_calibration=has_calibration)
    else:
        method = find_method(
            target, granularity=granularity, has_calibration=has_calibration, **common
        )
    selection = Selection.of(values["layers"], values["ignore"])
    if filter_fn is not None and selection.layers:
        raise UsageError("filter_fn and layers both choose what is pruned: give one of them")
    check_seed(values["seed"])
    return Step(method, selection, values["seed"], filter_fn, target)


def _block_method(layer: Layer, values: Mapping[str, Any], has_calibration: bool) -> BlockMethod:
    for name in ("target", "overrides", "filter_fn"):
        given = values[name]
        if given is not None and given != () and given != []:
            raise UsageError(f"structure layer reads no {name}: leave it out")
    names = ("sparsity", "criterion", "recovery", "allocator")
    common = {name: values[name] for name in names}
    return block_method(layer, **common, has_calibration=has_calibration)


def _check_order(steps: Sequence[Step]) -> None:
    """Raise UsageError for a structure in two steps, or after weights were set to zero.

    A share of heads of what an earlier step left is better given at once: the scores of one dense
    model are exact. Structures after zeros would be refitted, which fills the zeros, and the
    patterns of blocks would no longer be aligned.
    """
    removed: dict[str, int] = {}
    zeros = 0
    for number, step in enumerate(steps, 1):
        if isinstance(step.method, Method):
            zeros = number
            continue
        for kind in step.method.kinds:
            if zeros:
                raise UsageError(
                    f"step {number} removes {kind}s from layers that step {zeros} has pruned: put "
                    "structures first"
                )
            if kind in removed:
                raise UsageError(
                    f"steps {removed[kind]} and {number} both remove {kind}s: give one share"
                )
            removed[kind] = number
        if isinstance(step.method, MixedMethod):
            zeros = number
