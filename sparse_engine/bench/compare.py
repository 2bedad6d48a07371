"""bench compare: two files of `bench kernel` or bench/suite.py, point by point."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from sparse_engine.errors import InvalidFileError, UsageError

MAX_BYTES = 2**28
# The fields of a point; isa and threads too where a file has a point for several of them.
POINT = ("op", "source", "n", "k", "layers", "width", "steps", "m", "dtype", "format", "sparsity")
SEVERAL = ("isa", "threads")
# Conditions that do not describe the machine.
NOT_OF_THE_MACHINE = ("rounds", "against")


@dataclass(frozen=True)
class CompareRow:
    """One point of both files. Times are medians in microseconds."""

    op: str
    source: str
    n: int
    k: int | None
    m: int
    dtype: str
    sparsity: float
    format: str
    """In the new file; "auto:csr > auto:sellp" where the choice differs."""
    isa: str
    old_us: float
    new_us: float
    ratio: float
    """Old time over new time: above 1 the new one is faster."""
    old_speedup: float | None
    """Over dense, in the old run."""
    new_speedup: float | None
    apart: bool | None
    """Whether the 10th to 90th percentiles do not overlap; None where a file has none."""


@dataclass(frozen=True)
class Comparison:
    """The points of both files, the number of those in one only, and the differing conditions."""

    rows: tuple[CompareRow, ...]
    only_old: int
    only_new: int
    differences: tuple[str, ...]
    """A line for each condition that differs: "cpu: A > B"."""

    @property
    def mean_ratio(self) -> float:
        """Geometric mean of the ratios."""
        return geometric_mean(row.ratio for row in self.rows)


def compare(old: Path, new: Path) -> Comparison:
    """Compare two files.

    Raises:
        UsageError: A file without figures, or no point in common.
        InvalidFileError: A damaged file.
    """
    before, after = _Run.read(old), _Run.read(new)
    names = POINT if before.is_unique(POINT) and after.is_unique(POINT) else (*POINT, *SEVERAL)
    olds, news = before.by(names), after.by(names)
    rows = [_row(olds[key], news[key]) for key in news if key in olds]
    if not rows:
        raise UsageError(f"{old} and {new} have no point in common")
    return Comparison(
        rows=tuple(rows),
        only_old=len(olds.keys() - news.keys()),
        only_new=len(news.keys() - olds.keys()),
        differences=tuple(_differences(before.conditions, after.conditions)),
    )


@dataclass(frozen=True)
class _Run:
    rows: list[dict[str, Any]]
    conditions: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> _Run:
        """JSON (a list of rows) or JSON lines."""
        rows: list[dict[str, Any]] = []
        conditions: dict[str, list[str]] = {}
        for line in _lines(path):
            found = line.get("conditions", {})
            if not isinstance(found, dict):
                raise InvalidFileError(f"{path}: conditions are not an object")
            if "time_us" in line:
                _check(line, path)
                rows.append(line)
                found = found | {name: line[name] for name in SEVERAL if name in line}
            for name, value in found.items():
                seen = conditions.setdefault(name, [])
                if str(value) not in seen:
                    seen.append(str(value))
        if not rows:
            raise UsageError(f"{path}: has no figures of bench kernel")
        return cls(rows, conditions)

    def is_unique(self, names: Sequence[str]) -> bool:
        return len(self.by(names)) == len(self.rows)

    def by(self, names: Sequence[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {tuple(_value(row, name) for name in names): row for row in self.rows}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path}: is larger than {MAX_BYTES} bytes")
    text = path.read_text("utf-8", "replace")
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
        else:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{path}: not JSON or JSON lines: {str(error)[:80]}") from error
    for line in found:
        if not isinstance(line, dict):
            raise InvalidFileError(f"{path}: a row is not an object")
        yield line


def _check(row: dict[str, Any], path: Path) -> None:
    time = row["time_us"]
    if type(time) not in (int, float) or not isfinite(time) or time <= 0:
        raise InvalidFileError(f"{path}: a time_us is not a positive number")
    for name, kind in (("n", int), ("m", int), ("dtype", str), ("format", str)):
        if type(row.get(name)) is not kind:
            raise InvalidFileError(f"{path}: a row has no {name}")
    if type(row.get("sparsity")) not in (int, float):
        raise InvalidFileError(f"{path}: a row has no sparsity")
    if any(isinstance(_value(row, name), list | dict) for name in (*POINT, *SEVERAL)):
        raise InvalidFileError(f"{path}: a row names its point by lists or objects")


def _value(row: dict[str, Any], name: str) -> Any:
    if name == "format":  # "auto:sellp" is the point "auto"
        return (
            row["format"].partition(":")[0] if row["format"].startswith("auto") else row["format"]
        )
    return row.get(name, {"op": "linear", "source": "random"}.get(name))


def _row(old: dict[str, Any], new: dict[str, Any]) -> CompareRow:
    formats = list(dict.fromkeys((old["format"], new["format"])))
    return CompareRow(
        op=_value(new, "op"),
        source=_value(new, "source"),
        n=new["n"],
        k=new.get("k"),
        m=new["m"],
        dtype=new["dtype"],
        sparsity=new["sparsity"],
        format=" > ".join(formats),
        isa=str(new.get("isa", "")),
        old_us=old["time_us"],
        new_us=new["time_us"],
        ratio=round(old["time_us"] / new["time_us"], 3),
        old_speedup=old.get("speedup"),
        new_speedup=new.get("speedup"),
        apart=_apart(old, new),
    )


def _apart(old: dict[str, Any], new: dict[str, Any]) -> bool | None:
    spreads = [row.get("spread_us") for row in (old, new)]
    try:
        (a, b), (c, d) = (spread["time"] for spread in spreads)  # type: ignore[index]
        return bool(b < c or d < a)
    except (TypeError, KeyError, ValueError):
        return None


def _differences(old: dict[str, list[str]], new: dict[str, list[str]]) -> Iterator[str]:
    for name in dict.fromkeys((*old, *new)):
        a, b = (sorted(side.get(name, ["unknown"])) for side in (old, new))
        if a != b and name not in NOT_OF_THE_MACHINE:
            yield f"{name}: {', '.join(a)} > {', '.join(b)}"
