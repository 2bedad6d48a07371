"""Settings of bench/accuracy.py, their results as JSON lines, and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from sparse_engine.bench.machine import BUSY
from sparse_engine.errors import InvalidFileError
from sparse_engine.pruning import parse_granularity
from sparse_engine.pruning.cutting import find_structures

DENSE = "dense"


@dataclass(frozen=True)
class Setting:
    """One way to prune; the row of a result is found by these fields.

    Attributes:
        criterion: text form of a criterion; "dense" for the model as it is.
        recovery: name of a recovery, or "none".
        granularity: text form, such as "4x1"; structures may be several, as "head,unit".
        sparsity: fraction of zeros.
        calibration: which texts the statistics come from.
        samples: number of calibration inputs.
        seed: of the calibration sample and of the criterion's random numbers.
        allocator: how the sparsity is shared out; rows of older files have none.
    """

    criterion: str = DENSE
    recovery: str = "none"
    granularity: str = ""
    sparsity: float = 0.0
    calibration: str = ""
    samples: int = 0
    seed: int = 0
    allocator: str = "uniform"


class Results:
    """Rows of one task: those of a file of an earlier run, and new ones, which are appended.

    Args:
        path: JSON lines; read where it exists. None keeps rows in memory only.
        task: rows of other tasks in the file are ignored.
        kind: of the settings; its fields are the first ones of each row.

    Raises:
        InvalidFileError: if a line of the file is no row.
    """

    def __init__(self, path: Path | None, task: str, kind: type[Setting] = Setting) -> None:
        self._path, self._task = path, task
        names = [field.name for field in fields(kind)]
        self._rows: dict[Setting, dict[str, Any]] = {}
        lines = path.read_text().splitlines() if path and path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row["task"] == task:
                    row = {"allocator": "uniform"} | row
                    self._rows[kind(**{name: row[name] for name in names})] = row
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidFileError(f"{path}, line {number}: not a row: {error!r}") from None

    def __contains__(self, setting: Setting) -> bool:
        return setting in self._rows

    def add(self, setting: Setting, result: dict[str, Any]) -> None:
        """Keep a result, and append it to the file at once."""
        row = {"task": self._task, **asdict(setting), **result}
        self._rows[setting] = row
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def save(self) -> None:
        """Write the file anew: one line a row, other tasks' rows left out."""
        assert self._path is not None
        new = self._path.with_suffix(".tmp")
        new.write_text("".join(json.dumps(row) + "\n" for row in self._rows.values()))
        new.replace(self._path)

    def all(self) -> dict[Setting, dict[str, Any]]:
        """Every row by its setting, in the order of the file."""
        return self._rows

    def of(self, settings: Iterable[Setting]) -> list[dict[str, Any]]:
        """The rows of these settings, in this order, those without a result left out."""
        return [self._rows[setting] for setting in settings if setting in self._rows]


def grid(
    methods: Iterable[tuple[str, ...]],
    points: Iterable[tuple[str, float]],
    calibrations: Iterable[str],
    samples: int,
    seed: int,
) -> list[Setting]:
    """The dense model, then each point with each calibration by each method, none twice.

    Args:
        methods: criterion, recovery, and an allocator if it is not uniform.
        points: pairs of granularity and sparsity; N:M has its own sparsity.
        calibrations: names of texts.
        samples, seed: of all settings.
    """
    settings = [Setting()]
    for (granularity, sparsity), calibration, (criterion, recovery, *allocator) in product(
        points, calibrations, methods
    ):
        fixed = fixed_sparsity(granularity)
        sparsity = sparsity if fixed is None else fixed
        settings.append(
            Setting(
                criterion, recovery, granularity, sparsity, calibration, samples, seed, *allocator
            )
        )
    return list(dict.fromkeys(settings))


def fixed_sparsity(granularity: str) -> float | None:
    """The sparsity that a pattern such as 2:4 fixes; None if any is possible."""
    if find_structures(granularity.split(",")):
        return None
    return parse_granularity(granularity).fixed_sparsity


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows of one task in Markdown, columns padded to one width.

    Args:
        rows: a setting that is the same in all rows has no column.
        columns: names of the figures.
    """
    pruned = [row for row in rows if row["criterion"] != DENSE]
    varying = [
        name
        for name in ("recovery", "allocator", "calibration", "samples", "seed")
        if len({row[name] for row in pruned}) > 1
    ]
    head = ["criterion", "zeros", *varying, *columns, "s"]
    cells = [
        [
            row["criterion"],
            "" if row["criterion"] == DENSE else f"{row['sparsity']:.0%} {row['granularity']}",
            *("" if row["criterion"] == DENSE else str(row[name]) for name in varying),
            *(figure(row.get(name)) for name in columns),
            _seconds(row),
        ]
        for row in rows
    ]
    return markdown(head, cells, texts=2 + len(varying))


def markdown(head: Sequence[str], cells: Sequence[Sequence[str]], texts: int) -> str:
    """A table in Markdown, columns padded to one width.

    Args:
        head: names of the columns.
        cells: of each row.
        texts: how many columns hold text; those behind them hold numbers.
    """
    widths = [max(2, *(len(line[i]) for line in [head, *cells])) for i in range(len(head))]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.ljust(width) if i < texts else value.rjust(width)
            for i, (value, width) in enumerate(zip(values, widths, strict=True))
        )
        return "| " + " | ".join(padded) + " |"

    rules = [
        ":".ljust(width, "-") if i < texts else ":".rjust(width, "-")
        for i, width in enumerate(widths)
    ]
    return "\n".join([line(head), line(rules), *map(line, cells)])


def figure(value: float | None) -> str:
    """A figure with three digits behind the point if it is small, otherwise two."""
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def _seconds(row: dict[str, Any]) -> str:
    """Time of pruning; "busy" where other programs used much of the machine."""
    if row["criterion"] == DENSE:
        return ""
    return f"{row['seconds']:.0f}" if row["busy"] < BUSY else "busy"
