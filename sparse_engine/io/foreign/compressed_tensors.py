"""compressed-tensors: "sparse-bitmask" and "sparse-24-bitmask", which version 0.12 still writes.

A weight X.weight [out, in] is stored as

    shape        int64 [dims], or [dims, 1]           its sizes
    bitmask      uint8 [out, ceil(in / 8)]            bit i of byte j: column 8 j + i is stored
    compressed   float [nnz]; 2:4: [out, in / 2]      the stored values, row by row
    row_offsets  int64 [out]; none for 2:4            where in `compressed` a row starts

under X.shape, X.bitmask, ... since version 0.9, and under X.weight.shape, ... before. Before, all
tensors were stored so, biases too: a vector [n] has a bitmask [ceil(n / 8)] and a single offset.
Of four consecutive elements sparse-24-bitmask stores exactly two, also where they are zero.

config.json describes it in "quantization_config", or "compression_config" until version 0.7, next
to quantisation, which is refused. https://github.com/neuralmagic/compressed-tensors
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats.bits import pad_bits, popcounts, unpack_bits
from sparse_engine.io.foreign.base import Layout
from sparse_engine.io.tensorfile import MAX_DIMS, Slot

KEYS = ("quantization_config", "compression_config")
METHOD = "compressed-tensors"
# What a description without quantisation holds; any other key with a value means quantisation.
PLAIN_KEYS = frozenset(
    {
        "quant_method",
        "version",
        "format",
        "ignore",
        "quantization_status",
        "global_compression_ratio",
        "sparsity_config",
    }
)
WEIGHT = ".weight"
BITMASK = ".bitmask"


class SparseFormat(Enum):
    """The "format" of a sparsity_config."""

    DENSE = "dense"
    BITMASK = "sparse-bitmask"
    BITMASK_24 = "sparse-24-bitmask"

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors that a weight is stored in."""
        parts: dict[SparseFormat, tuple[str, ...]] = {
            SparseFormat.DENSE: (),
            SparseFormat.BITMASK: ("shape", "compressed", "bitmask", "row_offsets"),
            SparseFormat.BITMASK_24: ("shape", "compressed", "bitmask"),
        }
        return parts[self]


@dataclass(frozen=True)
class CompressedTensors(Layout):
    """A checkpoint that compressed-tensors wrote, without quantisation.

    Attributes:
        format: How its sparse weights are stored.
    """

    title: ClassVar[str] = METHOD
    format: SparseFormat

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self | None:
        """The layout of a config.json; None for any other one, quantised ones included.

        Raises InvalidFileError for an unknown sparse format.
        """
        keys = [key for key in KEYS if config.get(key)]
        found = config[keys[0]] if len(keys) == 1 else None
        if not isinstance(found, dict) or not _is_plain(found):
            return None
        sparsity = found.get("sparsity_config") or {"format": SparseFormat.DENSE.value}
        name = sparsity.get("format") if isinstance(sparsity, dict) else sparsity
        try:
            format = SparseFormat(name)
        except ValueError:
            known = ", ".join(format.value for format in SparseFormat)
            raise InvalidFileError(
                f"config.json: {keys[0]}: sparse format {str(name)[:40]!r} is none of {known}"
            ) from None
        return cls({key: config[key] for key in config if key not in KEYS}, format)

    def plain_slots(self, slots: Mapping[str, Slot]) -> dict[str, Slot]:
        """Weights with eight elements a byte of their bitmask, and all other tensors."""
        plain = dict(slots)
        for name, stem in self._weights(slots).items():
            parts = {part: plain.pop(f"{stem}.{part}") for part in self.format.parts}
            bits, values = parts["bitmask"], parts["compressed"]
            if bits.dtype != torch.uint8 or not values.dtype.is_floating_point:
                raise InvalidFileError(
                    f"tensor {stem + BITMASK!r}: expected a uint8 bitmask of floating-point values"
                )
            count = 8 * math.prod(bits.shape)
            plain[name] = Slot(values.dtype, (count,), bits.start, count * values.dtype.itemsize)
        return plain

    def plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """All weights with their zeros."""
        for name, stem in self._weights(state).items():
            parts = {part: state.pop(f"{stem}.{part}") for part in self.format.parts}
            try:
                state[name] = self._weight(**parts)
            except InvalidFileError as error:
                raise InvalidFileError(f"tensor {name!r}: {error}") from None
        return state

    def _weights(self, names: Collection[str]) -> dict[str, str]:
        """Names of the weights that are stored sparse, and the stems of their parts' names."""
        if self.format is SparseFormat.DENSE:
            return {}
        stems = [name.removesuffix(BITMASK) for name in names if name.endswith(BITMASK)]
        is_full = any(stem.endswith(WEIGHT) for stem in stems)
        weights = {stem if is_full else stem + WEIGHT: stem for stem in stems}
        for name, stem in weights.items():
            for part in self.format.parts:
                if f"{stem}.{part}" not in names:
                    raise InvalidFileError(
                        f"tensor {f'{stem}.{part}'!r} is missing: {self.format.value} stores "
                        f"{name!r} in {_listed(self.format.parts)}"
                    )
            if name in names:
                raise InvalidFileError(f"tensor {name!r} exists twice: also as {stem + BITMASK!r}")
        return weights

    def _weight(
        self, shape: Tensor, compressed: Tensor, bitmask: Tensor, row_offsets: Tensor | None = None
    ) -> Tensor:
        """A weight from its parts; nothing is allocated before they fit each other."""
        sizes = _sizes(shape)
        packed = (*sizes[:-1], -(-sizes[-1] // 8))
        if tuple(bitmask.shape) != packed:
            raise InvalidFileError(f"bitmask is {_dims(bitmask.shape)}, expected {_dims(packed)}")
        rows = bitmask.reshape(-1, packed[-1])
        if bool(pad_bits(rows, sizes[-1]).any()):
            raise InvalidFileError("bitmask has bits set beyond the last column")
        counts = popcounts(rows)
        total = int(counts.sum())
        if total != compressed.numel():
            raise InvalidFileError(f"bitmask has {total} bits set for {compressed.numel()} values")
        if row_offsets is None:
            _check_24(sizes, compressed, rows)
        else:
            _check_offsets(row_offsets, counts.view(sizes[:-1]))
        weight = torch.zeros(sizes, dtype=compressed.dtype)
        kept = unpack_bits(rows, sizes[-1]).view(sizes)
        return weight.masked_scatter_(kept, compressed)

    def __str__(self) -> str:
        """The tool and the format."""
        return f"{METHOD} {self.format.value}"


def _is_plain(found: dict[str, Any]) -> bool:
    """Whether a description is one of compressed-tensors, of sparsity alone."""
    return (
        found.get("quant_method") in (None, METHOD)
        and PLAIN_KEYS.issuperset(key for key, value in found.items() if value)
        and found.get("format") in (None, SparseFormat.DENSE.value)
    )


def _sizes(shape: Tensor) -> tuple[int, ...]:
    """The sizes that a tensor `shape` holds."""
    if shape.is_floating_point() or shape.dim() > 2 or not 1 <= shape.numel() <= MAX_DIMS:
        raise InvalidFileError(f"shape is no list of at most {MAX_DIMS} integers")
    sizes = tuple(shape.flatten().tolist())
    if min(sizes) < 1:
        raise InvalidFileError(f"shape {_dims(sizes)} has no elements")
    return sizes


def _check_24(sizes: tuple[int, ...], values: Tensor, rows: Tensor) -> None:
    """Check that exactly two of four consecutive elements are stored."""
    halves = (sizes[0], sizes[-1] // 2)
    if len(sizes) != 2 or math.prod(sizes) % 4 or tuple(values.shape) != halves:
        raise InvalidFileError(
            f"2:4 values are {_dims(values.shape)} for a weight of {_dims(sizes)}"
        )
    fours = unpack_bits(rows, sizes[-1]).reshape(-1, 4)
    if bool((fours.sum(1) != 2).any()):
        raise InvalidFileError("bitmask is not 2:4: it stores more or less than two of four")


def _check_offsets(offsets: Tensor, counts: Tensor) -> None:
    """Check that each row starts where the one before ends."""
    starts = counts.cumsum(0) - counts if counts.dim() else torch.zeros_like(counts)
    if offsets.is_floating_point() or offsets.shape != counts.shape:
        raise InvalidFileError(
            f"row_offsets are {_dims(offsets.shape)}, expected {_dims(counts.shape)} integers"
        )
    if not torch.equal(offsets.long(), starts):
        raise InvalidFileError("row_offsets are not where the rows of the bitmask start")


def _dims(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes)) or "one number"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
