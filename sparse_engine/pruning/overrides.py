"""Layers that are pruned in another way than the rest: by patterns of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import Setting
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.plan import NamePattern


@dataclass(frozen=True)
class Override:
    """Another sparsity, granularity or criterion for some layers; None is that of the model.

    These layers do not take part in the allocation: their sparsity is the one given here, or that
    of the model.

    Attributes:
        match: which layers: a dotted name, a glob, or "re:" and a regular expression.
        sparsity: fraction of groups to remove.
        granularity: as of `prune`.
        criterion: as of `prune`.

    >>> se.prune(model, 0.8, overrides=[Override("*.query", sparsity=0.5, granularity="2:4")])
    """

    match: str
    sparsity: float | None = None
    granularity: str | Granularity | None = None
    criterion: str | Criterion | None = None

    @classmethod
    def of(cls, value: Override | Mapping[str, Any]) -> Self | Override:
        """From a mapping of these names; raises UsageError for others, or without any change."""
        if isinstance(value, Override):
            return value
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or "match" not in value:
            raise UsageError(f"override {value!r:.80}: expected a mapping with {', '.join(names)}")
        if unknown := sorted(map(str, value.keys() - set(names))):
            raise UsageError(f"override has no {unknown[0]!r}; it has {', '.join(names)}")
        if all(value.get(name) is None for name in names[1:]):
            raise UsageError(f"override {value['match']!r} changes nothing: give it a sparsity")
        return cls(**value)


@dataclass(frozen=True)
class Variant:
    """An override, validated: what the layers that match get."""

    pattern: NamePattern
    setting: Setting
    criterion: Criterion

    def to_dict(self) -> dict[str, Any]:
        """The override in full as plain values, for JSON."""
        granularity = self.setting.granularity
        decided = self.criterion.decides_sparsity or granularity.fixed_sparsity is not None
        return {
            "match": self.pattern.text,
            **({} if decided else {"sparsity": self.setting.sparsity}),
            "granularity": str(granularity),
            "criterion": str(self.criterion),
        }


def find_overrides(values: Iterable[Override | Mapping[str, Any]]) -> list[Override]:
    """Overrides from what a caller or a recipe gives; raises UsageError."""
    if isinstance(values, Mapping | str):
        raise UsageError("overrides is no list; give a list of mappings with 'match'")
    return [Override.of(value) for value in values]
