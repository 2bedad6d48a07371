"""What pruning costs in accuracy: real models, real data, one table a task.

    python bench/accuracy.py sick --data FOLDER       # all-MiniLM-L6-v2 on SICK relatedness
    python bench/accuracy.py tagger --data FOLDER     # the BiLSTM tagger g2pM
    python bench/accuracy.py stories --data FOLDER    # stories260K, a Llama
    python bench/accuracy.py domain --data FOLDER     # calibration texts of other domains
    python bench/accuracy.py target --data FOLDER     # speed-ups that are asked for, measured here
    python bench/accuracy.py cut --data FOLDER        # heads and units taken out of MiniLM
    python bench/accuracy.py cut-layers --data FOLDER   # whole layers of MiniLM
    python bench/accuracy.py cut-steps --data FOLDER    # heads and units of MiniLM, then 4x1 blocks
    python bench/accuracy.py cut-tagger --data FOLDER   # units of the tagger's LSTM
    python bench/accuracy.py cut-textcnn --data FOLDER  # filters of a classifier, trained first
    python bench/accuracy.py train-sick --data FOLDER  # pruned, then trained by the dense model
    python bench/accuracy.py train-tagger --data FOLDER
    python bench/accuracy.py train-stories --data FOLDER
    python bench/accuracy.py train-methods --data FOLDER  # ways to prune while training
    python bench/accuracy.py learn-sst2-cnn --data FOLDER  # learn-*: scripts of examples/
    python bench/accuracy.py all --data FOLDER        # every table

    python bench/accuracy.py sick --data FOLDER --criterion wanda --granularity 4x1 --sparsity 0.8

Models are pruned in one shot, and by train-* also trained afterwards, on texts without labels;
those of the test are never among them. They are evaluated in torch, with their zeros in dense
weights. Every table has the dense model, and for each setting `obs`, `sparsegpt` (where single
weights are removed in one shot) and, as a control, random weights, all refitted by least squares.

FOLDER holds the data under the paths that the modules accuracy_*.py name. Each result is appended
at once to accuracy-TASK.jsonl with its conditions. Settings that are already there are not run
again, so that a run that was stopped goes on; delete the file to measure anew.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import transformers
from accuracy_cut import CutLayers, CutSick, CutTagger
from accuracy_cut_steps import CUT_STEPS, run_cut_steps
from accuracy_domain import Domain
from accuracy_methods import TrainMethods
from accuracy_rows import DENSE, Results, Setting, fixed_sparsity, grid, table
from accuracy_scripts import run_script_task
from accuracy_scripts_tasks import LEARNED
from accuracy_sick import Encoder, Sick
from accuracy_stories import Stories
from accuracy_tagger import Tagger
from accuracy_target import TARGET, run_target
from accuracy_textcnn import CutTextCNN
from accuracy_train import TrainTask, run_training
from accuracy_train_tasks import TrainSick, TrainStories, TrainTagger
from torch import nn

from sparse_engine.bench.machine import BusyMeter, conditions
from sparse_engine.cli.common import progress_bar, run_script, split
from sparse_engine.demo.data import model_folder
from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune

# In every table: the control, a method to compare others with, and the most accurate one.
ALWAYS = tuple((criterion, "least_squares") for criterion in ("random", "sparsegpt", "obs"))
FOLDERS = ("--data", "--model", "--models", "--out", "--packages")  # options that name one
# Tasks with rows of their own.
OTHERS = {TARGET: run_target, CUT_STEPS: run_cut_steps}
RESULTS = Path(__file__).parent / "results"


class Task(Protocol):
    """A real model with texts to calibrate it and a measure of its quality.

    Attributes:
        name: of the table.
        dense: the model in torch, in evaluation mode.
        calibrations: names of the texts that it may be calibrated on.
        samples: default number of calibration inputs.
        columns: names of the figures that `evaluate` gives.
        points: pairs of granularity and sparsity that are measured by default.
        methods: what is always measured, as `grid` takes it; ALWAYS if there is none.
    """

    name: str
    dense: Any
    calibrations: tuple[str, ...]
    samples: int
    columns: tuple[str, ...]
    points: tuple[tuple[str, float], ...]

    def arguments(self, setting: Setting) -> dict[str, Any]: ...

    def evaluate(self, model: nn.Module) -> dict[str, float]: ...


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {
    "sick": lambda given: Sick(given.data, Encoder(given.model or model_folder())),
    "tagger": lambda given: Tagger(given.data),
    "stories": lambda given: Stories(given.data),
    "domain": lambda given: Domain(given.data, Encoder(given.model or model_folder())),
    "cut": lambda given: CutSick(given.data, Encoder(given.model or model_folder())),
    "cut-layers": lambda given: CutLayers(given.data, Encoder(given.model or model_folder())),
    "cut-tagger": lambda given: CutTagger(given.data),
    "cut-textcnn": lambda given: CutTextCNN(given.data),
}

TRAINED: dict[str, Callable[[argparse.Namespace], TrainTask]] = {
    "train-sick": lambda given: TrainSick(given.data, Encoder(given.model or model_folder())),
    "train-tagger": lambda given: TrainTagger(given.data),
    "train-stories": lambda given: TrainStories(given.data),
    "train-methods": lambda given: TrainMethods(given.data),
}

NAMES = (*TASKS, *TRAINED, *(task.name for task in LEARNED), *OTHERS)


def measure(task: Task, settings: Sequence[Setting], results: Results) -> None:
    """Prune a copy of the dense model in each setting that has no result yet, and evaluate it."""
    left = [setting for setting in settings if setting not in results]
    about = _about()
    meter = BusyMeter()
    with progress_bar(task.name) as report:
        for done, setting in enumerate(left):
            what = f"{setting.criterion} {setting.granularity} {setting.sparsity:.0%}"
            report(done, len(left), what)
            model, timing = task.dense, {}
            if setting.criterion != DENSE:
                model, arguments = copy.deepcopy(task.dense), task.arguments(setting)
                busy, start = meter.start(), perf_counter()
                _prune(model, setting, arguments)
                seconds = round(perf_counter() - start, 1)
                timing = {"seconds": seconds, "busy": max(busy, meter.look())}
            results.add(setting, task.evaluate(model) | timing | {"conditions": about})


def _about() -> dict[str, Any]:
    return conditions() | {"transformers": transformers.__version__, "command": _command()}


def _command() -> str:
    """The command line, without the names of this machine's folders."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    before = ["", *words]
    named = zip(before, words, strict=False)
    return " ".join("FOLDER" if option in FOLDERS else word for option, word in named)


def _prune(model: nn.Module, setting: Setting, arguments: dict[str, Any]) -> None:
    prune(
        model,
        setting.sparsity if fixed_sparsity(setting.granularity) is None else None,
        setting.granularity.split(","),
        setting.criterion,
        setting.recovery,
        allocator=setting.allocator,
        seed=setting.seed,
        **arguments,
    )


def run_task(name: str, given: argparse.Namespace) -> str:
    """Measure what is missing of a task; returns its table."""
    results = Results(given.out / f"accuracy-{name}.jsonl", name)
    task = TASKS[name](given)
    settings = grid(
        [
            *(() if given.only else getattr(task, "methods", ALWAYS)),
            *(
                (criterion, given.recovery, allocator)
                for criterion in given.criterion
                for allocator in given.allocator or ["uniform"]
            ),
        ],
        _points(task, given),
        _calibrations(task, given),
        given.samples or task.samples,
        given.seed or 0,
    )
    measure(task, settings, results)
    return table(results.of(settings), task.columns)


def _points(task: Task, given: argparse.Namespace) -> list[tuple[str, float]]:
    """Those of the task, or every granularity that was given at every sparsity."""
    if given.granularity is None and given.sparsity is None:
        return list(task.points)
    names = tuple(dict(task.points))  # of structures, such as "head,unit"
    if given.granularity is not None:
        names = split(given.granularity, str, "--granularity")
    fractions = sorted({sparsity for _, sparsity in task.points})
    if given.sparsity is not None:
        fractions = list(split(given.sparsity, float, "--sparsity"))
    return [(name, fraction) for name in names for fraction in fractions]


def _calibrations(task: Task, given: argparse.Namespace) -> tuple[str, ...]:
    if given.calibration is None:
        return task.calibrations
    if given.calibration not in task.calibrations:
        names = ", ".join(task.calibrations)
        raise UsageError(f"--calibration {given.calibration!r}: {task.name} has {names}")
    return (given.calibration,)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=(*NAMES, "all"), metavar="TASK", help=", ".join(NAMES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--model", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--criterion", action="append", default=[], help="one more; repeat")
    parser.add_argument("--only", action="store_true", help="those criteria and no others")
    parser.add_argument("--recovery", default="least_squares", help="of those criteria")
    parser.add_argument("--allocator", action="append", help="of those criteria; repeat")
    parser.add_argument("--granularity", help="such as element,4x1,2:4; default: the table's")
    parser.add_argument("--speedup", help="of target; default: the table's")
    parser.add_argument("--sparsity", help="fractions of zeros; default: the table's")
    parser.add_argument("--calibration", help="name of calibration texts; default: the table's")
    parser.add_argument("--samples", type=int, help="calibration inputs; default: the table's")
    parser.add_argument(
        "--seed", type=int, help="of calibration, scores, training; default: the table's, or 0"
    )
    parser.add_argument("--time", action="store_true", help="add times to the rows of train-*")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON lines")
    parser.add_argument("--models", type=Path, help="of learn-*; trained dense models are kept")
    parser.add_argument("--packages", type=Path, help="of cut-steps; kept to be timed again")
    given = parser.parse_args(arguments)
    if not given.data.is_dir():
        raise UsageError(f"--data {given.data}: not a folder")
    if given.samples is not None and given.samples < 1:
        raise UsageError(f"--samples {given.samples}: expected 1 or more")
    for folder in filter(None, (given.out, given.models)):
        folder.mkdir(parents=True, exist_ok=True)
    learned = {task.name: task for task in LEARNED}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in NAMES if given.task == "all" else [given.task]:
        if name in learned:
            model = given.model or model_folder()
            found = run_script_task(learned[name], given, model, _about())
        elif name in TRAINED:
            found = run_training(TRAINED[name](given), given, _about())
        else:
            found = OTHERS[name](given) if name in OTHERS else run_task(name, given)
        print(f"{name}\n\n{found}\n", flush=True)


if __name__ == "__main__":
    run_script(main)
