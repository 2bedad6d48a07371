"""Rows of figures as a Markdown table, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparse_engine.errors import UsageError


def render(rows: Sequence[Any], output: str, told: dict[str, Any] | None = None) -> str:
    """Dataclass rows as text: "md", "csv" or "json".

    told: conditions of the run, which each row of the JSON repeats, so that rows of several runs may
        be put together.
    """
    plain = [asdict(row) for row in rows]
    if output == "json":
        return json.dumps([row | ({"conditions": told} if told else {}) for row in plain], indent=1)
    plain = [_flat(row, output == "csv") for row in plain]
    names = list(dict.fromkeys(name for row in plain for name in row))
    if output == "md":  # for people: a column that is empty tells them nothing
        names = [name for name in names if any(row.get(name, "") != "" for row in plain)]
    if output == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain)
        return text.getvalue().rstrip("\n")
    if output != "md":
        raise UsageError(f"output {output!r}: use one of md, csv, json")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in plain]
    return "\n".join(lines)


def _flat(row: dict[str, Any], every_spread: bool) -> dict[str, Any]:
    """A row with a column for each peer; reasons are for JSON, and for whoever prints a table.

    every_spread: percentiles of all figures, not only of the time.
    """
    peers: dict[str, float] = row.pop("peers", {})
    spreads: dict[str, tuple[float, float]] = row.pop("spread_us", {})
    for name in ("refused", "problem", "likely_faster"):
        row.pop(name, None)
    row = {name: "" if value is None else value for name, value in row.items()}
    columns = {
        f"{name}_{part}_us": value
        for name, spread in spreads.items()
        if every_spread or name == "time"
        for part, value in zip(("p10", "p90"), spread, strict=True)
    }
    return row | columns | {f"{name}_us": time for name, time in peers.items()}


def reasons(rows: Sequence[Any]) -> list[str]:
    """Why peers did not run, each reason once."""
    told = (f"{name} ({r.dtype}) {why}" for r in rows for name, why in r.refused.items())
    return list(dict.fromkeys(told))
