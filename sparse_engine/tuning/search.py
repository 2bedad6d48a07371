"""search: settings of `prune` compared on a grid, by cross-validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning.calibration import check_iterable, read_calibration
from sparse_engine.pruning.progress import ProgressCallback, check_progress
from sparse_engine.pruning.recipe import ARGUMENTS
from sparse_engine.pruning.seed import check_seed
from sparse_engine.pruning.target.target import Target
from sparse_engine.tuning.candidate import label_of
from sparse_engine.tuning.cost import Costs
from sparse_engine.tuning.folds import make_folds
from sparse_engine.tuning.method import DECIDED, check_names, find_step, plain
from sparse_engine.tuning.quality import (
    check_flags,
    check_max_drop,
    check_relative,
    finite,
    name_of,
)
from sparse_engine.tuning.search_report import BY, SearchReport
from sparse_engine.tuning.trials import Trials

MOST_CANDIDATES = 1000
LOOSE = 1e12  # a target that everything meets, for its conditions


def search(
    model: nn.Module,
    metric: Callable[..., float],
    grid: Mapping[str, Sequence[Any]],
    *,
    data: Sequence[Any] | None = None,
    folds: int = 5,
    train: Callable[[nn.Module, list[Any]], Any] | None = None,
    by: str = "quality",
    max_drop: float | None = None,
    relative: bool = False,
    higher_is_better: bool = True,
    tokens: int = 128,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> SearchReport:
    """Compare sparsities, thresholds or other arguments of `prune`, and choose among them.

    Every combination of the grid is pruned, trained if wanted, and evaluated, each time beginning
    with the model as it is. The model is as before afterwards, also after an error or an interrupt;
    for that time a second copy of its weights is kept, and a third one to measure size or time.

    Args:
        model: any module.
        metric: metric(model) gives a number. With data, metric(model, items) gives one for the
            items that are held out. A candidate whose metric is not finite is not chosen.
        grid: by the name of an argument of `prune` the values to try, such as
            {"sparsity": [0.5, 0.7, 0.9]} or {"criterion": ["magnitude(sigma=1.0)", ...]}.
        data: items of any kind for cross-validation. Without them every candidate is evaluated
            once.
        folds: how many parts the data has, each of which is held out once.
        train: train(model, items) trains a pruned model in place on the items of the other folds.
            It needs data.
        by: what is chosen among the candidates that are good enough: with "quality" the one with
            the most parameters removed, with "size" the smallest and with "time" the fastest after
            conversion. Size and time are measured in the first fold.
        max_drop: how much worse than the dense model a mean may be to be good enough. By default it
            may be one standard error worse than the best mean.
        relative: whether `max_drop` is a fraction of the dense model's metric.
        higher_is_better: whether a larger value of `metric` is better.
        tokens: of a call that is timed.
        seed: of the folds, of criteria, and of torch in every fold.
        progress: called with (done, total, text) after every candidate in every fold.
        options: other arguments of `prune`, for all candidates. calibration may be a function,
            which gets the items of the other folds and returns model inputs.

    Returns:
        All candidates, and the one that is chosen.

    Raises:
        UsageError: if an argument is wrong, or the metric of the dense model is no number.

    Example:
        report = se.search(model, accuracy, {"sparsity": [0.5, 0.7, 0.9]}, data=sentences)
        se.prune(model, **report.choice.arguments)
    """
    started = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is {model!r:.80}; give a torch.nn.Module")
    if not callable(metric):
        raise UsageError(f"metric is {metric!r:.60}; give a function of the model")
    if train is not None and (not callable(train) or data is None):
        raise UsageError("train is a function of the model and the items of folds: give data too")
    if by not in BY:
        raise UsageError(f"by is {by!r:.40}: use {', '.join(BY)}")
    if max_drop is not None:
        check_max_drop(max_drop)
    check_flags(relative=relative, higher_is_better=higher_is_better)
    check_progress(progress)
    check_seed(seed)
    calibration = _calibration(options.pop("calibration", None), data is not None)
    check_names(options, (*(name for name in DECIDED if name != "sparsity"), "seed"))
    combinations = find_combinations(grid)
    check_readable(model)
    fold_(model)
    for arguments in combinations:
        find_step({**options, **arguments, "calibration": calibration}).check(model)
    trials = Trials(
        model,
        metric,
        train,
        options,
        calibration,
        [None] if data is None else make_folds(data, folds, seed),
        seed,
        _costs(model, by, tokens, calibration),
    )
    dense = tuple(map(finite, trials.dense()))
    check_relative(relative, math.fsum(dense))
    return SearchReport(
        metric=name_of(metric),
        higher_is_better=higher_is_better,
        by=by,
        dense=dense,
        max_drop=max_drop,
        relative=relative,
        candidates=trials.run(combinations, progress),
        seconds=time.perf_counter() - started,
    )


def find_combinations(grid: Any) -> list[dict[str, Any]]:
    """The arguments of all candidates, as plain values.

    Raises:
        UsageError: if the grid is no mapping of lists, has a name that cannot be varied, or is too
            large.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise UsageError(f"grid is {grid!r:.60}; give one such as {{'sparsity': [0.5, 0.9]}}")
    names = [name for name in ARGUMENTS if name != "steps"]
    for name, values in grid.items():
        if name not in names:
            raise UsageError(f"grid: {name!r:.40} cannot be varied; use {', '.join(names)}")
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise UsageError(f"grid: {name} is {values!r:.40}; give a list of values")
    count = math.prod(map(len, grid.values()))
    if count > MOST_CANDIDATES:
        raise UsageError(f"the grid has {count} combinations; at most {MOST_CANDIDATES} are tried")
    values = [list(map(plain, values)) for values in grid.values()]
    found = [dict(zip(grid, combination, strict=True)) for combination in product(*values)]
    for arguments in found:
        if found.count(arguments) > 1:
            raise UsageError(f"the grid has {label_of(arguments)} twice")
    return found


def _calibration(given: Any, has_data: bool) -> Any:
    """Calibration inputs as a list, or the function that makes them."""
    if given is None:
        return None
    if callable(given):
        if not has_data:
            raise UsageError("calibration is a function of the items of folds: give data too")
        return given
    check_iterable(given)
    return list(given)


def _costs(model: nn.Module, by: str, tokens: int, calibration: Any) -> Costs | None:
    """What measures size or time against a copy of the dense model."""
    if by == "quality":
        return None
    size, ms = (LOOSE, None) if by == "size" else (None, LOOSE)
    target = Target(size_mb=size, latency_ms=ms, tokens=tokens)
    inputs = None if callable(calibration) else calibration
    batches = read_calibration(model, inputs) if inputs else []
    return Costs(target, copy.deepcopy(model).eval(), batches)
