"""Report: what the results of prune, sensitivity, prune_until and search have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from sparse_engine.reporting.chart import Chart
from sparse_engine.reporting.page import Page, write_charts
from sparse_engine.reporting.values import checked


@dataclass
class Report(ABC):
    """A result as plain values, as a page and as pictures; a base class of dataclasses.

    Attributes:
        made_by: the function whose result it is.
        heading: of the page, if no title is given.
    """

    made_by: ClassVar[str]
    heading: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The report whose `to_dict` this is, such as the contents of a pruning.json.

        Raises:
            InvalidFileError: if a field is missing or has another type.

        Example:
            se.PruneReport.from_dict(json.loads(Path("pruned/pruning.json").read_text()))
        """
        return checked(cls, values, f"report of {cls.made_by}")

    def page(self, title: str = "") -> Page:
        """The page of `to_html`, before it is written."""
        return self._page(title or self.heading)

    @abstractmethod
    def _page(self, title: str) -> Page:
        """The page under a heading."""

    def _pictures(self) -> list[Chart]:
        """What `to_png` writes: the charts of the page."""
        return self.page().charts

    def to_html(self, path: str | Path, title: str = "") -> Path:
        """Write one HTML file with charts and tables; returns its path.

        The file reads nothing from elsewhere and has no script. It needs matplotlib: pip install
        sparse-engine[plot].

        Args:
            path: of the file, which is replaced if it exists.
            title: the heading of the page, such as the name of the model.

        Example:
            report = se.prune(model, 0.9)
            report.to_html("report.html")
        """
        return self.page(title).write(path)

    def to_png(self, folder: str | Path) -> list[Path]:
        """Write the charts of `to_html` as PNG files into a folder; returns their paths."""
        return write_charts(self._pictures(), folder)
