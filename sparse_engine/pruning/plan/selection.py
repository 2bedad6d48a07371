"""Layers by patterns of their names: which to prune, and which to leave.

A pattern is a dotted name, which stands for the layer or for all layers below the module; a shell
glob over the whole name, as "*.query"; or "re:" and a regular expression that matches all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import translate
from functools import cached_property

from sparse_engine.errors import UsageError
from sparse_engine.pruning.granularity.base import Granularity

REGEX, GLOB, WEIGHT = "re:", "*?[", ".weight"
NEAREST = 3  # names that an error lists
NOT_CHOSEN, IGNORED = "not among the chosen layers", "ignored"


@dataclass(frozen=True)
class NamePattern:
    """A pattern of dotted names.

    >>> NamePattern("encoder.layer.0").matches("encoder.layer.0.output.dense")
    True
    """

    text: str

    def __post_init__(self) -> None:
        """Compile the pattern; raises UsageError if it is empty or no regular expression."""
        if not isinstance(self.text, str) or not self.text:
            raise UsageError(f"pattern {self.text!r} is no text; give a layer's name, or a glob")
        try:
            _ = self._compiled
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(f"pattern {self.text[:80]!r}: {error}") from None

    @classmethod
    def exactly(cls, name: str) -> NamePattern:
        """The pattern of one layer, also of a model that is a layer itself, whose name is empty."""
        plain = name and not name.startswith(REGEX) and not any(c in name for c in GLOB)
        return cls(name if plain else REGEX + re.escape(name))

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        if self.text.startswith(REGEX):
            return re.compile(self.text.removeprefix(REGEX))
        if any(character in self.text for character in GLOB):
            return re.compile(translate(self.text))
        return re.compile(rf"{re.escape(self.text)}(\..*)?")

    def matches(self, name: str) -> bool:
        """Whether a layer of this dotted name, or its weight, is meant."""
        return any(self._compiled.fullmatch(text) for text in (name, name + WEIGHT))

    def check(self, names: Sequence[str], what: str) -> None:
        """Raise UsageError if no name matches; the message lists the nearest ones.

        Args:
            names: dotted names.
            what: the pattern is, for the message: "layer".
        """
        if any(map(self.matches, names)):
            return
        wanted = self.text.removeprefix(REGEX)
        near = get_close_matches(wanted, names, NEAREST, cutoff=0.0)
        raise UsageError(
            f"{what} {self.text!r} matches no layer; the nearest are {', '.join(near)}"
            if near
            else f"{what} {self.text!r} matches no layer: this model has none"
        )


@dataclass(frozen=True)
class Selection:
    """The layers to prune.

    Attributes:
        layers: patterns of the layers to prune, heads included; none for the rules of `make_plan`.
        ignore: patterns of layers that are left in any case.
        granularities: patterns of layers with a granularity of their own; the first match counts.
    """

    layers: tuple[NamePattern, ...] = ()
    ignore: tuple[NamePattern, ...] = ()
    granularities: tuple[tuple[NamePattern, Granularity], ...] = ()

    @classmethod
    def of(cls, layers: Iterable[str], ignore: Iterable[str]) -> Selection:
        """From texts; raises UsageError for a pattern that cannot be read."""
        return cls(_patterns(layers, "layers"), _patterns(ignore, "ignore"))

    def granularity_of(self, name: str, other: Granularity | None) -> Granularity | None:
        """The granularity of a layer; `other` if it has none of its own."""
        own = (granularity for pattern, granularity in self.granularities if pattern.matches(name))
        return next(own, other)

    def check_used(self, chosen: Iterable[str], left: dict[str, str]) -> None:
        """Check that every pattern of `granularities` decides about a layer.

        Args:
            chosen: names of the layers that are pruned.
            left: why other layers are not, by name.

        Raises:
            UsageError: if a pattern matches no layer, none that is pruned, or only layers that an
                earlier pattern matches.
        """
        rest = list(chosen)
        names = [*rest, *left]
        for pattern, _ in self.granularities:
            pattern.check(names, "override")
            matched = [name for name in rest if pattern.matches(name)]
            if not matched:
                reasons = [f"{name}: {why}" for name, why in left.items() if pattern.matches(name)]
                why = reasons[0] if reasons else "an earlier override matches all of its layers"
                raise UsageError(f"override {pattern.text!r} has no effect: {why}")
            rest = [name for name in rest if name not in matched]

    def left(
        self, names: Sequence[str], others: Sequence[str], by_rule: dict[str, str]
    ) -> dict[str, str]:
        """Why layers are left, by name.

        Args:
            names: of all linear layers.
            others: names of all other modules; to ignore them is no mistake.
            by_rule: what the rules leave, which apply where no layers are chosen.

        Raises:
            UsageError: if a pattern matches no layer.
        """
        for pattern in self.layers:
            pattern.check(names, "layer")
        for pattern in self.ignore:
            pattern.check([*names, *others], "ignore")
        left = by_rule
        if self.layers:
            left = {name: NOT_CHOSEN for name in names if not _any(self.layers, name)}
        return left | {name: IGNORED for name in names if _any(self.ignore, name)}


def _patterns(texts: Iterable[str], what: str) -> tuple[NamePattern, ...]:
    if isinstance(texts, str):
        raise UsageError(f"{what} is a single text; give a list of patterns, as [{texts!r}]")
    if not isinstance(texts, Iterable):
        raise UsageError(f"{what} is a {type(texts).__name__}; give a list of patterns")
    return tuple(map(NamePattern, texts))


def _any(patterns: Iterable[NamePattern], name: str) -> bool:
    return any(pattern.matches(name) for pattern in patterns)
