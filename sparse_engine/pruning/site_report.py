"""What is left of the groups of a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from sparse_engine.pruning.layer_report import LayerReport
from sparse_engine.structures import Site, ranges_text, read_ranges

LOST = 0.9
"""Share of the groups of a site above which the report warns that most of them are gone."""

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
        error_before: |V X - Y| / |Y| of the layers that read the groups, the largest of them, when
            the groups are gone and nothing else has changed; None if it was not measured.
        error_after: the same with the final weights.
        at_floor: whether more would have been removed, but for the fewest that are kept.
        warning: what the recovery could not do for these layers, or "".
    """

    name: str
    kind: str
    groups: int
    kept: tuple[int, ...]
    error_before: float | None = None
    error_after: float | None = None
    at_floor: bool = False
    warning: str = ""

    @classmethod
    def of(
        cls,
        site: Site,
        kept: Tensor,
        readers: Sequence[LayerReport] = (),
        at_floor: bool = False,
    ) -> SiteReport:
        """The report of a site of which the groups `kept` remain.

        Args:
            site: the site.
            kept: numbers of groups, ascending.
            readers: of the layers that read them, before they became smaller.
            at_floor: whether more would have been removed.
        """
        before = [row.error_before for row in readers if row.error_before is not None]
        after = [row.error_after for row in readers if row.error_after is not None]
        return cls(
            site.name,
            site.kind,
            site.groups,
            tuple(kept.tolist()),
            max(before, default=None),
            max(after, default=None),
            at_floor,
            "; ".join(dict.fromkeys(row.warning for row in readers if row.warning)),
        )

    @property
    def is_collapsed(self) -> bool:
        """Whether almost all of its groups are gone."""
        return len(self.kept) < (1 - LOST) * self.groups

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the numbers as a text of ranges, such as "0-3,5"."""
        return {**asdict(self), "kept": ranges_text(self.kept)}


def counts_of(sites: Sequence[SiteReport]) -> str:
    """How many groups are left of each kind: "36 of 72 heads, 4608 of 9216 units"."""
    totals: dict[str, tuple[int, int]] = {}
    for site in sites:
        kept, groups = totals.get(site.kind, (0, 0))
        totals[site.kind] = (kept + len(site.kept), groups + site.groups)
    return ", ".join(
        f"{kept} of {groups} {plural(kind)}" for kind, (kept, groups) in totals.items()
    )


def plural(kind: str) -> str:
    """The groups of a kind of site, for texts: "heads", and "words" of a vocabulary."""
    return "words" if kind == "vocabulary" else f"{kind}s"


def with_numbers(values: Any) -> Any:
    """The plain values of a site with its numbers as a list, whether they are one or ranges.

    Raises:
        InvalidFileError: if a text is no list of ascending ranges below the number of groups.
    """
    kept = values.get("kept") if isinstance(values, Mapping) else None
    if not isinstance(kept, str):
        return values
    groups = values.get("groups")
    most = groups if type(groups) is int and groups <= MOST else 0
    return {**values, "kept": [*chain.from_iterable(read_ranges(kept, most))]}
