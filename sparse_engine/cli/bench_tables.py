"""Figures of benchmarks as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from sparse_engine.reporting.tables import add_columns, fold, heading, new_table

if TYPE_CHECKING:
    from sparse_engine.bench.compare import Comparison
    from sparse_engine.bench.model import ModelRow
    from sparse_engine.bench.rows import KernelRow, LinearRow

Column = tuple[str, Callable[[Any], str]]
"""The head of a column, and a row's cell in it."""


def kernel_tables(rows: Sequence[KernelRow]) -> Iterator[Table | Text]:
    """A table for each shape, dtype and ISA; the fastest format of a linear layer is marked."""
    names = "op source n k layers width steps dtype isa threads"
    for _, group in _grouped(rows, names):
        one = group[0]
        threads = f"{one.threads} thread{'s' if one.threads > 1 else ''}"
        yield heading(f"{_title(one)}, {one.dtype}, {one.isa}, {threads}")
        marked = _fastest(group) if one.op == "linear" else None
        columns = _kernel_columns(group)
        table = new_table(tight=True)
        counted = "tokens" if one.op == "linear" else "sequen-\nces"
        add_columns(table, "", f"{counted}|zeros")
        add_columns(table, "format", "|".join(head for head, _ in columns))
        for row in group:
            mark = "*" if marked and row in marked else ""
            cells = [cell(row) for _, cell in columns]
            table.add_row(str(row.m), _percent(row.sparsity), row.format + mark, *cells)
        if marked is not None and _has_alternatives(group):
            table.caption = Text("* the fastest format measured on the same weight and tokens")
        yield table
        if len({name for row in group for name in getattr(row, "peers", ())}) > 1:
            yield heading("median us of every peer")
            yield _peer_table(group)


def _title(row: Any) -> str:
    if row.op == "linear":
        return f"{row.source}: {row.n} x {row.k}"
    if row.op == "conv1d":
        return f"conv1d, {row.n} x {row.k} channels, width {row.width}, {row.steps} steps"
    return f"{row.op}, {row.layers} x {row.n} units, {row.steps} steps"


def _kernel_columns(group: Sequence[Any]) -> list[Column]:
    """Columns behind the format: those of every op, and between them those of this one."""
    op = group[0].op
    network = op not in ("linear", "conv1d")
    longest = max(max(row.time_us, row.dense_time_us or 0.0) for row in group)
    unit, per_unit = ("ms", 1e3) if network or longest >= 1e5 else ("us", 1.0)
    own: list[Column] = []
    if op == "linear":
        own = [("GFLOP\n/s", lambda row: _digits(row.gflops))]
    elif op == "conv1d":
        own = [("windows\nus", lambda row: _digits(row.windows_us))]
        own += [("product\nus", lambda row: _digits(row.product_us))]
    return [
        (unit, lambda row: _digits(row.time_us / per_unit)),
        ("10th 90th\nin %", lambda row: _span(row.time_us, row.spread_us["time"])),
        *([("us a\nstep", lambda row: _digits(row.step_us))] if network else []),
        (
            f"dense\n{unit}",
            lambda row: _digits(row.dense_time_us and row.dense_time_us / per_unit),
        ),
        ("speed\n-up", lambda row: _speedup(row.speedup)),
        *own,
        ("of\nroof", lambda row: f"{row.roof_fraction:.0%}"),
        ("largest\nerror", lambda row: f"{row.max_rel_err:.0e}"),
    ]


def _fastest(group: Sequence[LinearRow]) -> list[LinearRow]:
    """The fastest row of each weight and number of tokens that has several."""
    same = _same_work(group)
    return [min(rows, key=lambda row: row.time_us) for rows in same if len(rows) > 1]


def _has_alternatives(group: Sequence[LinearRow]) -> bool:
    return any(len(rows) > 1 for rows in _same_work(group))


def _same_work(group: Sequence[LinearRow]) -> list[list[LinearRow]]:
    from sparse_engine.bench.hints import same_work

    found: dict[tuple[Any, ...], list[LinearRow]] = {}
    for row in group:
        found.setdefault(same_work(row), []).append(row)
    return list(found.values())


def _peer_table(group: Sequence[LinearRow]) -> Table:
    names = list(dict.fromkeys(name for row in group for name in row.peers))
    heads = ["sparse\n_engine", *(name.replace("-", "-\n") for name in names)]
    table = new_table()
    add_columns(table, "", "tokens|zeros")
    add_columns(table, "format", "|".join(heads))
    for row in group:
        cells = (_digits(row.peers.get(name)) for name in names)
        start = (str(row.m), _percent(row.sparsity), row.format, _digits(row.time_us))
        table.add_row(*start, *cells)
    return table


def model_tables(rows: Sequence[ModelRow]) -> Iterator[Table | Text]:
    """A row an engine."""
    yield heading(f"batch {rows[0].batch}, {rows[0].seq} tokens a sequence")
    table = new_table()
    decodes = any(row.decode_ms is not None for row in rows)
    add_columns(table, "engine", "ms,\nmedian|ms,\nleast|over\nours")
    add_columns(table, "", "ms a\ntoken|over\nours" if decodes else "")
    add_columns(table, "", "resident\nMB")
    for row in rows:
        values = [row.median_ms, row.min_ms, row.ratio]
        values += [row.decode_ms, row.decode_ratio] if decodes else []
        cells = ("-" if value is None else f"{value:.2f}" for value in values)
        memory = "-" if row.resident_mb is None else f"{row.resident_mb:.0f}"
        table.add_row(row.engine, *cells, memory)
    yield table


def compare_tables(found: Comparison) -> Iterator[Table | Text]:
    """A table for each weight's shape, dtype and ISA of the new run."""
    for (op, source, n, k, dtype, isa), group in _grouped(found.rows, "op source n k dtype isa"):
        shape = str(n) if k is None else f"{n} x {k}"
        what = fold(source, 60) if op == "linear" else op
        yield heading(f"{what}: {shape}, {dtype}, {isa}")
        table = new_table(tight=True)
        add_columns(table, "", "tokens|zeros")
        add_columns(table, "format", "old us|new us|old/new|speed-up over dense,\nold > new")
        if any(row.apart is False for row in group):
            table.caption = Text("~ 10th to 90th percentiles of old and new overlap")
        for row in group:
            over = (row.old_speedup, row.new_speedup)
            table.add_row(
                str(row.m),
                _percent(row.sparsity),
                row.format,
                _digits(row.old_us),
                _digits(row.new_us),
                _speedup(row.ratio) + (" ~" if row.apart is False else "  "),
                " > ".join("-" if value is None else f"{value:.2f}x" for value in over),
            )
        yield table


def _grouped(rows: Sequence[Any], names: str) -> list[tuple[tuple[Any, ...], list[Any]]]:
    """Rows by the values of these fields, in the order of their first row."""

    def key(row: Any) -> tuple[Any, ...]:
        return tuple(getattr(row, name, None) for name in names.split())

    order = list(dict.fromkeys(map(key, rows)))
    ordered = sorted(rows, key=lambda row: order.index(key(row)))
    return [(values, list(group)) for values, group in groupby(ordered, key)]


def _percent(share: float) -> str:
    return f"{share * 100:.4g} %"


def _digits(value: float | None) -> str:
    """Three digits, or all before the point; "-" for no value."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _span(median: float, spread: tuple[float, float]) -> str:
    """10th and 90th percentile, as percent below and above the median."""
    low, high = (100 * (end / median - 1) for end in spread)
    return f"{low:+.0f} {high:+.0f}"


def _speedup(value: float | None) -> str:
    if value is None:
        return "-"
    colour = "green" if value >= 1.05 else "red" if value < 0.95 else "default"
    return f"[{colour}]{_digits(value) if value >= 100 else f'{value:.2f}'}x[/]"
