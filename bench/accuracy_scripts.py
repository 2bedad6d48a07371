"""Tasks learn-* of bench/accuracy.py: models that the scripts of examples/ train and prune.

For each seed a dense model is trained with labels. A copy is pruned for each pattern of zeros while
it is trained once more, with the dense one as its teacher. Controls are random weights with the
same training; the dense model trained once more, without zeros; and a smaller dense model, about as
fast as the pruned one. A model of a training is the one that was best on the part for validation,
and is evaluated on the test. `--time` adds the milliseconds and megabytes of packages: models with
the same patterns of zeros, one text of median length, all of a table in turn.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from zlib import crc32

import torch
from accuracy_rows import DENSE, Results, Setting, markdown
from safetensors.torch import load_model, save_model
from torch import nn

import sparse_engine as se
from sparse_engine.bench.machine import BUSY, BusyMeter, conditions
from sparse_engine.bench.timing import time_in_turn
from sparse_engine.errors import UsageError

EXAMPLES = str(Path(__file__).resolve().parent.parent / "examples")


def script(name: str) -> Any:
    """A script of examples/, or a module of its package `common`."""
    if EXAMPLES not in sys.path:
        sys.path.append(EXAMPLES)
    return importlib.import_module(name)


RUN, TRAINING = script("common.run"), script("common.training")
AGAIN, SMALL, GRADUAL, CUT = "again", "small", "gradual", "cut"
EVENTS = 6  # how often weights are removed in a training
CUTS = {"sparsity": 0.5, "granularity": ["head", "unit(round_to=16)"]}
POINTS = ("criterion", "training", "granularity", "sparsity", "size")


@dataclass(frozen=True)
class ScriptSetting(Setting):
    """A model of a table.

    Attributes:
        training: "" for the dense model, "small" for a smaller one, "again" for a dense one that is
            trained once more; "gradual" for zeros, "cut" for zeros after structures are cut by
            half.
        size: hidden units, or layers.
    """

    training: str = ""
    size: int = 0


@dataclass(frozen=True)
class ScriptTask:
    """A script with its options, and what is measured.

    Attributes:
        name: of the table.
        script: name of the script.
        folder: of the texts, below the folder of the data.
        options: of the script.
        size: of the dense model.
        small: size of the smaller one.
        points: pairs of granularity and sparsity.
        controls: those of them that have a row of random weights.
        seeds: of the trainings.
        folds: whether the seed is also the tenth of the texts that is the test.
        training: "gradual" or "cut".
        distil: options of the distillation.
        pretrained: whether models start from all-MiniLM-L6-v2, or from its embedding.
        unit: what is counted by `size`: hidden units, or layers.
    """

    name: str
    script: str
    folder: str
    options: str
    size: int
    small: int
    points: tuple[tuple[str, float], ...]
    controls: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...] = (0, 1)
    folds: bool = False
    training: str = GRADUAL
    distil: tuple[tuple[str, float], ...] = ()
    pretrained: bool = False
    unit: str = "size"

    def settings(self) -> list[ScriptSetting]:
        """Seed by seed: the dense models first, controls last."""
        points = [("obs", *point) for point in self.points]
        points += [("random", *point) for point in self.controls]
        found = []
        for seed in self.seeds:
            dense = ScriptSetting(seed=seed, size=self.size)
            small = replace(dense, training=SMALL, size=self.small)
            found += [dense, small]
            found += [
                replace(
                    dense,
                    criterion=criterion,
                    granularity=granularity,
                    sparsity=sparsity,
                    training=self.training,
                )
                for criterion, granularity, sparsity in points
            ]
            found.append(replace(dense, training=AGAIN))
        return found

    def given(
        self, data: Path, model: Path | None, setting: ScriptSetting
    ) -> tuple[Any, argparse.Namespace]:
        """What the script trains, and its options."""
        found = script(self.script)
        words = [*self.options.split(), "--data", str(data / self.folder)]
        words += [f"--{self.unit}", str(setting.size), "--seed", str(setting.seed)]
        if self.folds:
            words += ["--fold", str(setting.seed)]
        if self.pretrained:
            words += ["--pretrained", str(model)]
        given = found.options().parse_args(words)
        return found.make_task(given), given

    def recipe(self, setting: ScriptSetting, steps: int) -> list[dict[str, Any]]:
        """The modifiers of a training, nothing of which is removed in its second half."""
        half = steps // 2
        first = half // 2 if setting.training == CUT else 0
        cut = {
            **CUTS,
            "criterion": "random" if setting.criterion == "random" else "fisher",
            "schedule": "multi_step(levels=3)",
            "end": first - 1,
        }
        zeros = {
            "sparsity": setting.sparsity,
            "granularity": setting.granularity,
            "criterion": setting.criterion,
            "recovery": "least_squares",
            "start": first,
            "end": half,
            "every": (half - first) // EVENTS,
        }
        found: list[dict[str, Any]] = []
        if setting.training == CUT:
            found.append({"cut": cut})
        if setting.criterion != DENSE:
            found.append({"prune": zeros})
        return [*found, {"distil": dict(self.distil)}]


def pattern(model: nn.Module, setting: ScriptSetting) -> nn.Module:
    """A model with the zeros of a setting, chosen by magnitude."""
    if setting.training == CUT:
        se.prune(model, criterion="magnitude", **CUTS)
    if setting.criterion != DENSE:
        se.prune(model, setting.sparsity, setting.granularity, "magnitude")
    return model


class Trainer:
    """Trains the models of a task; the dense ones are kept in a folder, if there is one.

    Args:
        task: what is trained.
        data: folder of the data.
        model: folder of all-MiniLM-L6-v2.
        kept: folder of trained dense models; None to keep the last one only.
    """

    def __init__(self, task: ScriptTask, data: Path, model: Path | None, kept: Path | None) -> None:
        self._task, self._data, self._model, self._kept = task, data, model, kept
        self._last: tuple[ScriptSetting, nn.Module] | None = None

    def trained(self, setting: ScriptSetting) -> tuple[nn.Module, Any, dict[str, Any]]:
        """A model, what the script trains, and how it was made."""
        work, given = self._task.given(self._data, self._model, setting)
        given.rate = given.rate or RUN.RATES.get(given.model, RUN.RATE)
        about = {"options": self._task.options}
        if setting.criterion == DENSE and setting.training in ("", SMALL):
            return self._dense(setting, work, given), work, about
        dense = self._dense(ScriptSetting(seed=setting.seed, size=setting.size), work, given)
        recipe = self._task.recipe(setting, given.prune_steps)
        torch.manual_seed(setting.seed)
        what = f"{self._task.name} {label(setting)}"
        found = TRAINING.prune(dense, work, given, recipe, what)
        return found.model, work, about | {"recipe": recipe, "reached": round(found.zeros, 4)}

    def _dense(self, setting: ScriptSetting, work: Any, given: argparse.Namespace) -> nn.Module:
        if self._last and self._last[0] == setting:
            return self._last[1]
        torch.manual_seed(setting.seed)
        model = work.build()
        path = None
        if self._kept is not None:
            options = crc32(self._task.options.encode())  # a model of other options is another one
            name = f"{self._task.name}-{setting.size}-{setting.seed}-{options:08x}.safetensors"
            path = self._kept / name
        if path is not None and path.exists():
            load_model(model, path)
        else:
            TRAINING.train(model, work, given, given.steps, f"{self._task.name} {label(setting)}")
            if path is not None:
                save_model(model, str(path))
        if setting.training != SMALL:
            self._last = (setting, model.eval())
        return model.eval()


def label(setting: ScriptSetting, unit: str = "size") -> str:
    """The name of a model in a table, whose size counts a unit of `ScriptTask`."""
    if setting.criterion != DENSE:
        cut = "cut, " if setting.training == CUT else ""
        random = ", random" if setting.criterion == "random" else ""
        return f"{cut}{setting.sparsity:.0%} {setting.granularity}{random}"
    if setting.training == AGAIN:
        return "dense, trained again"
    return f"dense, {unit} {setting.size}"


def shape(setting: ScriptSetting) -> str:
    """What the time of a model depends on."""
    cut = CUT if setting.training == CUT else ""
    return f"{setting.size} {cut} {setting.granularity} {setting.sparsity}"


def measure(
    task: ScriptTask,
    settings: Sequence[ScriptSetting],
    results: Results,
    trainer: Trainer,
    about: dict[str, Any],
) -> None:
    """Train and evaluate each model that has no result yet."""
    meter = BusyMeter()
    for setting in settings:
        if setting in results:
            continue
        busy, start = meter.start(), perf_counter()
        model, work, row = trainer.trained(setting)
        seconds = round(perf_counter() - start, 1)
        row = {
            "quality": round(work.evaluate(model, work.parts.test), 3),
            "valid": round(work.evaluate(model, work.parts.valid), 3),
            "seconds": seconds,
            "busy": max(busy, meter.look()),
            **row,
        }
        results.add(setting, row | {"conditions": about})


def add_times(task: ScriptTask, results: Results, data: Path, model: Path | None) -> None:
    """Milliseconds and megabytes of each pattern of zeros, all in turn, for the rows that exist."""
    patterns = {shape(setting): setting for setting in task.settings()}
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    meter = BusyMeter()
    with TemporaryDirectory() as scratch:
        for name, setting in patterns.items():
            work, _ = task.given(data, model, setting)
            torch.manual_seed(0)
            dense = work.build().eval()
            inputs = RUN.example(work)
            if setting.criterion == DENSE:
                calls[name] = partial(dense, **inputs)
                found[name] = {"mb": round(RUN.megabytes(dense), 3)}
                continue
            out = Path(scratch) / str(len(found))
            out.mkdir()
            pruned = TRAINING.Pruned(pattern(dense, setting), setting.sparsity, {})
            package = RUN.convert(dense, pruned, work, se.SparseConfig("auto"), inputs, out)
            size = (out / "package" / "sparse_engine.safetensors").stat().st_size
            calls[name] = partial(package, **inputs)
            found[name] = {"mb": round(size / 1e6, 3)}
        with torch.inference_mode():
            busy = meter.start()
            times = time_in_turn(calls)
            busy = max(busy, meter.look())
    tokens = next(iter(inputs.values())).numel()
    for name, seconds in times.items():
        found[name] |= {"ms": round(1e3 * seconds, 4), "tokens": tokens, "time_busy": busy}
        found[name]["time_conditions"] = conditions()
    for setting, row in results.all().items():
        assert isinstance(setting, ScriptSetting)
        row.update(found.get(shape(setting), {}))
    results.save()


def table(task: ScriptTask, rows: Sequence[dict[str, Any]], column: str) -> str:
    """A row for each model: the mean over the seeds, its range, and the mean difference to dense.

    Args:
        task: of the rows.
        rows: in the order of the table.
        column: name of the quality; differences of perplexities are in per cent.
    """
    dense = {row["seed"]: row["quality"] for row in rows if _is_dense(row)}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in POINTS), []).append(row)
    is_ratio = column == "perplexity"
    has_range = max(map(len, groups.values())) > 1
    ranged = ["range"] if has_range else []
    head = ["model", column, *ranged, "to dense", "seeds", "ms", "MB"]
    cells = []
    for group in groups.values():
        first = group[0]
        names = ScriptSetting.__dataclass_fields__
        values = [row["quality"] for row in group]
        pairs = [(row["quality"], dense[row["seed"]]) for row in group if row["seed"] in dense]
        change = mean(100 * (a / b - 1) if is_ratio else a - b for a, b in pairs) if pairs else 0.0
        is_busy = first.get("time_busy", 0) >= BUSY
        cells.append(
            [
                label(ScriptSetting(**{name: first[name] for name in names}), task.unit),
                f"{mean(values):.2f}",
                *([f"{min(values):.2f}-{max(values):.2f}"] if has_range else []),
                "" if _is_dense(first) else f"{change:+.2f}" + ("%" if is_ratio else ""),
                str(len(group)),
                ("busy" if is_busy else f"{first['ms']:.3f}") if "ms" in first else "",
                f"{first['mb']:.2f}" if "mb" in first else "",
            ]
        )
    return markdown(head, cells, texts=1)


def _is_dense(row: dict[str, Any]) -> bool:
    return row["criterion"] == DENSE and not row["training"]


def run_script_task(
    task: ScriptTask, given: argparse.Namespace, model: Path | None, about: dict[str, Any]
) -> str:
    """Measure what is missing of a task; returns its table."""
    results = Results(given.out / f"accuracy-{task.name}.jsonl", task.name, ScriptSetting)
    settings = task.settings()
    if given.seed is not None:
        settings = [setting for setting in settings if setting.seed == given.seed]
        if not settings:
            raise UsageError(f"--seed {given.seed}: {task.name} has the seeds {task.seeds}")
    if given.time:
        add_times(task, results, given.data, model)
    else:
        measure(task, settings, results, Trainer(task, given.data, model, given.models), about)
    first = settings[0]
    column = task.given(given.data, model, first)[0].metric
    return table(task, results.of(settings), column)
