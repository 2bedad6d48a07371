"""The task target of bench/accuracy.py: all-MiniLM-L6-v2 pruned to a speed-up, on this machine.

For each speed-up over dense torch: what was predicted, what was measured, and what remains of the
embeddings; then, for each granularity, the uniform setting that takes as long, pruned by the same
criterion. Models are measured in turn with the dense one.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from accuracy_sick import Encoder, Sick
from torch import nn

from sparse_engine.bench.machine import conditions
from sparse_engine.cli.common import progress_bar, split
from sparse_engine.demo.data import model_folder
from sparse_engine.pruning import PruneReport, Target, parse_granularity, prune
from sparse_engine.pruning.allocators import Setting
from sparse_engine.pruning.plan import make_plan
from sparse_engine.pruning.target.machine import Machine
from sparse_engine.pruning.target.timing import inputs_of
from sparse_engine.structures import STRUCTURES

TARGET = "target"
SPEEDUPS = (2.0, 3.0, 4.0)
GRANULARITIES = ("element", "4x1", "16x1")
CRITERION, RECOVERY = "obs", "least_squares"
SAMPLES, TOKENS, SEARCH_SECONDS = 1000, 128, 120.0
HALVINGS = 6  # of the interval that holds the uniform sparsity of a speed-up
COLUMNS = ("target", "zeros", "predicted ms", "ms", "speed-up", "rho", "cosine")


def run_target(given: argparse.Namespace) -> str:
    """Measure all rows, append them to accuracy-target.jsonl, and return the table."""
    sick = Sick(given.data, Encoder(given.model or model_folder()))
    batches = sick.encoder.batches(sick.texts(given.samples or SAMPLES, given.seed or 0))
    rows = []
    with (given.out / "accuracy-target.jsonl").open("a") as file:
        for row in target_rows(sick, batches, given.seed or 0, *_chosen(given)):
            rows.append(row)
            file.write(json.dumps(row | {"conditions": conditions()}) + "\n")
            file.flush()
    cells = [[_text(row.get(name)) for name in COLUMNS] for row in rows]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _chosen(given: argparse.Namespace) -> tuple[Sequence[float], Sequence[str] | None]:
    """The speed-ups, and the granularities and structures; None for those of `prune`."""
    speedups = split(given.speedup, float, "--speedup") if given.speedup else SPEEDUPS
    names = split(given.granularity, str, "--granularity") if given.granularity else None
    return speedups, names


def target_rows(
    sick: Sick,
    batches: list[Any],
    seed: int,
    speedups: Sequence[float],
    granularities: Sequence[str] | None,
) -> Iterator[dict[str, Any]]:
    """The dense model; then each speed-up, followed by what is uniform and equally fast."""
    yield {"target": "dense", **sick.evaluate(sick.dense)}
    structures = {structure.name for structure in STRUCTURES}
    is_mixed = granularities is not None and not structures.isdisjoint(granularities)
    alone = [name for name in granularities or GRANULARITIES if name not in structures]
    of_target = f" of {','.join(granularities)}" if granularities else ""
    for speedup in speedups:
        target = Target(speedup=speedup, tokens=TOKENS, search_seconds=SEARCH_SECONDS)
        model = copy.deepcopy(sick.dense)
        with progress_bar(f"target {speedup:g}") as bar:
            report = prune(
                model,
                granularity=granularities,
                criterion=CRITERION,
                recovery=RECOVERY,
                allocator="raw" if is_mixed else "uniform",
                calibration=batches,
                seed=seed,
                progress=bar,
                target=target,
            )
        yield {"target": f"{speedup:g}{of_target}", **_of_target(report), **sick.evaluate(model)}
        for granularity in alone:
            model = copy.deepcopy(sick.dense)
            with progress_bar(f"{granularity}, equally fast") as bar:
                sparsity = _equally_fast(sick.dense, target, granularity)
                if sparsity is None:
                    continue
                prune(
                    model,
                    sparsity,
                    granularity,
                    CRITERION,
                    RECOVERY,
                    batches,
                    seed=seed,
                    progress=bar,
                )
            name = f"{speedup:g}, uniform {granularity}"
            found = _machine(sick.dense, target).measure(_weights(model))
            times = {"ms": round(found.ms, 2), "speed-up": round(found.dense_ms / found.ms, 2)}
            yield {"target": name, "zeros": round(sparsity, 3), **times, **sick.evaluate(model)}


def _of_target(report: PruneReport) -> dict[str, Any]:
    found = report.target
    assert found is not None
    return {
        "zeros": round(report.sparsity, 3),
        "predicted ms": round(found.predicted, 2),
        "ms": round(found.measured, 2),
        "speed-up": round(found.dense / found.measured, 2),
        "evaluations": found.evaluations,
    }


def _equally_fast(dense: nn.Module, target: Target, granularity: str) -> float | None:
    """The uniform sparsity whose measured speed-up is that of a target; None if there is none."""
    machine, low, high = _machine(dense, target), 0.0, 0.99
    layers, pattern = make_plan(dense).layers, parse_granularity(granularity)

    def speedup(sparsity: float) -> float:
        setting = Setting(pattern, sparsity)
        weights = {la.name: (machine.random_weight(la.shape, setting), None) for la in layers}
        found = machine.measure(weights)
        return found.dense_ms / found.ms

    if speedup(high) < target.value:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if speedup(middle) < target.value else (low, middle)
    return (low + high) / 2


def _machine(dense: nn.Module, target: Target) -> Machine:
    return Machine(dense, replace(target, search_seconds=0), inputs_of(dense, target.tokens, []))


def _weights(model: nn.Module) -> dict[str, Any]:
    return {layer.name: (layer.weight, layer.linear.bias) for layer in make_plan(model).layers}


def _text(value: Any) -> str:
    return "" if value is None else str(value)
