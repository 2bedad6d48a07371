"""Tables of reports as text."""

from __future__ import annotations

from sparse_engine.reporting.chart import Table


def text_table(table: Table) -> str:
    """Columns of words on the left, of numbers on the right, two spaces apart."""
    rows = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < table.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def number(value: float | None) -> str:
    """Four significant digits; "" for None."""
    return "" if value is None else f"{value:,.4g}"
