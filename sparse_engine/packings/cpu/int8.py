"""int8: the packings with integers for values and one float scale an output row.

W[r, c] = integer * scales[r], symmetric, scales[r] = max |W[r]| / 127. QuadRuns and Bits8 meet
activations that are quantised token by token while the op runs; SellP8 and Groups8 as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import CSR, NM, SellP
from sparse_engine.formats.checks import check_buffer, check_weight, check_zero
from sparse_engine.formats.sellp import pack_sellp
from sparse_engine.packings.cpu.bits import Bits, bit_buffers
from sparse_engine.packings.cpu.groups import Groups, group_buffers
from sparse_engine.packings.cpu.runs import Runs, pack_pattern


def _corrected(out_features: int, chunk: object) -> int:
    assert isinstance(chunk, int)
    return -(-out_features // chunk) * chunk + 1


# Sums of int32 stay exact: 65536 x 127 x 127, and 128 x 127 x 65536 of the corrections.
MAX_INPUTS = 1 << 16


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] in -127..127 and scales float32 [out]: max |row| / 127, symmetric.

    Raises UsageError for a weight with an Inf or NaN: integers cannot say it.
    """
    weight = weight.float()
    if not bool(torch.isfinite(weight).all()):
        raise UsageError("int8 cannot hold the Inf or NaN in this weight")
    scales = weight.abs().amax(1) / 127 if weight.shape[1] else weight.new_zeros(weight.shape[0])
    divisors = torch.where(scales > 0, scales, 1.0)
    return (weight / divisors[:, None]).round().clamp(-127, 127).to(torch.int8), scales


@dataclass(frozen=True, eq=False, repr=False)
class QuadRuns(Runs):
    """Runs of int8: four columns side by side count as one, so that one instruction takes them.

    W[r, c] = values[e, c % 4] * scales[r] for the entry e of (r, c // 4): symmetric, one scale an
    output row. A quad with a single non-zero is stored whole. Activations are quantised per token
    when the op runs.
    """

    name: ClassVar[str] = "quad_runs"
    template: ClassVar[str] = "quad_runs:{chunk}:{block}"
    buffer_names: ClassVar[tuple[str, ...]] = (*Runs.buffer_names, "scales", "corrections")

    scales: Tensor
    """float32 [out]."""
    corrections: Tensor
    """int32 [chunks x chunk + 1]: -128 x the sum of a row's values (csrc/layouts/runs.h)."""

    @classmethod
    def from_dense(cls, weight: Tensor, chunk: int | None = None, block: int | None = None) -> Self:
        """Quantise and pack a weight [out, in], float32 or bfloat16; non-zeros may round to zero."""
        weight = check_weight(weight)
        if weight.shape[1] > MAX_INPUTS:
            raise UsageError(f"int8: at most {MAX_INPUTS} inputs, got {weight.shape[1]}")
        quantised, scales = quantise_rows(weight)
        padded = torch.nn.functional.pad(quantised, (0, -weight.shape[1] % 4))
        quads = padded.reshape(-1).view(torch.int32).view(weight.shape[0], -(-weight.shape[1] // 4))
        pattern = CSR.from_dense((quads != 0).float())
        values = quads[quads != 0]
        buffers = pack_pattern(pattern, values, chunk, block)
        corrections = torch.zeros(_corrected(weight.shape[0], buffers["chunk"]), dtype=torch.int32)
        corrections[: weight.shape[0]] = -128 * quantised.sum(1, dtype=torch.int32)
        quartets = buffers["values"]
        assert isinstance(quartets, Tensor)
        buffers["values"] = quartets[:, None].view(torch.int8)
        shape = (weight.shape[0], weight.shape[1])
        return cls(shape=shape, scales=scales, corrections=corrections, **buffers)  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        """Quads of a row."""
        return -(-self.shape[1] // 4)

    def to_dense(self) -> Tensor:
        """The matrix [out, in] that the integers stand for, float32."""
        return (self.quantised().float() * self.scales[:, None]).contiguous()

    def quantised(self) -> Tensor:
        """The integers, int8 [out, in]."""
        dense = self.values.new_zeros(self.shape[0], self.width, 4)
        dense[self.entries()] = self.values
        return dense.view(self.shape[0], 4 * self.width)[:, : self.shape[1]]

    def _validate_values(self) -> None:
        check_buffer("runs values", self.values, (torch.int8,), ("values", 4))
        _check_scales(self.scales, self.shape[0])
        size = _corrected(self.shape[0], self.chunk)
        check_buffer("runs corrections", self.corrections, (torch.int32,), (size,))

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
        super().validate()
        _check_width(self.shape[1])
        _check_symmetric(self.values)
        row, quad = self.entries()
        tail = -self.shape[1] % 4
        if tail:
            check_zero("runs values", self.values[quad == self.width - 1][:, 4 - tail :])
        sums = torch.zeros(self.shape[0], dtype=torch.int32)
        sums.index_add_(0, row, self.values.sum(1, dtype=torch.int32))
        if not torch.equal(self.corrections[: self.shape[0]], -128 * sums):
            raise InvalidFileError("runs corrections: are not -128 x the sums of the rows")


@dataclass(frozen=True, eq=False, repr=False)
class SellP8(SellP):
    """SELL-P of int8; the kernels widen the integers, so activations keep their precision."""

    name: ClassVar[str] = "sellp8"
    template: ClassVar[str] = "sellp8"
    buffer_names: ClassVar[tuple[str, ...]] = (*SellP.buffer_names, "scales")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8,)

    scales: Tensor
    """float32 [out]."""

    @classmethod
    def from_dense(cls, weight: Tensor) -> Self:
        """Quantise and pack a weight [out, in], float32 or bfloat16."""
        quantised, scales = quantise_rows(check_weight(weight))
        pattern = CSR.from_dense(quantised.float())
        buffers = pack_sellp(pattern, pattern.values.to(torch.int8))
        return cls(shape=(weight.shape[0], weight.shape[1]), scales=scales, **buffers)

    def to_dense(self) -> Tensor:
        """The matrix [out, in] that the integers stand for, float32."""
        return super().to_dense().float() * self.scales[:, None]

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
        super().validate()
        _check_scales(self.scales, self.shape[0])


@dataclass(frozen=True, eq=False, repr=False)
class Bits8(Bits):
    """Bits of int8."""

    name: ClassVar[str] = "bits8"
    template: ClassVar[str] = "bits8"
    buffer_names: ClassVar[tuple[str, ...]] = (*Bits.buffer_names, "scales", "corrections")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8,)

    scales: Tensor
    """float32 [out]."""
    corrections: Tensor
    """int32 [out]: -128 x the sum of a row's values, since activations come as x + 128."""

    @classmethod
    def from_dense(cls, weight: Tensor) -> Self:
        """Quantise and pack a weight [out, in], float32 or bfloat16."""
        quantised, scales = quantise_rows(check_weight(weight))
        if weight.shape[1] > MAX_INPUTS:
            raise UsageError(f"int8: at most {MAX_INPUTS} inputs, got {weight.shape[1]}")
        corrections = -128 * quantised.sum(1, dtype=torch.int32)
        shape = (weight.shape[0], weight.shape[1])
        buffers = bit_buffers(quantised)
        return cls(shape=shape, scales=scales, corrections=corrections, **buffers)

    def to_dense(self) -> Tensor:
        """The matrix [out, in] that the integers stand for, float32."""
        return super().to_dense().float() * self.scales[:, None]

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
        super().validate()
        _check_scales(self.scales, self.shape[0])
        _check_width(self.shape[1])
        _check_symmetric(self.values)
        check_buffer("bits corrections", self.corrections, (torch.int32,), (self.shape[0],))
        sums = -128 * super().to_dense().sum(1, dtype=torch.int32)
        if not torch.equal(self.corrections, sums):
            raise InvalidFileError("bits corrections: are not -128 x the sums of the rows")


def _check_width(in_features: int) -> None:
    if in_features > MAX_INPUTS:
        raise InvalidFileError(f"int8: at most {MAX_INPUTS} inputs, got {in_features}")


def _check_symmetric(values: Tensor) -> None:
    if bool((values == -128).any()):
        raise InvalidFileError("int8 values: expected -127..127, got -128")


def _check_scales(scales: Tensor, out_features: int) -> None:
    check_buffer("scales", scales, (torch.float32,), (out_features,))
    if not bool(torch.isfinite(scales).all()):
        raise InvalidFileError("scales: must be finite")
    if bool((scales < 0).any()):
        raise InvalidFileError("scales: must not be negative")


@dataclass(frozen=True, eq=False, repr=False)
class Groups8(Groups):
    """Groups of int8; the kernels widen the integers, so activations keep their precision."""

    name: ClassVar[str] = "groups8"
    template: ClassVar[str] = "groups8:{keep}:{of}"
    buffer_names: ClassVar[tuple[str, ...]] = (*Groups.buffer_names, "scales")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8,)

    scales: Tensor
    """float32 [out]."""

    @classmethod
    def from_nm(cls, weight: NM) -> Self:
        """Quantise and pack N:M."""
        values, scales = quantise_rows(weight.values)
        buffers = group_buffers(weight, values)
        return cls(shape=weight.shape, keep=weight.keep, of=weight.of, scales=scales, **buffers)

    def to_dense(self) -> Tensor:
        """The matrix [out, in] that the integers stand for, float32."""
        return super().to_dense().float() * self.scales[:, None]

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
        super().validate()
        _check_scales(self.scales, self.shape[0])
