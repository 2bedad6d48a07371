"""Rows of figures as a Markdown table, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sparse_engine.bench.rows import KernelRow
from sparse_engine.errors import UsageError

# Columns that come first, in this order.
LEADING = ("op", "source", "n", "k", "layers", "width", "steps", "m")
# `bench kernel` in Markdown: the line above the table has the context where all rows share it.
CONTEXT = (
    *("op", "source", "n", "k", "layers", "width", "steps"),
    *("dtype", "isa", "threads", "dense_engine"),
)
FIGURES = (
    *("m", "sparsity", "format", "time_us", "step_us", "windows_us", "product_us"),
    *("dense_time_us", "speedup", "roof_fraction", "max_rel_err"),
)


def render(rows: Sequence[Any], output: str, conditions: Mapping[str, Any] | None = None) -> str:
    """Dataclass rows as text, with every column.

    Args:
        rows: The rows.
        output: "md", "csv" or "json".
        conditions: Conditions of the run, which each row of the JSON repeats, so that rows of
            several runs may be put together.
    """
    plain = [_leading_first(asdict(row)) for row in rows]
    if output == "json":
        about = {"conditions": dict(conditions)} if conditions else {}
        return json.dumps([row | about for row in plain], indent=1)
    flat = [_flat(row, every_spread=output == "csv") for row in plain]
    names = list(dict.fromkeys(name for row in flat for name in row))
    if output == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return text.getvalue().rstrip("\n")
    if output != "md":
        raise UsageError(f"output {output!r}: use one of md, csv, json")
    return _markdown(flat, names)


def summary(rows: Sequence[KernelRow]) -> str:
    """The main figures of `bench kernel` in Markdown, under a line of what all rows share."""
    flat = [_flat(asdict(row), every_spread=False) for row in rows]
    shared = {
        name: flat[0][name]
        for name in CONTEXT
        if name in flat[0] and all(row.get(name) == flat[0][name] for row in flat)
    }
    peers = list(dict.fromkeys(f"{name}_us" for row in rows for name in getattr(row, "peers", ())))
    varying = [name for name in CONTEXT if name not in shared]
    names = [*varying, *FIGURES, *(peers if len(peers) > 1 else ())]
    about = ", ".join(f"{name} {value}" for name, value in shared.items())
    return f"{about}\n\n{_markdown(flat, names)}"


def _markdown(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A table of these columns, without those that are empty in all rows."""
    names = [name for name in names if any(row.get(name, "") != "" for row in rows)]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _leading_first(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in LEADING if name in row} | row


def _flat(row: dict[str, Any], every_spread: bool) -> dict[str, Any]:
    """A row with a column for each peer, and without reasons.

    every_spread: percentiles of all times, not only of `time_us`.
    """
    hidden = ("peers", "spread_us", "refused", "problem", "likely_faster")
    plain = {name: "" if v is None else v for name, v in row.items() if name not in hidden}
    spreads: dict[str, tuple[float, float]] = row.get("spread_us", {})
    columns = {
        f"{name}_{part}_us": value
        for name, spread in spreads.items()
        if every_spread or name == "time"
        for part, value in zip(("p10", "p90"), spread, strict=True)
    }
    peers: dict[str, float] = row.get("peers", {})
    return plain | columns | {f"{name}_us": time for name, time in peers.items()}


def reasons(rows: Sequence[KernelRow]) -> list[str]:
    """Why peers did not run, each reason once."""
    found = (f"{name} ({r.dtype}) {why}" for r in rows for name, why in r.refused.items())
    return list(dict.fromkeys(found))
