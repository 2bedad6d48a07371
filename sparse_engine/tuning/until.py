"""prune_until: rounds of pruning, training and evaluation, until the metric drops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning.calibration import (
    Batch,
    check_iterable,
    fingerprint,
    read_calibration,
)
from sparse_engine.pruning.gradients import check_loss
from sparse_engine.pruning.progress import ProgressCallback, check_progress
from sparse_engine.pruning.target.target import Target
from sparse_engine.tuning.clock import seconds_of
from sparse_engine.tuning.journal import open_journal
from sparse_engine.tuning.method import find_methods
from sparse_engine.tuning.quality import Metric, Quality, name_of
from sparse_engine.tuning.report import UntilReport
from sparse_engine.tuning.retrain import Retrain
from sparse_engine.tuning.rules import Rules
from sparse_engine.tuning.run import Run
from sparse_engine.tuning.state import digest
from sparse_engine.tuning.widen import Listed, Widen, find_widening, is_fraction

Train = Callable[[nn.Module, int], Any]


def prune_until(
    model: nn.Module,
    metric: Metric,
    max_drop: float = 0.01,
    *,
    relative: bool = False,
    higher_is_better: bool = True,
    sparsities: Sequence[float] | Widen | None = None,
    train: Train | Retrain | None = None,
    target: Target | float | None = None,
    patience: int | None = None,
    budget: float | str | None = None,
    folder: str | Path | None = None,
    methods: Sequence[Mapping[str, Any]] = (),
    progress: ProgressCallback | None = None,
    **options: Any,
) -> UntilReport:
    """Prune a model in rounds, in place, as long as a metric stays good.

    A round prunes the best model so far to a higher sparsity, trains it, and evaluates it. If the
    metric has dropped too far, the best model comes back, and a smaller step is tried. At the end
    the model is the best one that passed, or the dense one if none did. That holds too if a round
    fails, if the metric is NaN, and after Ctrl-C: the run ends, and the report has the reason.

    Args:
        model: any module. For the time of the run a copy of the best state is kept, a second one
            while a better one is copied, and another one for a target or for `Retrain`.
        metric: metric(model) gives a number, such as the accuracy on a validation set. The model is
            in evaluation mode for that time, and no gradients are computed.
        max_drop: how much worse the metric may be than that of the dense model.
        relative: whether `max_drop` is a fraction of the dense model's metric.
        higher_is_better: whether a larger value of `metric` is better.
        sparsities: what the rounds try: a list in ascending order, or a `Widen`, which begins at
            0.5 and halves its steps at failures by default.
        train: train(model, round) trains in place, with rounds from 1 up; it has to keep the zeros,
            as `Pruner` does with `hold`. Or a `Retrain`. None for no training.
        target: ends the run as soon as the converted copy of the model meets it, measured after
            every round that passed. Or a sparsity.
        patience: ends the run after so many failed rounds one after another. The default is 1 for a
            list, and none for a `Widen`, which ends by itself.
        budget: ends the run after this time: seconds, or a text such as "2h" or "90s". A round does
            not begin unless it is expected to end in time, and one that does not is given up.
        folder: receives the rounds and the best state, so that the same call goes on after the
            process was killed, with the same result. The random numbers of torch are seeded in
            every round. It is made if it does not exist; that of another run is refused, of which
            functions are known by their names.
        methods: alternatives, each a mapping of arguments of `prune` that differ from `options`.
            Every round tries them all, and goes on with the one whose metric is best.
        progress: called with (done, total, text) while a round prunes and trains.
        options: the other arguments of `prune`: granularity, criterion, recovery, calibration,
            allocator, filter_fn, seed, layers, ignore, overrides and loss. Structures are possible
            too: a sparsity is then their share of the dense model.

    Returns:
        All rounds, and why the run ended.

    Raises:
        UsageError: if an argument is wrong, or the metric of the dense model is no number. Nothing
            has changed then.

    Example:
        report = se.prune_until(
            model,
            accuracy,
            max_drop=0.01,
            train=se.Retrain(batches, steps=200),
            granularity="4x1",
            criterion="obs",
            calibration=batches,
            budget="2h",
        )
        print(report)
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is {model!r:.80}; give a torch.nn.Module")
    quality = Quality(metric, max_drop, relative, higher_is_better)
    if not isinstance(target, Target | None) and not is_fraction(target):
        raise UsageError(f"target is {target!r:.80}; give a se.Target, or a sparsity below 1")
    widening = find_widening(sparsities, target if isinstance(target, float) else None)
    if patience is not None and (type(patience) is not int or patience < 1):
        raise UsageError(f"patience {patience!r:.40}: give a whole number from 1 up")
    if patience is None and isinstance(widening, Listed):
        patience = 1
    seconds = seconds_of(budget)
    if train is not None and not isinstance(train, Retrain) and not callable(train):
        raise UsageError(f"train is {train!r:.60}; give train(model, round), or a se.Retrain")
    check_progress(progress)
    check_loss(options.get("loss"))
    calibration = options.get("calibration")
    if calibration is not None:
        check_iterable(calibration)
        options = {**options, "calibration": list(calibration)}
    found = find_methods(methods, options)
    check_readable(model)
    fold_(model)
    for method in found:
        method.step.check(model)
    has_loss = options.get("loss") is not None
    batches = _read(model, options.get("calibration"), has_loss)
    trained_on = []
    if isinstance(train, Retrain):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UsageError("no parameter requires a gradient: call model.requires_grad_(True)")
        trained_on = _read(model, train.batches, train.loss is not None)
    rules = Rules(quality, widening, target, patience)
    request = {
        **rules.to_dict(),
        "model": digest(model),
        "train": train.to_dict() if isinstance(train, Retrain) else train and name_of(train),
        "methods": [method.to_dict() for method in found],
        "calibration": fingerprint(batches) if batches else {},
        "batches": fingerprint(trained_on) if trained_on else {},
    }
    with open_journal(folder, request) as journal:
        run = Run(model, rules, found, train, batches, journal, seconds, progress)
        return run.report()


def _read(model: nn.Module, inputs: Sequence[Any] | None, has_loss: bool) -> list[Batch]:
    return [] if inputs is None else read_calibration(model, inputs, has_loss)
