"""An HTML page as tests read it: elements with their attributes, tables, and what it refers to."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}
LOADING = ("src", "href", "srcset", "xlink:href", "action", "data", "poster")


@dataclass
class ParsedPage(HTMLParser):
    """A page that was fed to the parser.

    Attributes:
        elements: (tag, attributes) in order.
        tables: each a list of rows of cells, the head first.
        text: all text outside of styles.
    """

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> without a beginning"
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def parsed(html: str) -> ParsedPage:
    """A page, in which every element that begins also ends."""
    page = ParsedPage()
    page.feed(html)
    page.close()
    assert page._open == []
    return page


def outside_references(html: str) -> list[str]:
    """What a page would load from elsewhere, or run: scripts, handlers, other files, addresses."""
    page = parsed(html)
    active = ("script", "link", "iframe", "object", "base")
    found = [tag for tag, _ in page.elements if tag in active]
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name.startswith("on"):
                found.append(f"{tag} {name}")
            if name in LOADING and not value.startswith(("data:image/png;base64,", "#")):
                found.append(f"{tag} {name}={value}")
    styles = html.replace("url(#", "")
    return found + [mark for mark in ("url(", "@import", "javascript:") if mark in styles]
