"""bench model: a package against dense engines, each in a process of its own, in turn.

The dense engines run the same pruned weights, stored dense. Latency is the median over all rounds;
resident memory is what the process grew by from after the imports to after the last call.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypedDict

from sparse_engine.bench.engines import OURS, Engine
from sparse_engine.errors import (
    InvalidFileError,
    SparseEngineError,
    UnsupportedModelError,
    UsageError,
)


class Figures(TypedDict):
    """What a worker prints; decode_ms is None where no tokens were decoded."""

    median_ms: float
    min_ms: float
    decode_ms: float | None
    resident_mb: float


@dataclass(frozen=True)
class ModelRow:
    """One engine: milliseconds a pass and a new token, and its times over the first engine's.

    Figures are None where the engine could not run the model; `problem` is the reason.
    """

    engine: str
    batch: int
    seq: int
    median_ms: float | None = None
    min_ms: float | None = None
    ratio: float | None = None
    decode_ms: float | None = None
    decode_ratio: float | None = None
    resident_mb: float | None = None
    problem: str | None = None


def bench_model(
    package: Path,
    engines: Sequence[str] = (OURS, "torch"),
    batch: int = 1,
    seq: int = 128,
    new: int | None = None,
    runs: int = 10,
    rounds: int = 3,
    threads: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[ModelRow]:
    """Run each engine `rounds` times in turn; ratios are its medians over the first engine's.

    Args:
        package: The package.
        engines: Names of engines; the first one must run.
        batch: Sequences of a call.
        seq: Tokens of a sequence.
        new: Tokens after the prompt; None for 32 of a causal language model.
        runs: Calls in a round.
        rounds: Processes of each engine.
        threads: Threads of each engine; None for torch's default.
        progress: Called as (done, total, engine).

    Raises:
        SparseEngineError: The first engine fails. Another engine that fails has a row with its
            problem.
    """
    for engine in engines:
        Engine.parse(engine).require_installed()
    seen: dict[str, list[Figures]] = {engine: [] for engine in engines}
    problems: dict[str, str] = {}
    for turn in range(rounds):
        for i, engine in enumerate(engines):
            if progress is not None:
                progress(turn * len(engines) + i, rounds * len(engines), engine)
            if engine in problems:
                continue
            try:
                seen[engine].append(run_worker(package, engine, batch, seq, runs, threads, new))
            except UnsupportedModelError:
                raise
            except SparseEngineError as error:
                if engine == engines[0]:
                    raise
                problems[engine] = str(error)
    medians = {engine: _medians(found) for engine, found in seen.items() if engine not in problems}
    first = medians[engines[0]]
    return [
        ModelRow(engine, batch, seq, problem=problems[engine])
        if engine in problems
        else ModelRow(
            engine,
            batch,
            seq,
            median_ms=round(medians[engine]["median_ms"], 2),
            min_ms=round(medians[engine]["min_ms"], 2),
            ratio=_over(medians[engine]["median_ms"], first["median_ms"]),
            decode_ms=_rounded(medians[engine]["decode_ms"]),
            decode_ratio=_over(medians[engine]["decode_ms"], first["decode_ms"]),
            resident_mb=round(medians[engine]["resident_mb"], 1),
        )
        for engine in engines
    ]


def _medians(rounds: Sequence[Figures]) -> Figures:
    decode = [one["decode_ms"] for one in rounds if one["decode_ms"] is not None]
    return {
        "median_ms": median(one["median_ms"] for one in rounds),
        "min_ms": min(one["min_ms"] for one in rounds),
        "decode_ms": median(decode) if decode else None,
        "resident_mb": median(one["resident_mb"] for one in rounds),
    }


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 2)


def _over(theirs: float | None, ours: float | None) -> float | None:
    return round(theirs / ours, 2) if theirs and ours else None


def run_worker(
    folder: Path,
    engine: str,
    batch: int,
    seq: int,
    runs: int,
    threads: int | None,
    new: int | None = None,
) -> Figures:
    """One engine in a fresh process; its figures, or a one-line error."""
    command = [sys.executable, "-m", "sparse_engine.bench.worker", str(folder), engine]
    command += [str(batch), str(seq), "" if new is None else str(new), str(runs), str(threads or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        kinds = (UsageError, InvalidFileError, UnsupportedModelError)
        kind = next((k for k in kinds if k.exit_code == done.returncode), SparseEngineError)
        raise kind(f"{engine}: {last}")
    figures: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return figures
