"""N:M: at most `keep` non-zeros in every group of `of` neighbours along the inputs.

W[i, of g + position[i, g, s]] = values[i, keep g + s], s in 0..keep-1; 2:4 is arXiv:2104.08378.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.base import Format, positive_zeros
from sparse_engine.formats.bits import pack_numbers, pad_bits, unpack_numbers
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_shape,
    check_weight,
    check_zero,
    first,
)

MAX_OF = 256


@dataclass(frozen=True, eq=False, repr=False)
class NM(Format):
    """Exactly `keep` values a group, each with its position in ceil(log2(of)) bits.

    ```
    NM.from_dense(W, keep=2, of=4)

    W = | 5 . . 1 . 8 . . |     values     5 1 0 8                 [out, n = groups * keep]
        | . 2 7 . 3 . . 4 |                2 7 3 4                 float32 or bfloat16
                                positions  0 3 0 1 = 0b01001100    [out, ceil(n * bits / 8)]
                                           1 2 0 3 = 0b11001001    uint8, first in the lowest bits
    ```

    A group with fewer non-zeros stores its first zeros too, so that positions always rise strictly
    within a group. `in` that is no multiple of `of` is padded with zeros inside; `to_dense` takes
    the padding off.

    >>> NM.from_dense(weight, keep=2, of=4).to_dense()
    """

    name: ClassVar[str] = "nm"
    template: ClassVar[str] = "nm:{keep}:{of}"
    param_names: ClassVar[tuple[str, ...]] = ("keep", "of")
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "positions")

    positions: Tensor
    keep: int
    of: int

    @classmethod
    def from_dense(cls, weight: Tensor, keep: int = 2, of: int = 4) -> Self:
        """Store a weight [out, in] with at most `keep` non-zeros a group; raises UsageError."""
        weight = check_weight(weight)
        problem = cls.params_problem({"keep": keep, "of": of})
        if problem:
            raise UsageError(problem)
        out_features, in_features = weight.shape
        groups = -(-in_features // of)
        check_count("nm: values in a row", groups * keep)
        padded = pad(weight, (0, groups * of - in_features)).reshape(out_features, groups, of)
        kept = _kept(padded != 0, keep)
        places = torch.arange(of, dtype=torch.uint8, device=weight.device)
        width = (of - 1).bit_length()
        size = (out_features, groups * keep)
        return cls(
            shape=(out_features, in_features),
            values=positive_zeros(padded[kept]).view(size),
            positions=pack_numbers(places.expand(kept.shape)[kept].view(size), width),
            keep=keep,
            of=of,
        )

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """What is wrong with `keep` and `of`, in one line, or None."""
        keep, of = params["keep"], params["of"]
        if type(keep) is int and type(of) is int and 1 <= keep <= of and 2 <= of <= MAX_OF:
            return None
        return f"nm: expected 1 <= keep <= of and 2 <= of <= {MAX_OF}, got keep={keep}, of={of}"

    @property
    def groups(self) -> int:
        """Groups in a row, the last one possibly padded."""
        return -(-self.shape[1] // self.of)

    def unpacked_positions(self) -> Tensor:
        """Position of each value within its group, uint8 [out, groups, keep]."""
        width = (self.of - 1).bit_length()
        numbers = unpack_numbers(self.positions, width, self.groups * self.keep)
        return numbers.view(self.shape[0], self.groups, self.keep)

    def to_dense(self) -> Tensor:
        """The matrix [out, in] without padding."""
        out_features, in_features = self.shape
        size = (out_features, self.groups * self.of)
        padded = torch.zeros(size, dtype=self.dtype, device=self.device)
        starts = torch.arange(0, padded.numel(), self.of, device=self.device)
        flat = starts.view(out_features, self.groups, 1) + self.unpacked_positions()
        # Not scatter_, which quietens signalling NaNs in bfloat16.
        padded.view(-1).index_copy_(0, flat.view(-1), self.values.view(-1))
        return padded[:, :in_features].contiguous()

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix."""
        check_shape(self.name, self.shape)
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        count = self.groups * self.keep
        bits = count * (self.of - 1).bit_length()
        check_buffer("nm values", self.values, VALUE_DTYPES, (self.shape[0], count))
        packed_shape = (self.shape[0], -(-bits // 8))
        device = self.values.device
        check_buffer("nm positions", self.positions, (torch.uint8,), packed_shape, device)
        row = first(pad_bits(self.positions, bits))
        if row is not None:
            raise InvalidFileError(f"nm positions: row {row} has bits set beyond its {bits} bits")
        self._validate_positions()

    def _validate_positions(self) -> None:
        positions = self.unpacked_positions()
        at = first(positions > self.of - 1)
        if at is not None:
            where = _where(at, self.groups, self.keep)
            value = int(positions.reshape(-1)[at])
            raise InvalidFileError(f"nm positions: {where} has {value}, outside 0..{self.of - 1}")
        at = first(positions[:, :, 1:] <= positions[:, :, :-1])
        if at is not None:
            where = _where(at, self.groups, self.keep - 1)
            raise InvalidFileError(f"nm positions: must increase strictly within a group; {where}")
        tail = self.shape[1] % self.of
        if tail:
            check_zero("nm values", self.values[:, -self.keep :][positions[:, -1] >= tail])


def _where(at: int, groups: int, per_group: int) -> str:
    """Row and group of a flat place in [out, groups, per_group], in words."""
    return f"row {at // (groups * per_group)}, group {at // per_group % groups}"


def _kept(mask: Tensor, keep: int) -> Tensor:
    """`keep` places a group: all non-zeros, then its first zeros; bool [out, groups, of]."""
    counts = mask.sum(2, dtype=torch.int16)
    at = first(counts > keep)
    if at is not None:
        of, groups = mask.shape[2], mask.shape[1]
        raise UsageError(
            f"nm:{keep}:{of}: row {at // groups}, group {at % groups} has "
            f"{int(counts.reshape(-1)[at])} non-zeros, more than {keep}; prune to {keep}:{of} first"
        )
    zeros = (~mask).to(torch.int16).cumsum(2, dtype=torch.int16)
    return mask | (zeros <= (keep - counts).unsqueeze(2))


def most_in_group(weight: Tensor, of: int) -> int:
    """Non-zeros of the fullest group of `of` neighbours along the inputs."""
    kept = pad(weight != 0, (0, -weight.shape[1] % of))
    return int(kept.view(weight.shape[0], -1, of).sum(2).max()) if kept.numel() else 0
