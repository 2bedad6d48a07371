"""Figures of benchmarks as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from sparse_engine.cli.tables import add_columns, fold, heading, new_table

if TYPE_CHECKING:
    from sparse_engine.bench.compare import Comparison
    from sparse_engine.bench.conv1d import ConvRow
    from sparse_engine.bench.kernel import KernelRow
    from sparse_engine.bench.model import ModelRow
    from sparse_engine.bench.recurrent import NetworkRow


# 10th and 90th percentile, from the median.
SPREAD = "10th 90th\nin %"


def kernel_tables(rows: Sequence[KernelRow]) -> Iterator[Table | Text]:
    """A table for each weight's shape, dtype and ISA; the fastest format of a point is marked."""
    from sparse_engine.bench.hints import same_work

    for (source, n, k, dtype, isa), group in _grouped(rows, "source n k dtype isa"):
        title = f"{source}: {n} x {k}, {dtype}, {isa}, {_threads(group[0].threads)}"
        yield heading(title)
        long = max(max(row.time_us, row.dense_time_us) for row in group) >= 1e5
        unit, per_unit = ("ms", 1e3) if long else ("us", 1.0)
        table = new_table(tight=True)
        add_columns(table, "", "tokens|zeros")
        add_columns(
            table,
            "format",
            f"{unit}|{SPREAD}|dense\n{unit}|speed\n-up|GFLOP\n/s|of\nroof|largest\nerror",
        )
        for row in group:
            rivals = [r for r in group if same_work(r) == same_work(row)]
            best = len(rivals) > 1 and row.time_us == min(r.time_us for r in rivals)
            table.add_row(
                str(row.m),
                _percent(row.sparsity),
                f"{row.format}*" if best else row.format,
                _us(row.time_us / per_unit),
                _span(row.time_us, row.spread_us["time"]),
                _us(row.dense_time_us / per_unit),
                _speedup(row.speedup),
                _us(row.gflops),
                f"{row.roof_fraction:.0%}",
                f"{row.max_rel_err:.0e}",
            )
        if len(group) > len({same_work(row) for row in group}):
            table.caption = Text("* the fastest format measured on the same weight and tokens")
        yield table
        if len({name for row in group for name in row.peers}) > 1:
            yield heading("median us of every peer")
            yield _peer_table(group)


def _peer_table(group: Sequence[KernelRow]) -> Table:
    names = list(dict.fromkeys(name for row in group for name in row.peers))
    table = new_table()
    add_columns(table, "", "tokens|zeros")
    add_columns(
        table, "format", "|".join(["sparse\n_engine", *(n.replace("-", "-\n") for n in names)])
    )
    for row in group:
        times = (row.peers.get(name) for name in names)
        cells = ("-" if time is None else _us(time) for time in times)
        table.add_row(str(row.m), _percent(row.sparsity), row.format, _us(row.time_us), *cells)
    return table


def network_tables(rows: Sequence[NetworkRow]) -> Iterator[Table | Text]:
    """A table for each network, dtype and ISA."""
    for (op, n, layers, steps, dtype, isa), group in _grouped(rows, "op n layers steps dtype isa"):
        title = f"{op}, {layers} x {n} units, {steps} steps, {dtype}, {isa}"
        yield heading(f"{title}, {_threads(group[0].threads)}")
        table = new_table(tight=True)
        add_columns(table, "", "sequen-\nces|zeros")
        add_columns(
            table, "format", f"ms|{SPREAD}|us a\nstep|dense\nms|speed\n-up|of\nroof|largest\nerror"
        )
        for row in group:
            table.add_row(
                str(row.m),
                _percent(row.sparsity),
                row.format,
                _us(row.time_us / 1e3),
                _span(row.time_us, row.spread_us["time"]),
                _us(row.step_us),
                "-" if row.dense_time_us is None else _us(row.dense_time_us / 1e3),
                _speedup(row.speedup),
                f"{row.roof_fraction:.0%}",
                f"{row.max_rel_err:.0e}",
            )
        yield table


def conv1d_tables(rows: Sequence[ConvRow]) -> Iterator[Table | Text]:
    """A table for each layer's shape, dtype and ISA."""
    for (n, k, width, steps, dtype, isa), group in _grouped(rows, "n k width steps dtype isa"):
        title = f"conv1d, {n} x {k} channels, width {width}, {steps} steps, {dtype}, {isa}"
        yield heading(f"{title}, {_threads(group[0].threads)}")
        table = new_table(tight=True)
        add_columns(table, "", "sequen-\nces|zeros")
        add_columns(
            table,
            "format",
            f"us|{SPREAD}|dense\nus|speed\n-up|windows\nus|product\nus|of\nroof|largest\nerror",
        )
        for row in group:
            table.add_row(
                str(row.m),
                _percent(row.sparsity),
                row.format,
                _us(row.time_us),
                _span(row.time_us, row.spread_us["time"]),
                "-" if row.dense_time_us is None else _us(row.dense_time_us),
                _speedup(row.speedup),
                _us(row.windows_us),
                "-" if row.product_us is None else _us(row.product_us),
                f"{row.roof_fraction:.0%}",
                f"{row.max_rel_err:.0e}",
            )
        yield table


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
                _us(row.old_us),
                _us(row.new_us),
                _speedup(row.ratio) + (" ~" if row.apart is False else "  "),
                " > ".join("-" if value is None else f"{value:.2f}x" for value in over),
            )
        yield table


def _grouped(rows: Sequence[Any], names: str) -> list[tuple[tuple[Any, ...], list[Any]]]:
    """Rows by the values of these fields, in the order of their first row."""

    def key(row: Any) -> tuple[Any, ...]:
        return tuple(getattr(row, name) for name in names.split())

    order = list(dict.fromkeys(map(key, rows)))
    ordered = sorted(rows, key=lambda row: order.index(key(row)))
    return [(values, list(group)) for values, group in groupby(ordered, key)]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _percent(share: float) -> str:
    return f"{share * 100:.4g} %"


def _us(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _span(median: float, spread: tuple[float, float]) -> str:
    """10th and 90th percentile, as percent below and above the median."""
    low, high = (100 * (end / median - 1) for end in spread)
    return f"{low:+.0f} {high:+.0f}"


def _speedup(value: float | None) -> str:
    if value is None:
        return "-"
    colour = "green" if value >= 1.05 else "red" if value < 0.95 else "default"
    return f"[{colour}]{_us(value) if value >= 100 else f'{value:.2f}'}x[/]"
