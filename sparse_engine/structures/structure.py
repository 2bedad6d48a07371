"""Structures: what is removed as a whole, by the text forms that granularities have too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparse_engine.errors import UsageError
from sparse_engine.named import Named


@dataclass(frozen=True)
class Structure(Named):
    """Groups of rows and columns that several layers share.

    Args:
        round_to: the number of groups that are kept is a multiple of it where there are as many.
        keep: the fewest groups of a site that are kept.

    Raises:
        UsageError: if one of them is less than 1.
    """

    kind = "structure"
    round_to: int = 1
    keep: int = 1

    def __post_init__(self) -> None:
        for option in ("round_to", "keep"):
            value = getattr(self, option)
            if value < 1:
                raise UsageError(f"structure {self.name}: {option}={value} is less than 1")

    def kept(self, groups: int, wanted: float) -> int:
        """How many groups of a site are kept.

        Args:
            groups: how many there are.
            wanted: how many would be kept without the options.
        """
        count = max(round(wanted), self.keep)
        if self.round_to > 1 and groups > self.round_to:
            count = self.round_to * max(round(count / self.round_to), 1)
        return min(count, groups)


@dataclass(frozen=True)
class Head(Structure):
    """Attention heads. Where heads share keys and values, all that share go together."""

    name: ClassVar[str] = "head"


@dataclass(frozen=True)
class Read(Structure):
    """Structures whose readers may have to be stated, as the code of a forward pass is not read.

    Args:
        readers: modules and those that read their outputs, as "lstm: fc" or
            "encoder: attention fc; decoder: words". They read all features of the outputs in their
            order. Between the two there may only be functions that treat each feature by itself,
            such as dropout and the maximum over time; norms and PReLU, which have values for each
            feature, are among the readers: "conv1: norm1 conv2". A reader that several modules
            name reads their outputs side by side, in the order of the text; "convs.*: fc" is all
            layers whose names match.

    Raises:
        UsageError: if `readers` cannot be read.
    """

    readers: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.readers_by_source

    @property
    def readers_by_source(self) -> Mapping[str, tuple[str, ...]]:
        """`readers` as names of modules, by the name of the module that they read."""
        stated: dict[str, tuple[str, ...]] = {}
        for part in filter(None, map(str.strip, self.readers.split(";"))):
            source, colon, rest = part.partition(":")
            readers = tuple(rest.split())
            if not (colon and readers and source.strip()) or source.strip() in stated:
                raise UsageError(
                    f"{self.name}: readers={self.readers!r:.80}; expected 'module: layer layer; "
                    "...', each module once"
                )
            stated[source.strip()] = readers
        return stated


def stated_readers(structures: Iterable[Structure]) -> dict[str, tuple[str, ...]]:
    """The modules that structures state to read others, by the names of these."""
    stated: dict[str, tuple[str, ...]] = {}
    for structure in structures:
        if isinstance(structure, Read):
            stated |= structure.readers_by_source
    return stated


@dataclass(frozen=True)
class Unit(Read):
    """Hidden units: of feed-forwards, recurrent networks, and chains of linear layers.

    Args:
        readers: see `Read`, for recurrent networks and cells, and for linear layers outside of
            nn.Sequential. The readers are linear layers, or other networks.

    Raises:
        UsageError: if `readers` cannot be read.
    """

    name: ClassVar[str] = "unit"
    keep: int = 16


@dataclass(frozen=True)
class Filter(Read):
    """Output channels of nn.Conv1d, and the linear layers and convolutions that read them.

    Args:
        readers: see `Read`, for convolutions outside of nn.Sequential. Pooling over time, and
            flattening channels with their positions, may come in between.

    Raises:
        UsageError: if `readers` cannot be read.

    Example:
        se.prune(text_cnn, 0.5, se.Filter(readers="convs.*: fc"))
    """

    name: ClassVar[str] = "filter"


@dataclass(frozen=True)
class Layer(Structure):
    """Whole blocks of a stack, such as the layers of a Transformer.

    Args:
        count: how many go, in place of a sparsity: of each stack, or where stacks compete of all
            together.
    """

    name: ClassVar[str] = "layer"
    count: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count is not None and self.count < 1:
            raise UsageError(f"structure layer: count={self.count} is less than 1")


@dataclass(frozen=True)
class Expert(Structure):
    """Whole experts of a mixture; the router chooses among those that are left."""

    name: ClassVar[str] = "expert"


STRUCTURES: tuple[type[Structure], ...] = (Head, Unit, Layer, Filter, Expert)
