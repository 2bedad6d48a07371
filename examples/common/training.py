"""Training: of a dense model, and of a copy that is pruned while it learns from the dense one."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import sparse_engine as se
from common.data import Parts
from common.rows import Row, endless, loss_of
from sparse_engine.cli.common import progress_bar

CHECKS = 6  # how often a training is evaluated on the part for validation
CALIBRATION = 4  # batches, for criteria that need some


@dataclass(frozen=True)
class Task:
    """What a script trains.

    Attributes:
        name: of the task and the model.
        metric: title of the column of the quality.
        build: makes the model with random weights.
        parts: encoded texts, as rows.py describes them.
        evaluate: quality of a model on some rows.
        sign: 1 if more is better, else -1.
        tokenizer: a tokenizers.Tokenizer, of models that the command line runs; None for plain
            torch modules.
    """

    name: str
    metric: str
    build: Callable[[], nn.Module]
    parts: Parts
    evaluate: Callable[[nn.Module, Sequence[Row]], float]
    sign: int = 1
    tokenizer: Any = None


@dataclass(frozen=True)
class Pruned:
    """A pruned model, the zeros of its pruned layers, and how it was made, as plain values."""

    model: nn.Module
    zeros: float
    recipe: dict[str, Any]


def train(
    model: nn.Module,
    task: Task,
    given: argparse.Namespace,
    steps: int,
    what: str,
    pruner: se.Pruner | None = None,
    settled: int = 0,
) -> nn.Module:
    """Train a model, and take the weights that were best on the part for validation.

    Args:
        model: trained in place.
        task: the rows and the measure of quality.
        given: options of the script.
        steps: of the optimizer; the learning rate rises in the first tenth, then falls to zero.
        what: text before the progress bar.
        pruner: of the model, if it is pruned.
        settled: the step after which the model may be evaluated.
    """
    optimizer = torch.optim.AdamW(model.parameters(), given.rate)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, given.rate, total_steps=steps + 1, pct_start=0.1
    )
    checks = {settled + (steps - settled) * i // CHECKS for i in range(1, CHECKS + 1)}
    best, state = -float("inf"), {}
    batches = endless(task.parts.train, given.batch, given.seed)
    with progress_bar(what) as report:
        for step in range(1, steps + 1):
            model.train()
            batch = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=given.bfloat16):
                loss = loss_of(model, batch) if pruner is None else pruner.loss(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if pruner is None:
                optimizer.step()
                optimizer.zero_grad()
            else:
                pruner.step(optimizer)
            rates.step()
            report(step, steps, f"loss {loss.item():.3g}")
            if step in checks:
                quality = task.sign * task.evaluate(model.eval(), task.parts.valid)
                if quality >= best:
                    best, state = quality, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return model.eval()


def gradual(given: argparse.Namespace, criterion: str) -> list[dict[str, Any]]:
    """Weights are removed in the first half of the training, and the dense model is the teacher."""
    prune = {
        "sparsity": given.sparsity,
        "granularity": given.granularity,
        "criterion": criterion,
        "end": given.prune_steps // 2,
    }
    return [{"prune": prune}, {"distil": {}}]


def make_pruner(
    model: nn.Module,
    dense: nn.Module,
    task: Task,
    given: argparse.Namespace,
    recipe: list[dict[str, Any]],
) -> se.Pruner:
    """The pruner of a recipe, whose teacher is the dense model.

    Raises:
        UsageError: if an option does not fit the model.
    """
    batches = endless(task.parts.train, given.batch, given.seed)
    calibration = [next(batches) for _ in range(CALIBRATION)]
    return se.Pruner(model, recipe, dense, calibration, loss_of)


def prune(
    dense: nn.Module,
    task: Task,
    given: argparse.Namespace,
    recipe: list[dict[str, Any]],
    what: str,
) -> Pruned:
    """Prune a copy of the dense model while it is trained.

    Args:
        dense: the teacher, too.
        task: what is trained.
        given: options of the script.
        recipe: nothing of it is removed in the second half of the training.
        what: text before the progress bar.
    """
    model = copy.deepcopy(dense)
    pruner = make_pruner(model, dense, task, given, recipe)
    train(model, task, given, given.prune_steps, what, pruner, given.prune_steps // 2)
    report = pruner.finalize()
    return Pruned(model, pruner.sparsity, report.to_dict())
