"""Bits packed into bytes, row by row, lowest bit first.

byte[r, j] = sum over i in 0..7 of bit[r, 8 j + i] << i; zero bits fill the last byte of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.formats.dense import Dense
from sparse_engine.formats.rows import CHUNK, Rows, RowSource, joined

BIT = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)


def pack_bits(bits: Tensor) -> Tensor:
    """bool [rows, n] -> uint8 [rows, ceil(n / 8)]."""
    rows, count = bits.shape
    size = -(-count // 8)
    octets = pad(bits.to(torch.uint8), (0, 8 * size - count)).view(rows, size, 8)
    packed = torch.zeros(rows, size, dtype=torch.uint8, device=bits.device)
    for i in range(8):
        packed |= octets[:, :, i] << i
    return packed


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """uint8 [rows, ceil(count / 8)] -> bool [rows, count]."""
    rows, size = packed.shape
    octets = torch.empty(rows, size, 8, dtype=torch.bool, device=packed.device)
    for i in range(8):
        octets[:, :, i] = (packed >> i) & 1
    return octets.view(rows, 8 * size)[:, :count]


def pack_numbers(numbers: Tensor, width: int) -> Tensor:
    """uint8 [rows, n], each below 2^width -> uint8 [rows, ceil(n * width / 8)]."""
    rows, count = numbers.shape
    bits = torch.empty(rows, count, width, dtype=torch.bool, device=numbers.device)
    for i in range(width):
        bits[:, :, i] = (numbers >> i) & 1
    return pack_bits(bits.view(rows, count * width))


def unpack_numbers(packed: Tensor, width: int, count: int) -> Tensor:
    """uint8 [rows, ceil(count * width / 8)] -> uint8 [rows, count]."""
    bits = unpack_bits(packed, count * width).reshape(packed.shape[0], count, width)
    numbers = torch.zeros(packed.shape[0], count, dtype=torch.uint8, device=packed.device)
    for i in range(width):
        numbers |= bits[:, :, i].to(torch.uint8) << i
    return numbers


def pad_bits(packed: Tensor, count: int) -> Tensor:
    """Whether bits beyond `count` are set in each row's last byte, bool [rows]."""
    used = count % 8
    if used == 0:
        return torch.zeros(packed.shape[0], dtype=torch.bool, device=packed.device)
    return (packed[:, -1] >> used) != 0


def popcounts(packed: Tensor) -> Tensor:
    """Set bits of each row of a uint8 tensor [rows, bytes], int64 [rows]."""
    counts = torch.zeros(len(packed), dtype=torch.int64, device=packed.device)
    step = max(1, CHUNK // max(packed.shape[1], 1))
    for begin in range(0, len(packed), step):
        part = packed[begin : begin + step]
        pairs = part - ((part >> 1) & 0x55)
        nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
        counts[begin : begin + step] = ((nibbles + (nibbles >> 4)) & 0x0F).sum(1)
    return counts


def mask_of(weight: RowSource, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bit an element of a weight, and its non-zeros.

    Args:
        weight: [out, in].
        stride: Bytes of a row of the mask, at least ceil(in / 8).

    Returns:
        The values [nnz], the mask uint8 [out, stride], and the non-zeros of each row, int64 [out].
    """
    out_features, device = weight.shape[0], weight.device
    mask = torch.zeros(out_features, stride, dtype=torch.uint8, device=device)
    counts = torch.zeros(out_features, dtype=torch.int64, device=device)
    values = []
    if isinstance(weight, Dense):
        for begin, end in weight.ranges():
            part = weight.values[begin:end]
            kept = part != 0
            mask[begin:end, : -(-weight.shape[1] // 8)] = pack_bits(kept)
            counts[begin:end] = kept.sum(1)
            values.append(part[kept])
        return joined(values, weight.values.new_zeros(0)), mask, counts
    for begin, rows in weight.row_chunks():
        places = rows.row_ids().add_(begin).mul_(stride).add_(rows.columns >> 3)
        # A byte is the sum of its different bits.
        mask.view(-1).index_add_(0, places, BIT.to(device)[(rows.columns & 7).long()])
        counts[begin : begin + len(rows.pointers) - 1] = rows.pointers.diff()
        values.append(rows.values)
    return joined(values, torch.zeros(0, dtype=weight.dtype, device=device)), mask, counts


def masked_rows(mask: Tensor, values: Tensor, starts: Tensor, in_features: int) -> Rows:
    """The non-zeros of the rows of a mask.

    Args:
        mask: uint8 [rows, bytes].
        values: All values of the matrix.
        starts: [rows + 1], where in `values` each row starts.
        in_features: Columns of the matrix.
    """
    columns = torch.arange(in_features, dtype=torch.int32, device=mask.device)
    kept = unpack_bits(mask, in_features)
    starts = starts.long()
    first, last = int(starts[0]), int(starts[-1])
    rows = Rows(starts - first, columns.expand(kept.shape)[kept], values[first:last])
    return rows.keep(rows.values != 0)
