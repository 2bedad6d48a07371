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
from sparse_engine.formats.base import Format
from sparse_engine.formats.bits import pack_numbers, pad_bits, unpack_numbers
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_shape,
    check_zero,
    first,
)
from sparse_engine.formats.rows import Rows, RowSource, running

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
    within a group. `in` that is no multiple of `of` is padded with zeros inside; `to_dense` removes
    the padding.

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
    def from_format(cls, weight: RowSource, keep: int = 2, of: int = 4) -> Self:
        """Store a weight with at most `keep` non-zeros a group."""
        problem = cls.params_problem({"keep": keep, "of": of})
        if problem:
            raise UsageError(problem)
        (out_features, in_features), device = weight.shape, weight.device
        groups, width = -(-in_features // of), (of - 1).bit_length()
        count = groups * keep
        check_count("nm: values in a row", count)
        values = torch.zeros(out_features, count, dtype=weight.dtype, device=device)
        size = (out_features, -(-count * width // 8))
        positions = torch.zeros(size, dtype=torch.uint8, device=device)
        places = torch.arange(of, dtype=torch.uint8, device=device)
        for begin, end in weight.ranges(least=2 * groups * of):
            strip = weight.read_strip(begin, end, groups * of)
            strip = strip.view(end - begin, groups, of)
            kept = _kept(strip != 0, keep, begin)
            numbers = places.expand(kept.shape)[kept].view(end - begin, count)
            values[begin:end] = strip[kept].view(end - begin, count)
            positions[begin:end] = pack_numbers(numbers, width)
        return cls((out_features, in_features), values, positions, keep, of)

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

    def unpacked_positions(self, begin: int = 0, end: int | None = None) -> Tensor:
        """Position of each value of rows begin to end - 1, uint8 [rows, groups, keep]."""
        width = (self.of - 1).bit_length()
        numbers = unpack_numbers(self.positions[begin:end], width, self.groups * self.keep)
        return numbers.view(len(numbers), self.groups, self.keep)

    def row_costs(self) -> Tensor:
        """Values of a row."""
        return torch.full((self.shape[0],), self.groups * self.keep, device=self.device)

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        starts = torch.arange(0, self.groups * self.of, self.of, device=self.device)
        columns = starts.int()[:, None] + self.unpacked_positions(begin, end)
        values = self.values[begin:end]
        kept = values != 0
        return Rows(running(kept.sum(1)), columns.view(kept.shape)[kept], values[kept])

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

    def rises(self) -> bool:
        """Whether positions rise strictly within every group, as `validate` requires."""
        parts = (self.unpacked_positions(*span) for span in self.ranges())
        return all(bool((part[:, :, 1:] > part[:, :, :-1]).all()) for part in parts)

    def _validate_positions(self) -> None:
        tail = self.shape[1] % self.of
        for begin, end in self.ranges():
            positions = self.unpacked_positions(begin, end)
            at = first(positions > self.of - 1)
            if at is not None:
                where = _where(at, begin, self.groups, self.keep)
                value = int(positions.reshape(-1)[at])
                raise InvalidFileError(
                    f"nm positions: {where} has {value}, outside 0..{self.of - 1}"
                )
            at = first(positions[:, :, 1:] <= positions[:, :, :-1])
            if at is not None:
                where = _where(at, begin, self.groups, self.keep - 1)
                raise InvalidFileError(
                    f"nm positions: must increase strictly within a group; {where}"
                )
            if tail:
                last = self.values[begin:end, -self.keep :]
                check_zero("nm values", last[positions[:, -1] >= tail])


def _where(at: int, begin: int, groups: int, per_group: int) -> str:
    """Row and group, in words, of a flat place in [rows from `begin`, groups, per_group]."""
    return f"row {begin + at // (groups * per_group)}, group {at // per_group % groups}"


def _kept(mask: Tensor, keep: int, begin: int) -> Tensor:
    """`keep` places a group: all non-zeros, then its first zeros; bool [rows, groups, of].

    begin: The first of the rows, for the message of the UsageError.
    """
    counts = mask.sum(2, dtype=torch.int16)
    at = first(counts > keep)
    if at is not None:
        of, groups = mask.shape[2], mask.shape[1]
        raise UsageError(
            f"nm:{keep}:{of}: row {begin + at // groups}, group {at % groups} has "
            f"{int(counts.reshape(-1)[at])} non-zeros, more than {keep}; prune to {keep}:{of} first"
        )
    zeros = (~mask).to(torch.int16).cumsum(2, dtype=torch.int16)
    return mask | (zeros <= (keep - counts).unsqueeze(2))


def most_in_group(weight: Tensor, of: int) -> int:
    """Non-zeros of the fullest group of `of` neighbours along the inputs."""
    kept = pad(weight != 0, (0, -weight.shape[1] % of))
    return int(kept.view(weight.shape[0], -1, of).sum(2).max()) if kept.numel() else 0
