"""One HTML file of sections: no script, nothing from elsewhere, light and dark, screen and paper.

All text is escaped by the template; only the SVG of charts, which this package draws, is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_engine.errors import UsageError
from sparse_engine.reporting.chart import COLOURS, DARK_COLOURS, Chart, Table
from sparse_engine.reporting.pyplot import load_pyplot, write_whole

TEMPLATES = Path(__file__).parent
OPEN_ROWS = 12
"""A table with more rows is closed at first."""


@dataclass(frozen=True)
class Tile:
    """A small image, its caption in two lines, and the text that stands for it."""

    image: str
    width: int
    caption: str
    detail: str
    description: str


@dataclass(frozen=True)
class TileRow:
    """Images that belong together, such as the matrices of one block."""

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Section:
    """A heading with sentences, charts, images and tables below it, of which any may be missing."""

    title: str
    text: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tiles: tuple[TileRow, ...] = ()
    table: Table | None = None
    table_title: str = "Table"


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: its heading.
        subtitle: one line below it.
        figures: short values with what they mean, in a row.
        warnings: sentences that a reader must not miss.
        sections: in order; those without a title are left out.
        footer: one line at the end.
    """

    title: str
    subtitle: str
    figures: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    footer: str = ""

    @property
    def charts(self) -> list[Chart]:
        """The charts of all sections."""
        return [chart for section in self.sections for chart in section.charts]

    def html(self) -> str:
        """The page as text; raises UsageError without matplotlib."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        load_pyplot()
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html.jinja").render(
            page=self,
            colours=tuple(zip(COLOURS, DARK_COLOURS, strict=True)),
            open_rows=OPEN_ROWS,
            style=(TEMPLATES / "page.css").read_text(),
        )

    def write(self, path: str | Path) -> Path:
        """Write the page; returns its path. An existing file is replaced."""
        path = Path(path)
        write_whole(path, self.html().encode(errors="replace"))
        return path


def footer() -> str:
    """What wrote a page."""
    from sparse_engine import __version__

    return f"Written by sparse_engine {__version__}."


def write_charts(charts: Sequence[Chart], folder: str | Path) -> list[Path]:
    """Write each chart as NAME.png into a folder, which is made; returns the paths."""
    load_pyplot()
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder for the pictures")
    pictures: dict[Path, Any] = {target / f"{chart.name}.png": chart.png() for chart in charts}
    target.mkdir(parents=True, exist_ok=True)
    for path, content in pictures.items():
        write_whole(path, content)
    return list(pictures)
