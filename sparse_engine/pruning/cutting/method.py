"""How structures are removed: the arguments of `prune`, validated, as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparse_engine.errors import UsageError
from sparse_engine.named import find
from sparse_engine.pruning.allocators import Allocator, Uniform, find_allocator
from sparse_engine.pruning.criteria import Criterion, find_criterion
from sparse_engine.pruning.criteria.magnitude import Magnitude
from sparse_engine.pruning.criteria.sparsegpt import SparseGPT
from sparse_engine.pruning.cutting.counts import check_allocator
from sparse_engine.pruning.granularity import Element
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.overrides import Override, find_overrides
from sparse_engine.pruning.plan import NamePattern
from sparse_engine.pruning.recovery import Recovery, find_recovery
from sparse_engine.pruning.statistics.needs import GRADIENTS
from sparse_engine.structures import STRUCTURES, Structure, Vocabulary, stated_readers


@dataclass(frozen=True)
class CutMethod:
    """What is removed, and how.

    Attributes:
        structures: by kind.
        of_layers: sparsity, criterion, allocator and recovery; the granularity has no meaning.
        own: patterns of sites and layers, and the sparsity of the sites that match; the first
            match counts.
        original: by site, the number of groups of which sparsities are fractions, if some are gone
            already.
    """

    structures: dict[str, Structure]
    of_layers: Method
    own: tuple[tuple[NamePattern, float], ...] = ()
    original: Mapping[str, int] = field(default_factory=dict)

    @property
    def of_readers(self) -> Method:
        """How the layers that read the groups are refitted, when the groups have been chosen."""
        criterion = self.of_layers.criterion
        return replace(
            self.of_layers,
            criterion=criterion if criterion.fits else Magnitude(),
            allocator=Uniform(),
        )

    @property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """The modules that are stated to read others, by the names of these."""
        return stated_readers(self.structures.values())

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration inputs are read."""
        return self.of_layers.needs_calibration

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is removed: text forms of structures, without options."""
        return tuple(self.structures)

    def to_dict(self) -> dict[str, Any]:
        """The arguments of `prune` as plain values, for JSON."""
        texts = list(map(str, self.structures.values()))
        own = [{"match": pattern.text, "sparsity": sparsity} for pattern, sparsity in self.own]
        return {
            **self.of_layers.to_dict(),
            "granularity": texts if len(texts) > 1 else texts[0],
            **({"overrides": own} if own else {}),
        }


def find_structures(granularity: Any) -> tuple[Structure, ...]:
    """The structures that a run without a target removes; empty if it sets weights to zero.

    Args:
        granularity: one, or several; texts, structures or granularities.

    Raises:
        UsageError: for structures beside granularities, or one of them twice.
    """
    structures, others = split_structures(granularity)
    if structures and others:
        raise UsageError(
            "structures and granularities are removed in steps of their own: give steps, the "
            "structures first, or a target, which chooses how much of each"
        )
    return structures


def split_structures(granularity: Any) -> tuple[tuple[Structure, ...], list[Any]]:
    """The structures among the granularities of `prune`, and the others as they are given.

    Args:
        granularity: one, or several; texts, structures or granularities.

    Raises:
        UsageError: for a structure that is given twice, or has wrong options.
    """
    one = isinstance(granularity, str) or not isinstance(granularity, Sequence)
    given = [granularity] if one else list(granularity)
    found = [(item, _structure(item)) for item in given]
    structures = tuple(structure for _, structure in found if structure is not None)
    names = [structure.name for structure in structures]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"structure {twice} is given twice")
    return structures, [item for item, structure in found if structure is None]


def _structure(item: Any) -> Structure | None:
    if isinstance(item, Structure):
        return item
    if str(item).partition("(")[0] == Vocabulary.name:
        raise UsageError(
            "a vocabulary is cut with its tokenizer: se.cut_vocabulary(model, folder, texts)"
        )
    names = {cls.name for cls in STRUCTURES}
    if isinstance(item, str) and item.partition("(")[0] in names:
        return find(item, STRUCTURES)
    return None


def cut_method(
    structures: tuple[Structure, ...],
    sparsity: float | None,
    criterion: str | Criterion | None,
    recovery: str | Recovery | None,
    allocator: str | Allocator,
    has_calibration: bool,
    overrides: Iterable[Override | Mapping[str, Any]] = (),
) -> CutMethod:
    """Validate the arguments of a run.

    Raises:
        UsageError: if one of them is unknown, out of range, or does not fit the others.
    """
    scoring, sharing = find_criterion(criterion or "magnitude"), find_allocator(allocator)
    check_allocator(sharing)
    _check_criterion(scoring)
    name = structures[0].name
    if scoring.decides_sparsity:
        if sparsity is not None:
            raise UsageError(
                f"criterion {scoring} decides what is removed; leave out sparsity {sparsity}"
            )
        if not isinstance(sharing, Uniform):
            raise UsageError(
                f"allocator {sharing} has nothing to share out: {scoring} decides how many {name}s "
                "of each site are removed"
            )
    elif sparsity is None:
        raise UsageError(f"no sparsity given; give the fraction of {name}s to remove, as 0.25")
    elif not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise UsageError(
            f"sparsity {sparsity!r:.80} is not a fraction of {name}s to remove; expected "
            "0 <= sparsity < 1"
        )
    share = float(sparsity or 0.0)
    sharing.check(share)
    method = Method(share, Element(), scoring, find_recovery(recovery), sharing)
    if method.needs and not has_calibration:
        parts: tuple[Any, ...] = (scoring, method.recovery, sharing)
        needing = next(part for part in parts if part.needs)
        raise UsageError(f"{needing.name} needs calibration inputs; pass calibration=")
    own = tuple(_own_sparsity(override, scoring) for override in find_overrides(overrides))
    return CutMethod({s.name: s for s in structures}, method, own)


def _check_criterion(criterion: Criterion) -> None:
    """Refuse a criterion, or an option of one, that means something to single weights alone."""
    if isinstance(criterion, SparseGPT):
        raise UsageError("criterion sparsegpt removes single weights in turn; structures: use obs")
    for option in criterion.for_elements:
        if getattr(criterion, option) != getattr(type(criterion), option):
            raise UsageError(
                f"criterion {criterion}: {option} is about single weights; leave it out for "
                "structures"
            )
    scores_groups = type(criterion).group_scores is not Criterion.group_scores
    if GRADIENTS.intersection(criterion.needs) and not (
        scores_groups or type(criterion).removals is not Criterion.removals
    ):
        raise UsageError(
            f"criterion {criterion} scores single weights by their gradients; for structures it "
            "needs group_scores"
        )


def _own_sparsity(override: Override, criterion: Criterion) -> tuple[NamePattern, float]:
    """The sites that an override is for, and their sparsity."""
    for option in ("granularity", "criterion"):
        if getattr(override, option) is not None:
            raise UsageError(
                f"override {override.match!r}: structures take a sparsity of their own, no {option}"
            )
    sparsity = override.sparsity
    if criterion.decides_sparsity:
        raise UsageError(f"override {override.match!r}: criterion {criterion} decides the sparsity")
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise UsageError(
            f"override {override.match!r}: sparsity {sparsity!r} is no fraction; expected "
            "0 <= sparsity < 1"
        )
    return NamePattern(override.match), float(sparsity)
