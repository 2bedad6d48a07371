"""The published grid: layers of known models, over sparsities, tokens, dtypes and formats.

    python bench/suite.py --out bench/results/suite.jsonl [--minutes 20]
    python bench/suite.py --out quick.jsonl --quick
    python bench/suite.py --out part.jsonl --shapes 768x768 --only dtype=int8 --only tokens=1,16

One JSON line a point, and a line of conditions a run. A second run continues where the first one
stopped. Every point is a ratio inside one run: the dense engines are timed in turn with each sparse
layer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from pathlib import Path
from statistics import geometric_mean
from time import monotonic
from typing import Any, NamedTuple

from sparse_engine import _core
from sparse_engine.bench.layer import Run
from sparse_engine.bench.linear import LinearLayer
from sparse_engine.bench.linear_grid import LinearGrid
from sparse_engine.bench.machine import conditions
from sparse_engine.bench.output import reasons
from sparse_engine.bench.patterns import random_weight
from sparse_engine.bench.peer_hosts import PeerSet
from sparse_engine.bench.plot import PANELS, Chart, draw_speedups
from sparse_engine.cli.common import console, progress_bar, run_script, set_threads, split
from sparse_engine.errors import UsageError
from sparse_engine.formats import NM, FormatSpec
from sparse_engine.reporting.pyplot import load_pyplot

# Outputs x inputs.
SHAPES = (
    *((768, 768), (3072, 768), (768, 3072)),  # BERT-base
    (2304, 768),  # GPT-2: query, key and value together
    *((1024, 1024), (4096, 1024), (1024, 4096)),  # BERT-large; 4096 x 1024 is also an LSTM of 1024
    *((5632, 2048), (2048, 5632)),  # feed-forward of a Llama of 1 billion
    *((11008, 4096), (4096, 11008)),  # feed-forward of a Llama of 7 billion
)
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
TOKENS = (1, 4, 16, 128, 2048)
DTYPES = ("float32", "bfloat16", "int8")
FORMATS = ("csr", "bsr:4x1", "bsr:4x4", "sellp", "bitmask", "nm:2:4")
# Made for few tokens; right for more, but nothing to measure.
DECODE_FORMATS, DECODE_TOKENS = ("sellp", "bitmask", "nm:2:4"), 4
AGAINST = "torch,onnxruntime,openvino"


class Point(NamedTuple):
    """One point; a line of the file has the same names. `target` is the requested sparsity."""

    dtype: str
    n: int
    k: int
    format: str
    target: float
    m: int


@dataclass(frozen=True)
class Plan:
    """The grid, axis by axis."""

    shapes: tuple[tuple[int, int], ...] = SHAPES
    sparsity: tuple[float, ...] = SPARSITIES
    tokens: tuple[int, ...] = TOKENS
    dtype: tuple[str, ...] = DTYPES
    format: tuple[str, ...] = FORMATS

    def points(self) -> list[Point]:
        """In the order in which they are measured: all token counts of a packed layer together."""
        axes = product(self.dtype, self.shapes, self.format, self.sparsity, self.tokens)
        return [
            Point(dtype, *shape, spec, sparsity, m)
            for dtype, shape, spec, sparsity, m in axes
            if sensible(spec, sparsity, m)
        ]


QUICK = Plan(
    shapes=((768, 768), (3072, 768)),
    sparsity=(0.5, 0.9),
    tokens=(1, 128),
    dtype=("float32",),
    format=("csr", "bsr:4x1"),
)


def sensible(spec: str, sparsity: float, tokens: int) -> bool:
    """N:M patterns have one sparsity, all others have any; some formats are for few tokens."""
    if spec in DECODE_FORMATS and tokens > DECODE_TOKENS:
        return False
    parsed = FormatSpec.parse(spec)
    params = parsed.params
    return parsed.format is not NM or params["keep"] == round((1 - sparsity) * params["of"], 9)


def narrow(plan: Plan, shapes: str | None, only: Sequence[str]) -> Plan:
    """Replace axes: `shapes` as "768x768,...", `only` as "dtype=float32,int8"."""
    if shapes is not None:
        sizes = split(shapes, lambda text: [int(size) for size in text.split("x")], "--shapes")
        if any(len(pair) != 2 for pair in sizes):
            raise UsageError(f"--shapes {shapes}: write outputs x inputs, as 3072x768")
        plan = replace(plan, shapes=tuple((pair[0], pair[1]) for pair in sizes))
    kinds: dict[str, Any] = {"dtype": str, "format": str, "sparsity": float, "tokens": int}
    for text in only:
        axis, _, values = text.partition("=")
        if axis not in kinds or not values:
            raise UsageError(f"--only {text}: write AXIS=VALUE,... with {', '.join(kinds)}")
        plan = replace(plan, **{axis: split(values, kinds[axis], f"--only {axis}")})
    return plan


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run; a last one that was cut short is dropped from the file."""
    if not path.exists():
        return []
    whole, _, cut = path.read_bytes().rpartition(b"\n")
    if cut:
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise UsageError(f"{path} is not a file of results: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise UsageError(f"{path} is not a file of results: a line is not an object")
    return lines


def point_of(line: dict[str, Any]) -> Point:
    """Which point a line is about; one that is in no plan if it is about conditions."""
    values: list[Any] = [line.get(name) for name in Point._fields]
    return Point(*values)


def check_conditions(path: Path, lines: Sequence[dict[str, Any]], now: dict[str, Any]) -> None:
    """Refuse to mix figures of several machines, thread counts or peers in one file."""
    for line in lines:
        for key, value in line.get("conditions", {}).items():
            if key not in ("date", "rounds") and value != now.get(key):
                raise UsageError(
                    f"{path} was measured with {key} {value}, now it is {now.get(key)}: "
                    "write to another file"
                )


def layers(points: Sequence[Point]) -> Iterator[tuple[Point, LinearLayer]]:
    """Each point with its layer, which is packed once for all token counts."""
    for (dtype, n, k, spec, target), group in groupby(points, key=lambda point: point[:5]):
        layer = LinearLayer(random_weight(n, k, target, spec), spec, dtype)
        for point in group:
            yield point, layer


def run(
    points: Sequence[Point], path: Path, against: tuple[str, ...], rounds: int, minutes: float
) -> list[dict[str, Any]]:
    """Measure the points that are not in `path` yet and append each; returns all lines."""
    lines = read_results(path)
    about = conditions(against) | {"against": list(against)}
    check_conditions(path, lines, about)
    done = {point_of(line) for line in lines}
    left = [point for point in points if point not in done]
    if not left:
        return lines
    peaks = {dtype: _core.peak_gflops(dtype) for dtype in {point.dtype for point in left}}
    refused: set[str] = set()
    stop = monotonic() + 60 * minutes
    with PeerSet(against) as peer_set, path.open("a") as file, progress_bar("suite") as report:

        def add(line: dict[str, Any]) -> None:
            lines.append(line)
            print(json.dumps(line), file=file, flush=True)

        add({"conditions": about | {"rounds": rounds}})
        for i, (point, layer) in enumerate(layers(left)):
            if monotonic() > stop:
                console.print(f"time is up, {len(left) - i} points are left: start it again")
                break
            report(len(points) - len(left) + i, len(points), " ".join(map(str, point)))
            row = layer.measure(point.m, Run(peer_set, peaks, rounds))
            add({"target": point.target, **asdict(row)})
            for reason in set(reasons([row])) - refused:
                refused.add(reason)
                console.print(f"not measured: {reason}", style="dim", soft_wrap=True)
    return lines


Means = dict[tuple[str, str, int], dict[float, float]]


def means(lines: Sequence[dict[str, Any]]) -> Means:
    """(dtype, format, tokens) -> sparsity -> geometric mean of the speed-up over the shapes."""
    found: dict[tuple[str, str, int], dict[float, list[float]]] = {}
    for line in lines:
        if "target" not in line:
            continue
        speedups = {line["format"]: line["speedup"]}
        if on_panels := line.get("panels_time_us"):
            speedups[line["format"] + PANELS] = line["dense_time_us"] / on_panels
        for spec, speedup in speedups.items():
            series = found.setdefault((line["dtype"], spec, line["m"]), {})
            series.setdefault(line["target"], []).append(speedup)
    return {
        key: {target: geometric_mean(values) for target, values in sorted(series.items())}
        for key, series in found.items()
    }


def summary(found: Means) -> str:
    """A Markdown table: speed-up over the fastest dense engine, geometric mean over the shapes."""
    targets = sorted({target for series in found.values() for target in series})
    lines = ["| dtype, format, tokens | " + " | ".join(f"{t:.0%}" for t in targets) + " |"]
    lines.append("| :-- |" + " --: |" * len(targets))
    for (dtype, spec, m), series in sorted(found.items(), key=lambda item: item[0]):
        cells = [f"{series[t]:.2f}x" if t in series else "-" for t in targets]
        lines.append(f"| {dtype} {spec}, {m} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: Means, dtype: str, path: Path) -> None:
    """Speed-up against sparsity, a panel per token count, a line per format."""
    panels: dict[str, dict[str, dict[float, float]]] = {}
    for (kind, spec, m), series in sorted(found.items(), key=lambda item: item[0][2]):
        if kind == dtype:
            title = f"{m} token{'s' if m > 1 else ''}"
            panels.setdefault(title, {})[spec] = series
    draw_speedups(Chart(f"{dtype}, geometric means over shapes", "% of zeros", panels), path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then draw and print what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--quick", action="store_true", help="16 points instead of thousands")
    parser.add_argument("--shapes", help="outputs x inputs: 768x768,3072x768")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=VALUE,...",
        help="dtype, format, sparsity or tokens; may be given several times",
    )
    parser.add_argument("--against", default=AGAINST, help=f"peers to time, default {AGAINST}")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each; the median counts")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    set_threads(given.threads)
    load_pyplot()  # refuses before anything is measured
    plan = narrow(QUICK if given.quick else Plan(), given.shapes, given.only)
    against = split(given.against, str, "--against")
    LinearGrid(  # refuses what cannot be measured
        n=tuple(n for n, _ in plan.shapes),
        k=tuple(k for _, k in plan.shapes),
        m=plan.tokens,
        sparsity=plan.sparsity,
        format=plan.format,
        dtype=plan.dtype,
        against=against,
    )
    points = plan.points()
    # Table and charts show all that the file holds, from whichever runs.
    found = means(run(points, given.out, against, max(1, given.rounds), given.minutes))
    for dtype in sorted({kind for kind, _, _ in found}):
        chart = given.out.with_name(f"{given.out.stem}-{dtype}.png")
        draw(found, dtype, chart)
        console.print(f"chart: {chart}", style="dim", soft_wrap=True)
    print(summary(found))


if __name__ == "__main__":
    run_script(main)
