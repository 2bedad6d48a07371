"""What all scripts share: options, the order of the steps, and the table."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import sparse_engine as se
from common.data import FOLDS
from common.rows import Batch, collate, length, logits_of
from common.training import CHECKS, Pruned, Task, gradual, make_pruner, prune, train
from sparse_engine import _core
from sparse_engine.bench.timing import time_in_turn
from sparse_engine.cli.common import progress_bar, set_threads
from sparse_engine.errors import UsageError, VerificationError

RATES = {"bert": 5e-4, "gpt": 1e-3}  # of Transformers; RATE of all other models
RATE = 2e-3
ERROR = 1e-4  # largest difference of a package from the pruned model, relative to the outputs


@dataclass(frozen=True)
class Line:
    """A line of the table; times in ms, sizes in MB, None where nothing is measured."""

    model: str
    quality: float
    zeros: float
    ms: float | None = None
    mb: float | None = None


def parser(text: str, models: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = found.add_argument
    add("--model", choices=models, default=models[0], help="the kind of model")
    add("--data", type=Path, help="a folder of texts; none for the built-in text")
    add("--limit", type=int, help="most texts of each part")
    add("--size", type=int, default=256, help="hidden units")
    add("--dropout", type=float, default=0.0, help="of recurrent models, in training")
    add("--words", type=int, default=4000, help="most words of the vocabulary")
    add("--steps", type=int, default=400, help="steps of the dense training")
    add("--prune-steps", type=int, default=250, help="steps of the pruned training")
    add("--fold", type=int, choices=range(FOLDS), default=0, help="the tenth of one file to test")
    add("--batch", type=int, default=32, help="texts a step")
    add("--rate", type=float, help="the largest learning rate, if not that of RATES")
    add("--bfloat16", action="store_true", help="train with products in bfloat16")
    add("--sparsity", type=float, default=0.9, help="fraction of zeros in the pruned layers")
    add("--granularity", default="element", help="element, or blocks such as 4x1")
    add("--criterion", default="magnitude", help="chooses the weights that are removed")
    add("--format", default="auto", help="auto for the one that is measured as the fastest")
    add("--out", type=Path, help="a new folder to keep the package in")
    add("--threads", type=int, help="cores to use")
    add("--seed", type=int, default=0, help="of all random numbers")
    if {"bert", "gpt"} & set(models):
        add("--layers", type=int, help="of a Transformer or a language model")
    if "bert" in models:
        add("--pretrained", type=Path, help="the folder of a BERT to start from, or its embedding")
    return found


def run(task: Task, given: argparse.Namespace) -> list[Line]:
    """Train, prune, convert and measure; print the table, and return its lines.

    Raises:
        UsageError: if an option is wrong.
        VerificationError: if the package computes something else than the pruned model.
    """
    if given.out is not None and given.out.exists():
        raise UsageError(f"--out {given.out} exists: give a new folder")
    if given.out is not None and not given.out.absolute().parent.is_dir():
        raise UsageError(f"--out {given.out}: create the folder above it first")
    if min(given.steps, given.prune_steps) < CHECKS:
        raise UsageError(f"--steps and --prune-steps: give at least {CHECKS}")
    config = se.SparseConfig(given.format)
    recipe, control = (gradual(given, name) for name in (given.criterion, "random"))
    make_pruner(task.build(), task.build(), task, given, recipe)  # to check the options
    given.rate = given.rate or RATES.get(given.model, RATE)
    set_threads(given.threads)
    torch.manual_seed(given.seed)
    dense = train(task.build(), task, given, given.steps, "dense model")
    pruned = prune(dense, task, given, recipe, f"{given.criterion} zeros")
    random = prune(dense, task, given, control, "random zeros")
    with TemporaryDirectory() as scratch:
        out = given.out or Path(scratch) / "out"
        out.mkdir()
        inputs = example(task)
        package = convert(dense, pruned, task, config, inputs, out)
        weights = (out / "package" / "sparse_engine.safetensors").stat().st_size / 1e6
        with torch.inference_mode():
            calls = {"dense": lambda: dense(**inputs), "package": lambda: package(**inputs)}
            ms = {name: 1e3 * seconds for name, seconds in time_in_turn(calls).items()}
        test = task.parts.test
        lines = [
            Line("dense, torch", task.evaluate(dense, test), 0.0, ms["dense"], megabytes(dense)),
            Line(
                "pruned, package",
                task.evaluate(package, test),
                pruned.zeros,
                ms["package"],
                weights,
            ),
            Line("random zeros, torch", task.evaluate(random.model, test), random.zeros),
        ]
    about = f"{task.name}: {task.parts.source}, {len(task.parts.train)} texts for training"
    print(about)
    threads = torch.get_num_threads()
    print(
        f"1 text of {next(iter(inputs.values())).shape[1]} words, float32, "
        f"{threads} thread{'s' if threads > 1 else ''}, {_core.cpu_name()}"
    )
    print(table(task.metric, lines))
    if given.out is not None and task.tokenizer is not None:
        print(f'try: sparse-engine run {out / "package"} --text "..."')
    return lines


def example(task: Task) -> Batch:
    """The inputs for the text of median length, alone."""
    ordered = sorted(task.parts.test, key=length)
    batch = collate([ordered[len(ordered) // 2]])
    batch.pop("labels")
    return batch


def convert(
    dense: nn.Module,
    pruned: Pruned,
    task: Task,
    config: se.SparseConfig,
    inputs: Batch,
    out: Path,
) -> nn.Module:
    """Convert a copy of the pruned model, save it to OUT/package, load it, and verify it.

    A model with a tokenizer is saved to OUT/dense before, as transformers does it, and the package
    has its config and its tokenizer.
    """
    source, skeleton = None, task.build()
    if task.tokenizer is not None:
        source, skeleton = out / "dense", None
        dense.save_pretrained(source)
        task.tokenizer.save(str(source / "tokenizer.json"))
    sparse = copy.deepcopy(pruned.model)
    tokens = next(iter(inputs.values())).numel()
    with progress_bar("converting") as progress:
        report = se.sparsify_(sparse, replace(config, tokens=(tokens,)), progress=progress)
    se.save(sparse, out / "package", report=report, recipe=pruned.recipe, source=source)
    package = se.load(out / "package", model=skeleton)
    with torch.inference_mode():
        expected = logits_of(pruned.model, inputs)
        error = (logits_of(package, inputs) - expected).abs().max() / expected.abs().max()
    if not error <= ERROR:
        raise VerificationError(f"the package differs from the pruned model by {error:.1e}")
    return package


def megabytes(model: nn.Module) -> float:
    """Parameters and buffers in MB; those that are tied count once."""
    tensors = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    return sum(tensors.values()) / 1e6


def table(metric: str, lines: Sequence[Line]) -> str:
    """A row for each model."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    rows: list[tuple[Any, ...]] = [("model", metric, "zeros", "ms", "MB")]
    rows += [
        (
            line.model,
            f"{line.quality:.2f}",
            f"{line.zeros:.1%}",
            number(line.ms, ".2f"),
            number(line.mb, ".2f"),
        )
        for line in lines
    ]
    return "\n".join(
        f"{model:<20} {quality:>12} {zeros:>8} {ms:>9} {mb:>9}"
        for model, quality, zeros, ms, mb in rows
    )
