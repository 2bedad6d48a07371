"""How a round prunes: arguments of `prune`, validated before the first round."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import PruneReport, prune
from sparse_engine.pruning.criteria import find_criterion
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.pruning.steps import NAMES, Step, find_steps

DECIDED = ("sparsity", "target", "steps", "progress")
"""Arguments of `prune` that the rounds decide."""
PROBE = 0.5  # the sparsity that the other arguments are validated with


@dataclass(frozen=True)
class RoundMethod:
    """One way to prune.

    Attributes:
        arguments: of `prune`, without the sparsity.
        step: the same, validated.
    """

    arguments: dict[str, Any]
    step: Step

    @property
    def removes(self) -> bool:
        """Whether structures are taken out, so that the next round finds fewer."""
        return not isinstance(self.step.method, Method)

    def prune(
        self, model: nn.Module, sparsity: float, before: float, progress: ProgressCallback
    ) -> PruneReport:
        """Prune a model from one sparsity to a higher one.

        Args:
            model: of which `before` is gone already.
            sparsity: of the model before the first round.
            before: likewise; 0 for the dense model.
            progress: as `prune` takes it.
        """
        share = 1 - (1 - sparsity) / (1 - before) if self.removes else sparsity
        return prune(model, share, **self.arguments, progress=progress)

    def to_dict(self) -> dict[str, Any]:
        """Text forms of the arguments, without calibration inputs."""
        return {
            name: plain(value)
            for name, value in sorted(self.arguments.items())
            if name != "calibration"
        }


def find_methods(
    methods: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> list[RoundMethod]:
    """The ways to prune of a run.

    Args:
        methods: of each the arguments that differ from the options; empty for one without any.
        options: arguments of `prune` for all of them.

    Raises:
        UsageError: if an argument is unknown or out of range, or decides the sparsity itself.
    """
    if isinstance(methods, str | Mapping) or not isinstance(methods, Sequence):
        raise UsageError(f"methods is {methods!r:.60}; give a list of mappings")
    common = {n: list(v) if isinstance(v, Iterator) else v for n, v in options.items()}
    found = [_method({**common, **_checked(given)}) for given in methods or ({},)]
    patterns = {str(one.arguments.get("granularity")) for one in found}
    if len(patterns) > 1 and any(one.removes for one in found):
        raise UsageError("methods that take structures out must all have the same granularity")
    return found


def _checked(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"method {given!r:.60} is no mapping, such as {{'criterion': 'obs'}}")
    return given


def _method(arguments: dict[str, Any]) -> RoundMethod:
    check_names(arguments, DECIDED)
    criterion = arguments.get("criterion")
    if criterion is not None and find_criterion(criterion).decides_sparsity:
        raise UsageError(f"criterion {criterion} decides what is removed: use se.search")
    step = find_step({**arguments, "sparsity": PROBE})
    if isinstance(step.method, Method) and step.method.granularity.fixed_sparsity is not None:
        raise UsageError(f"{step.method.granularity} has a sparsity of its own: call prune once")
    return RoundMethod(arguments, step)


def check_names(arguments: Iterable[str], decided: Sequence[str]) -> None:
    """Raise UsageError for a name that is no argument of `prune`, or one that is decided here."""
    accepted = [n for n in inspect.signature(prune).parameters if n not in ("model", *decided)]
    for name in arguments:
        if name in decided:
            raise UsageError(f"{name} is decided here: leave it out of the options")
        if name not in accepted:
            near = ", ".join(get_close_matches(str(name), accepted, 3, cutoff=0.0))
            raise UsageError(f"{name!r} is no argument of prune; the nearest are {near}")


def find_step(arguments: Mapping[str, Any]) -> Step:
    """The arguments of a call of `prune`, validated as it does; raises UsageError."""
    parameters = inspect.signature(prune).parameters
    defaults = {name: parameters[name].default for name in NAMES}
    given = {name: value for name, value in arguments.items() if name in NAMES}
    [step] = find_steps(None, {**defaults, **given}, arguments.get("calibration") is not None)
    return step


def plain(value: Any) -> Any:
    """A value for JSON: what is no number or text becomes its text form, a function its name."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
