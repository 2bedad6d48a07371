"""The task cut-steps of bench/accuracy.py: heads and units of MiniLM cut, then blocks of the rest.

Each share of weights is reached by 4x1 blocks alone, and after half of the units, or of heads and
units, were taken out. As a control, structures are also chosen at random. Every model is converted
to a package. At the end all packages are timed in turn with the dense model in torch, on one text
of 128 tokens: `x dense` is the speed-up over that, `x 4x1` that over the package with 80 % of 4x1
blocks alone.

With --packages the packages are kept, and a later run with these samples and this seed only times
those that are there.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accuracy_cut import TOKENS
from accuracy_sick import Encoder, Sick
from torch import nn

import sparse_engine as se
from sparse_engine.bench.machine import BUSY, BusyMeter, conditions
from sparse_engine.bench.timing import time_in_turn
from sparse_engine.cli.common import progress_bar
from sparse_engine.config import SparseConfig
from sparse_engine.demo.data import model_folder
from sparse_engine.pruning.target.timing import inputs_of

CUT_STEPS = "cut-steps"
SAMPLES, ROUNDS = 1000, 21
SHARE = 0.5  # of the structures, which is removed
BLOCKS, CRITERION, RECOVERY = "4x1", "obs", "least_squares"
CONFIG = SparseConfig(tokens=(TOKENS,))
FIGURES = "figures.json"
COLUMNS = ("pruned", "left", "rho", "cosine", "ms", "x dense", "x 4x1")


@dataclass(frozen=True)
class Variant:
    """One way to remove weights.

    Attributes:
        blocks: fraction of the blocks of what is left that are set to zero.
        structures: kinds of which half are taken out first, as "head,unit".
        criterion: of the structures.
    """

    blocks: float
    structures: str = ""
    criterion: str = "fisher"

    def __str__(self) -> str:
        by = "random " if self.criterion == "random" else ""
        blocks = f"{BLOCKS} {100 * self.blocks:.3g}%" if self.blocks else ""
        return " + ".join(filter(None, (by + self.structures, blocks)))

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps of `prune`."""
        structures = {
            "granularity": self.structures.split(","),
            "sparsity": SHARE,
            "criterion": self.criterion,
            "allocator": "uniform" if self.criterion == "random" else "raw",
        }
        blocks = {"granularity": BLOCKS, "sparsity": self.blocks, "criterion": CRITERION}
        chosen = ((self.structures, structures), (self.blocks, blocks))
        return [step for wanted, step in chosen if wanted]


# Units are two thirds of the weights of a layer: half of them are a third.
BASE = Variant(0.8)
VARIANTS = (
    Variant(0, "unit"),
    Variant(0, "head,unit"),
    BASE,  # 20 % of the weights are left
    Variant(0.7, "unit"),
    Variant(0.6, "head,unit"),
    Variant(13 / 15),  # 13.3 %
    Variant(0.8, "unit"),
    Variant(0.8, "unit", "random"),
    Variant(0.9),  # 10 %
    Variant(0.85, "unit"),
    Variant(0.8, "head,unit"),
    Variant(0.8, "head,unit", "random"),
)


def run_cut_steps(given: argparse.Namespace) -> str:
    """Measure all rows, append them to accuracy-cut-steps.jsonl, and return the table."""
    sick = Sick(given.data, Encoder(given.model or model_folder()))
    samples, seed = given.samples or SAMPLES, given.seed or 0
    with TemporaryDirectory() as temporary:
        folder = (given.packages or Path(temporary)) / f"samples {samples}, seed {seed}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = measured(sick, folder, samples, seed)
    about = conditions()
    with (given.out / f"accuracy-{CUT_STEPS}.jsonl").open("a") as file:
        file.writelines(json.dumps(row | {"conditions": about}) + "\n" for row in rows)
    return table(rows)


def measured(sick: Sick, folder: Path, samples: int, seed: int) -> list[dict[str, Any]]:
    """The dense model and all variants: quality, and times of all of them in turn.

    Args:
        sick: the model and its test.
        folder: packages are written here, unless they are there.
        samples: number of calibration sentences.
        seed: of calibration and random scores.
    """
    rows = {"dense": {"left": 1.0, **sick.evaluate(sick.dense)}}
    folders = {variant: folder / str(variant) for variant in VARIANTS}
    batches = sick.encoder.batches(sick.texts(samples, seed))
    with progress_bar(CUT_STEPS) as report:
        for done, variant in enumerate(VARIANTS):
            report(done, len(VARIANTS), str(variant))
            figures = folders[variant] / FIGURES
            if not figures.exists():
                found = convert(sick, variant, batches, seed, folders[variant])
                figures.write_text(json.dumps(found))
            rows[str(variant)] = json.loads(figures.read_text())
    inputs: Any = inputs_of(sick.dense, TOKENS, [])

    def call(model: nn.Module) -> Callable[[], object]:
        return lambda: model(**inputs)

    calls = {str(variant): call(se.load(path)) for variant, path in folders.items()}
    meter = BusyMeter()
    busy = meter.start()
    with torch.inference_mode():
        times = time_in_turn({"dense": call(sick.dense), **calls}, ROUNDS)
    busy = max(busy, meter.look())
    for name, seconds in times.items():
        rows[name] |= {
            "ms": round(1e3 * seconds, 1),
            "x dense": round(times["dense"] / seconds, 2),
            "x 4x1": round(times[str(BASE)] / seconds, 2),
        }
    same = {"task": CUT_STEPS, "samples": samples, "seed": seed, "busy": busy}
    return [{**same, "pruned": name, **row} for name, row in rows.items()]


def convert(
    sick: Sick, variant: Variant, batches: list[Any], seed: int, folder: Path
) -> dict[str, float]:
    """Prune a copy of the dense model and write its package; returns the figures of its quality."""
    model = copy.deepcopy(sick.dense)
    se.prune(model, steps=variant.steps, recovery=RECOVERY, calibration=batches, seed=seed)
    left = weights_left(model) / weights_left(sick.dense)
    figures = {"left": round(left, 3), **sick.evaluate(model)}
    converted = se.sparsify_(model, CONFIG)
    se.save(model, folder, report=converted, source=sick.encoder.folder)
    return figures


def weights_left(model: nn.Module) -> int:
    """Weights of the linear layers of the stack that are not zero."""
    layers = [m for name, m in model.named_modules() if name.startswith("encoder.")]
    return sum(int(m.weight.count_nonzero()) for m in layers if isinstance(m, nn.Linear))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows in Markdown; the times of a busy machine are marked."""
    lines = [COLUMNS, (":--", *["--:"] * (len(COLUMNS) - 1))]
    lines += [tuple(str(row[name]) for name in COLUMNS) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    texts = [
        f"| {line[0].ljust(widths[0])} | " + " | ".join(map(str.rjust, line[1:], widths[1:])) + " |"
        for line in lines
    ]
    busy = max(row["busy"] for row in rows)
    if busy >= BUSY:
        texts.append(f"\nThe machine was busy ({busy:.0%}): these times are no measurement.")
    return "\n".join(texts)
