"""The style of all tables, of 80 columns, and that of the layers of a converted model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from typing import Any

from rich.align import VerticalAlignMethod
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80
NAME_WIDTH = 36
# Modules that are named for one reason.
NAMED = 3


def heading(text: str) -> Text:
    """A line above a table."""
    return Text(text, style="bold")


def new_table(tight: bool = False) -> Table:
    """An empty table: a line under the head, nothing else; `tight` for many columns."""
    return Table(
        box=SIMPLE_HEAD,
        padding=(0, 0 if tight else 1, 0, 0),
        show_edge=not tight,
        caption_justify="left",
    )


def add_columns(
    table: Table, left: str = "", right: str = "", vertical: VerticalAlignMethod = "bottom"
) -> None:
    """Columns named in two strings with "|" between names: of text, then of numbers."""
    for names, justify in ((left, "left"), (right, "right")):
        for name in filter(None, names.split("|")):
            table.add_column(
                name,
                justify=justify,  # type: ignore[arg-type]
                no_wrap=True,
                vertical=vertical,
            )


def show(*parts: Table | Text) -> None:
    """Print on stdout; as wide as the terminal, 80 columns where there is none."""
    console = Console()
    for part in parts:
        console.print(part)


def text_of(*parts: Table | Text) -> str:
    """The same as plain text of WIDTH columns."""
    texts = []
    for part in parts:
        console = Console(width=WIDTH, file=StringIO(), color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(part)
        texts.append("\n".join(line.rstrip() for line in captured.get().splitlines()))
    return "\n\n".join(texts)


def fold(name: str, width: int = NAME_WIDTH) -> str:
    """A dotted name over several lines of at most `width`, broken after dots only.

    >>> fold("encoder.layer.0.attention.self.query", 24)
    'encoder.layer.0.\\n  attention.self.query'
    """
    lines = [""]
    for part in _parts(name):
        if lines[-1].strip() and len(lines[-1]) + len(part) > width:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def _parts(name: str) -> Iterator[str]:
    *before, last = name.split(".")
    yield from (f"{part}." for part in before)
    yield last


def layer_tables(rows: Sequence[Any]) -> Iterator[Table]:
    """A row for each layer of `sparsify_` or `inspect`: format, bytes, and time over dense.

    A second table has the reasons of the layers that stay dense, each reason once.
    """
    is_small = all(row.dense_bytes < 1e6 for row in rows)
    size, scale, digits = ("kB > dense", 1e3, 1) if is_small else ("MB > dense", 1e6, 2)
    dtypes = {dtype_of(row) for row in rows if row.format != "dense"}
    one = next(iter(dtypes)) if len(dtypes) == 1 else "float32"
    cells = [
        (
            f"{row.shape[0]}x{row.shape[1]}",
            f"{row.sparsity:.1%}",
            row.format if dtype_of(row) in (one, "float32") else f"{row.format}\n{dtype_of(row)}",
            f"{row.bytes / scale:.{digits}f} > {row.dense_bytes / scale:.{digits}f}",
            time_of_dense(row.format, row.times_us),
        )
        for row in rows
    ]
    kind = "format" if one == "float32" else f"format,\n{one}"
    columns = f"shape|zeros|{kind}|{size}|time\nof dense"
    yield named_table("layer", columns, [row.name for row in rows], cells, text=kind)
    dense = [(row.reason, row.name) for row in rows if row.format == "dense"]
    if dense:
        yield reasons_table("kept dense", dense)


def reasons_table(title: str, named: Iterable[tuple[str, str]]) -> Table:
    """A table of reasons, each once, with the names of its modules; from pairs (reason, name)."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in named:
        by_reason.setdefault(reason, []).append(name)
    table = new_table(tight=True)
    table.add_column(title, vertical="top", no_wrap=True)
    table.add_column("why", vertical="top")
    for reason, names in by_reason.items():
        table.add_row(Text(shortened(names)), Text(reason))
    return table


def shortened(names: Sequence[str]) -> str:
    """The first names, one a line, and how many there are besides."""
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return "\n".join([*(fold(name) for name in names[:NAMED]), *more])


def dtype_of(row: Any) -> str:
    """Dtype of the stored values; float32 for a row without one."""
    return getattr(row, "dtype", "float32")


def time_of_dense(spec: str, times_us: dict[str, dict[int, float]]) -> str:
    """The measured time of a format over that of dense, both summed over the token counts."""
    dense, own = times_us.get("dense", {}), times_us.get(spec, {})
    total = sum(dense.get(tokens, 0.0) for tokens in own)
    return f"{sum(own.values()) / total:.2f}" if total and spec != "dense" else ""


def named_table(
    title: str, columns: str, names: Sequence[str], cells: Sequence[tuple[str, ...]], text: str = ""
) -> Table:
    """A table whose first column has dotted names, folded so that it is WIDTH wide.

    Args:
        title: of the names.
        columns: titles of the others, with "|" between them.
        names: of the rows.
        cells: of each row.
        text: the column that holds text; the others hold numbers.
    """
    table = new_table(tight=True)
    add_columns(table, title)
    titles = columns.split("|")
    for column in titles:
        if column == text:
            add_columns(table, left=column)
        else:
            add_columns(table, right=column)
    longest = (
        max(len(line) for cell in column for line in cell.split("\n"))
        for column in zip(titles, *cells, strict=True)
    )
    width = max(20, WIDTH - sum(1 + most for most in longest))
    for name, values in zip(names, cells, strict=True):
        table.add_row(Text(fold(name, width)), *values)
    return table
