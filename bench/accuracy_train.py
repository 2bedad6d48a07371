"""Tasks train-* of bench/accuracy.py: models that are pruned, and then trained to recover.

The dense model is the teacher, and no text has a label. A training is so many steps of AdamW, so
that a row can be made again on any machine; its learning rate rises for a twentieth of the steps
and then falls to zero along a cosine. Controls are random weights with the same training. Figures
are means over seeds. `--time` adds the milliseconds and megabytes of the converted model beside
those of the dense one to the rows that are there, measured in turn.
"""

from __future__ import annotations

import argparse
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import torch
from accuracy_rows import DENSE, Results, Setting, figure, markdown
from torch import nn

from sparse_engine.bench.machine import BUSY, BusyMeter, conditions
from sparse_engine.cli.common import progress_bar, split
from sparse_engine.errors import UsageError
from sparse_engine.pruning import Target, prune
from sparse_engine.pruning.target.machine import Machine, bytes_of
from sparse_engine.pruning.target.timing import inputs_of
from sparse_engine.training import Pruner

WARM_UP = 0.05  # share of the steps in which the learning rate rises
NONE = "none"
AFTER = (NONE, "hold", "distil")  # follow pruning in one shot; other recipes prune by themselves
POINTS = ("criterion", "recovery", "granularity", "sparsity", "training", "steps", "batch", "rate")


@dataclass(frozen=True)
class TrainSetting(Setting):
    """A setting of a one-shot table, and the training that follows.

    Attributes:
        training: name of a recipe of the task; "none" for the model as `prune` leaves it.
        steps: of the optimizer.
        batch: inputs of a step.
        rate: the highest learning rate.
    """

    training: str = NONE
    steps: int = 0
    batch: int = 0
    rate: float = 0.0


class TrainTask(Protocol):
    """A real model, inputs without labels, and a measure of its quality.

    Attributes:
        name: of the table.
        dense: the model in torch, in evaluation mode; it is also the teacher.
        columns: names of the figures that `evaluate` gives.
        tokens: of a call that is timed.
        bfloat16: whether products of the training are computed in bfloat16.
    """

    name: str
    dense: Any
    columns: tuple[str, ...]
    tokens: int
    bfloat16: bool

    def settings(self) -> list[TrainSetting]: ...

    def arguments(self, setting: Setting) -> dict[str, Any]: ...

    def recipe(self, setting: TrainSetting) -> list[dict[str, Any]]: ...

    def trained(self, model: nn.Module) -> list[nn.Parameter]: ...

    def batches(self, setting: TrainSetting) -> Iterator[Any]: ...

    def timed(self, model: nn.Module) -> nn.Module: ...

    def evaluate(self, model: nn.Module) -> dict[str, float]: ...


def measure(
    task: TrainTask, settings: Sequence[TrainSetting], results: Results, about: dict[str, Any]
) -> None:
    """Prune, train and evaluate a copy of the dense model in each setting without a result."""
    left = [setting for setting in settings if setting not in results]
    left.sort(key=lambda setting: (setting.seed, setting.criterion == "random"))
    total, done = sum(setting.steps + 1 for setting in left), 0
    meter = BusyMeter()
    before, model = TrainSetting(), task.dense
    with progress_bar(task.name) as bar:
        for setting in left:
            what = f"{setting.criterion} {setting.granularity} {setting.sparsity:.0%}"
            bar(done, total, what)
            row: dict[str, Any] = {}
            busy, start = meter.start(), perf_counter()
            untrained = one_shot(setting)
            if untrained != before:
                before, model = untrained, pruned(task, untrained)
            if setting.steps:
                trained = copy.deepcopy(model)
                report = partial(_report, bar, done, total, what)
                row |= train(task, trained, setting, report)
            else:
                trained = model
            if setting.criterion != DENSE:
                row["seconds"] = round(perf_counter() - start, 1)
                row["busy"] = max(busy, meter.look())
            results.add(setting, task.evaluate(trained) | row | {"conditions": about})
            done += setting.steps + 1


def _report(
    bar: Callable[[int, int, str], None], done: int, total: int, what: str, step: int
) -> None:
    bar(done + step, total, what)


def one_shot(setting: TrainSetting) -> TrainSetting:
    """What a training begins with: a model that was pruned in one shot, or the dense model."""
    if setting.training not in AFTER:
        return TrainSetting()
    return replace(setting, training=NONE, steps=0, batch=0, rate=0.0)


def pruned(task: TrainTask, setting: TrainSetting) -> nn.Module:
    """A copy of the dense model, pruned in one shot."""
    model = copy.deepcopy(task.dense)
    if setting.criterion != DENSE:
        prune(
            model,
            setting.sparsity,
            setting.granularity.split(","),
            setting.criterion,
            setting.recovery,
            allocator=setting.allocator,
            seed=setting.seed,
            **task.arguments(setting),
        )
    return model


def train(
    task: TrainTask,
    model: nn.Module,
    setting: TrainSetting,
    report: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train a model in place; returns the recipe, and the share of zeros that it reached."""
    torch.manual_seed(setting.seed)
    teacher = copy.deepcopy(task.dense)
    if task.bfloat16:
        teacher = teacher.bfloat16()
    calibration = None
    if setting.training not in AFTER and setting.samples:
        calibration = task.arguments(setting)["calibration"]
    parameters = task.trained(model)
    pruner = Pruner(model, task.recipe(setting), teacher, calibration, seed=setting.seed)
    optimizer = torch.optim.AdamW(parameters, lr=setting.rate, weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step / setting.steps)
    )
    batches = task.batches(setting)
    warnings.filterwarnings("ignore", "the model is trained in evaluation mode")  # as it should be
    for step in range(setting.steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=task.bfloat16):
            loss = pruner.loss(next(batches))
        loss.backward()
        pruner.step(optimizer)
        scheduler.step()
        report(step)
    return {"recipe": pruner.finalize().recipe, "reached": round(pruner.sparsity, 4)}


def rate(progress: float) -> float:
    """Factor on the learning rate at a share of the training: up a line, down a cosine."""
    if progress < WARM_UP:
        return (progress + 0.01) / (WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def add_times(task: TrainTask, results: Results) -> None:
    """Milliseconds and megabytes of the converted and of the dense model, for every row.

    A model is timed once for each pattern of zeros, whose values do not matter.
    """
    target = Target(speedup=2.0, tokens=task.tokens)
    dense = task.timed(task.dense)
    inputs = inputs_of(dense, task.tokens, [])
    meter = BusyMeter()
    found: dict[tuple[str, float], dict[str, Any]] = {}
    rows = results.all()
    with progress_bar(f"{task.name}, times") as bar:
        for done, (setting, row) in enumerate(rows.items()):
            key = (setting.granularity, setting.sparsity)
            bar(done, len(rows), f"{setting.granularity} {setting.sparsity:.0%}")
            if key not in found:
                busy = meter.start()
                plain = replace(setting, criterion="magnitude", recovery=NONE, samples=1)
                is_dense = setting.criterion == DENSE
                model = dense if is_dense else task.timed(pruned(task, plain))
                times = Machine(model, target, inputs, dense).measure({})
                found[key] = {
                    "ms": round(times.dense_ms if is_dense else times.ms, 3),
                    "dense_ms": round(times.dense_ms, 3),
                    "mb": round((bytes_of(dense) if is_dense else times.nbytes) / 1e6, 3),
                    "time_busy": max(busy, meter.look()),
                    "time_conditions": conditions(),
                }
            row.update(found[key])
    results.save()


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows of one task in Markdown; figures are means over the seeds.

    Args:
        rows: of one task; a time that was taken on a busy machine is left out.
        columns: names of the figures.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in POINTS), []).append(row)
    figures = [*columns, *(name for name in ("ms", "mb") if any(name in row for row in rows))]
    head = ["criterion", "zeros", "training", "steps", "seeds", *figures]
    cells = []
    for group in groups.values():
        first = group[0]
        means = {
            name: sum(row[name] for row in group) / len(group) for name in figures if name in first
        }
        is_busy = first.get("time_busy", 0) >= BUSY
        texts = [
            "busy" if is_busy and name == "ms" else figure(means.get(name)) for name in figures
        ]
        dense = first["criterion"] == DENSE
        cells.append(
            [
                first["criterion"],
                "" if dense else f"{first['sparsity']:.0%} {first['granularity']}",
                "" if dense else first["training"],
                str(first["steps"] or ""),
                "" if dense else str(len(group)),
                *texts,
            ]
        )
    return markdown(head, cells, texts=3)


def run_training(task: TrainTask, given: argparse.Namespace, about: dict[str, Any]) -> str:
    """Measure what is missing of a task; returns its table."""
    results = Results(given.out / f"accuracy-{task.name}.jsonl", task.name, TrainSetting)
    if given.time:
        add_times(task, results)
        return table(list(results.all().values()), task.columns)
    settings = list(dict.fromkeys(chosen(task, given)))
    measure(task, settings, results, about)
    return table(results.of(settings), task.columns)


def chosen(task: TrainTask, given: argparse.Namespace) -> list[TrainSetting]:
    """The settings of a task that the options choose."""
    settings = task.settings()
    if given.criterion:
        if not given.only:
            raise UsageError("--criterion: tables of trainings have no further rows; add --only")
        settings = [s for s in settings if s.criterion in (DENSE, *given.criterion)]
    for option, name, kind in (
        ("--granularity", "granularity", str),
        ("--sparsity", "sparsity", float),
        ("--seed", "seed", int),
    ):
        text = getattr(given, name)
        if text is None:
            continue
        wanted = split(str(text), kind, option)
        settings = [s for s in settings if s.criterion == DENSE or getattr(s, name) in wanted]
        if len(settings) < 2:
            raise UsageError(f"{option} {text}: {task.name} has no such row")
    return settings
