"""The GPU kernels: each against float64, then in turn with cuBLAS, cuDNN and torch.sparse.

    python bench/gpu.py --out gpu.jsonl                  # minutes on an H100 or H200
    python bench/gpu.py --skip-checks --only M=8192      # some rows of the table
    TRITON_INTERPRET=1 python bench/gpu.py --tiny  # without a GPU: a check, no figures

Times are medians of CUDA graphs in turn; 256 MB are written before each, so that weights and x come
from memory and not from L2. `ratio` is the time of `against` over ours in the same run. GB/s are
bytes of the packed weight over time. `bandwidth_share` is relative to the faster of a sum and a
copy of 2 GiB in the same run. `overhead` is the packed weight over its values and indices alone:
the cost of padding, pointers and plans. A worker process does the work: a kernel that crashes or
hangs it loses only its own row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any

import torch
from gpu_checks import Check, StepCheck
from gpu_points import Facts, Point, Row
from gpu_worker import INTERPRETED, answers, jobs_of, work

from sparse_engine.bench.output import render
from sparse_engine.cli.common import progress_bar, run_script
from sparse_engine.errors import SparseEngineError, UsageError, VerificationError
from sparse_engine.packings.cuda.base import NO_TRITON

NOT_MEASURED = "interpreter: not a measurement"


def describe(facts: Mapping[str, Any]) -> str:
    """The device in a paragraph."""
    if not facts["measured"]:
        return f"{NOT_MEASURED}; torch {facts['torch']}, triton {facts['triton']}"
    return (
        f"{facts['device']}, capability {facts['capability']}, {facts['processors']} processors; "
        f"torch {facts['torch']}, triton {facts['triton']}, CUDA {facts['cuda']}\n"
        f"memory: {facts['sum_gbytes_per_second']} GB/s read by torch.sum, "
        f"{facts['copy_gbytes_per_second']} GB/s read and written by a copy\n"
        f"cuBLAS bfloat16, {facts['cublas_shape']}: {facts['cublas_tflops']} TFLOP/s; "
        f"a graph of one short kernel: {facts['graph_floor_us']} us"
    )


@dataclass(frozen=True)
class CheckRow:
    """A row of the table of checks. worst: the largest error over what is allowed."""

    check: str
    kernels: str
    worst: float | None
    result: str


def check_row(job: Check | StepCheck, answer: dict[str, Any]) -> CheckRow:
    """A row of the table of checks."""
    worst = answer.get("worst")
    if worst is None:
        result = answer["problem"] if "skipped" in answer else f"failed: {answer['problem']}"
        return CheckRow(job.name, "", None, result)
    result = "ok" if worst <= 1 else "failed"
    return CheckRow(job.name, ", ".join(answer["kernels"]), round(worst, 3), result)


def filled(point: Point, answer: dict[str, Any], facts: Mapping[str, Any]) -> Row:
    """A row with its figures."""
    bandwidth = max(facts["sum_gbytes_per_second"], facts["copy_gbytes_per_second"])
    fields = {k: v for k, v in answer.items() if k in Row.__dataclass_fields__}
    if not facts["measured"]:
        fields["note"] = NOT_MEASURED
    if fields.get("gbytes_per_second"):
        fields["bandwidth_share"] = round(fields["gbytes_per_second"] / bandwidth, 3)
    return replace(point.row(), **fields)


def run(given: argparse.Namespace, options: Sequence[str]) -> None:
    """Do everything, print the tables, write JSON lines; raises VerificationError for wrong
    results.
    """
    jobs = jobs_of(given)
    until = time() + 60 * given.minutes
    facts: dict[str, Any] = {}
    tested: list[CheckRow] = []
    rows: list[Row] = []
    problems: list[str] = []
    wrong = 0
    with ExitStack() as stack:
        file = stack.enter_context(given.out.open("w")) if given.out else None
        report = stack.enter_context(progress_bar("gpu"))
        report(0, len(jobs), jobs[0].name)

        def write(line: dict[str, Any]) -> None:
            if file:
                print(json.dumps(line), file=file, flush=True)

        worker = [sys.executable, __file__, *options]
        found = stack.enter_context(closing(answers(worker, len(jobs), until)))
        for done, (job, answer) in enumerate(zip(jobs, found, strict=True), 1):
            if isinstance(job, Facts):
                if "problem" in answer:
                    raise SparseEngineError(f"the device cannot be measured: {answer['problem']}")
                facts = answer
                write({"conditions": facts})
                print(describe(facts), flush=True)
            elif isinstance(job, Point):
                rows.append(filled(job, answer, facts))
                wrong += bool(answer.get("wrong"))
                about = {name: facts[name] for name in ("device", "torch", "triton", "measured")}
                write(asdict(rows[-1]) | about)
            else:
                tested.append(check_row(job, answer))
                wrong += tested[-1].result.startswith("failed")
                write({"check": asdict(tested[-1])})
            if isinstance(job, Point) and answer.get("problem"):
                problems.append(f"- {job.name}: {answer['problem']}")
            report(done, len(jobs), jobs[min(done, len(jobs) - 1)].name)
    parts = [render(tested, "md") if tested else "", "\n".join(problems), render(rows, "md")]
    parts.append("" if facts["measured"] else NOT_MEASURED)
    print("\n" + "\n\n".join(part for part in parts if part))
    if wrong:
        raise VerificationError(f"{wrong} of {len(jobs) - 1} checks and rows are wrong")


def main() -> None:
    """Read the options; raises UsageError before anything starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="rows with it in the name")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each; the median counts")
    parser.add_argument("--minutes", type=float, default=8.5, help="begin nothing after so many")
    parser.add_argument("--skip-checks", action="store_true", help="only measure")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that it works")
    parser.add_argument("-o", "--out", type=Path, help="JSON lines")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        work(given)
        return
    if find_spec("triton") is None:
        raise UsageError(NO_TRITON)
    if given.rounds < 1:
        raise UsageError(f"--rounds must be 1 or more, got {given.rounds}")
    if INTERPRETED and not given.tiny:
        raise UsageError("the interpreter needs days for the real shapes: add --tiny")
    if not INTERPRETED and not torch.cuda.is_available():
        raise UsageError(
            "no GPU is here; TRITON_INTERPRET=1 python bench/gpu.py --tiny shows that it works"
        )
    run(given, sys.argv[1:])


if __name__ == "__main__":
    run_script(main)
