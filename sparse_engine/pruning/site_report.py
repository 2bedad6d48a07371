"""What is left of the groups of a site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.structures import Site

MOST = 1 << 26
"""Groups of a site in a file, at most."""


@dataclass(frozen=True)
class SiteReport:
    """One site from which groups were removed.

    Attributes:
        name: its dotted name.
        kind: text form of the structure.
        groups: how many there were.
        kept: the numbers of those that remain, ascending.
    """

    name: str
    kind: str
    groups: int
    kept: tuple[int, ...]

    @classmethod
    def of(cls, site: Site, kept: Tensor) -> SiteReport:
        """The report of a site of which the groups `kept` remain."""
        return cls(site.name, site.kind, site.groups, tuple(kept.tolist()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the numbers as a text of ranges, such as "0-3,5"."""
        return {**asdict(self), "kept": ",".join(_ranges(self.kept))}


def with_numbers(values: Any) -> Any:
    """The plain values of a site with its numbers as a list, whether they are one or ranges.

    Raises:
        InvalidFileError: if a text is no list of ascending ranges below the number of groups.
    """
    kept = values.get("kept") if isinstance(values, Mapping) else None
    return (
        {**values, "kept": _numbers(kept, values.get("groups"))}
        if isinstance(kept, str)
        else values
    )


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Ascending numbers as ranges: "0-3", or "5" for one alone."""
    ends = [i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    for begin, end in pairwise((0, *ends, len(numbers))):
        if end > begin:
            first, last = numbers[begin], numbers[end - 1]
            yield f"{first}" if first == last else f"{first}-{last}"


def _numbers(text: str, groups: Any) -> list[int]:
    most = groups if isinstance(groups, int) and groups <= MOST else 0
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        try:
            begin, end = int(first), int(last or first)
        except ValueError:
            begin, end = 1, 0
        if not (found[-1] if found else -1) < begin <= end < most:
            raise InvalidFileError(f"kept: {part!r:.40} is no range of the {groups!r:.20} groups")
        found += range(begin, end + 1)
    return found
