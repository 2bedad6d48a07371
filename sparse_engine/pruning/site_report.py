"""What is left of the groups of a site."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparse_engine.structures import Site


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
