"""What a chart is, and how it becomes SVG for a page and PNG for a file."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from sparse_engine.reporting.pyplot import load_pyplot

# Colours of lines, told apart also by people who see few colours. A page has brighter ones for dark
# screens, under the same names.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5508f", "#8a6d00", "#5b5bd6", "#a33b3b", "#4d7a8c")
DARK_COLOURS = (
    "#56b4e9",
    "#f0903c",
    "#2fd0a0",
    "#e79ac8",
    "#d8b93c",
    "#a3a3ff",
    "#f08080",
    "#9cc5d6",
)
MARKERS = "osD^vPX*"
INK, GRID = "#24292f", "#c9ced4"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in the name of a layer is a "$"
}
UNDRAWN = ("Cc", "Cs", "Cn", "Co")
"""Categories of characters without a picture."""
WIDTH = 4.3
"""Inches, 96 pixels each: as wide as a phone, so that letters keep their size there."""
FONT = "system-ui, sans-serif"


@dataclass(frozen=True)
class Table:
    """The numbers behind a chart, as text; the first `left` columns hold words."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


class Chart(ABC):
    """A picture of some numbers.

    Attributes:
        name: of its PNG file, without the suffix.
        title: a few words, above the chart.
        description: one or two sentences that say what it shows, for readers who cannot see it.
    """

    name: str
    title: str
    description: str
    is_wide: ClassVar[bool] = False
    """Whether a page gives the chart a row of its own."""

    @property
    def size(self) -> tuple[float, float]:
        """Inches, (width, height)."""
        return WIDTH, 3.2

    @abstractmethod
    def draw(self, figure: Any) -> None:
        """Draw into an empty matplotlib figure."""

    @abstractmethod
    def table(self) -> Table:
        """The same numbers as a table."""

    def svg(self) -> str:
        """An <svg> element whose colours are those of the page that it stands in."""
        out = io.StringIO()
        salt = {"svg.hashsalt": self.name}  # ids of a page's charts differ
        with self._drawn(salt) as figure:
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        return _for_page(out.getvalue())

    def png(self, dpi: int = 160) -> bytes:
        """A PNG file with the title, on white."""
        out = io.BytesIO()
        with self._drawn({}) as figure:
            figure.suptitle(plain(self.title), fontsize=10)
            figure.savefig(out, format="png", dpi=dpi, facecolor="white")
        return out.getvalue()

    @contextmanager
    def _drawn(self, style: dict[str, Any]) -> Iterator[Any]:
        pyplot = load_pyplot()
        with pyplot.rc_context({**STYLE, **style}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the browser has the missing letters
            figure = pyplot.figure(figsize=self.size, layout="constrained")
            try:
                self.draw(figure)
                yield figure
            finally:
                pyplot.close(figure)


def plain(text: str, most: int = 48) -> str:
    """A label that can be drawn: its last `most` characters, control characters replaced."""
    shown = "".join("\ufffd" if unicodedata.category(c) in UNDRAWN else c for c in text)
    shown = shown if len(shown) <= most else f"…{shown[1 - most :]}"
    return f" {shown}" if shown.startswith("_") else shown  # legends leave out names with "_"


def _for_page(svg: str) -> str:
    """The <svg> element of a file, with the page's colours and font, and without unused ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(<svg )[^>]*?(viewBox="[^"]*")[^>]*>', rf"\1\2{_width(svg)}>", svg, count=1)
    svg = re.sub(r'font-family: [^;"]*', f"font-family: {FONT}", svg)
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{number})")
    return svg.strip()


def _width(svg: str) -> str:
    """The width of an SVG file, which is in points, as an attribute in pixels."""
    match = re.search(r'width="([\d.]+)pt"', svg)
    return f' width="{float(match[1]) * 96 / 72:.0f}"' if match else ""


def clean_axes(axes: Any) -> None:
    """Horizontal grid lines, and no frame at the top and on the right."""
    axes.grid(True, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
