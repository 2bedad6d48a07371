"""Damaged format buffers: validate() and from_tensors must see each one and say what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats import BSR, CSR, NM, Bitmask, Format, FormatSpec

SPECS = ("csr", "bsr:2x3", "bitmask", "nm:2:5")


def sample(spec: str) -> Format:
    """A small matrix [7, 13] with an empty row and non-zeros in its last row and column."""
    weight = torch.zeros(7, 13)
    weight[0, [0, 4, 12]] = torch.tensor([1.0, 2, 3])
    weight[1, [5, 6]] = torch.tensor([4.0, 5])
    weight[6, [2, 9, 12]] = torch.tensor([6.0, 7, 8])
    return FormatSpec.parse(spec).from_dense(weight)


def damaged(matrix: Format, **changes: Any) -> Format:
    return dataclasses.replace(matrix, **changes)


def with_entry(buffer: Tensor, at: int | tuple[int, ...], value: float) -> Tensor:
    changed = buffer.clone()
    changed[at] = value
    return changed


BUFFERS = [(spec, name) for spec in SPECS for name in sample(spec).buffer_names]


@pytest.mark.parametrize(("spec", "name"), BUFFERS)
def test_kind_size_and_place_of_every_buffer(spec: str, name: str) -> None:
    matrix = sample(spec)
    buffer = getattr(matrix, name)
    spread = torch.stack([buffer, buffer], dim=-1)[..., 0]
    cases = [
        (buffer.double(), f"^{matrix.name} {name}: expected .*, got float64"),
        (buffer.tolist(), f"{name}: expected a dense tensor, got list"),
        (buffer.unsqueeze(0), f"{name}: expected {buffer.dim()} dimensions"),
        (spread, f"{name}: buffer is not contiguous"),
        (buffer.to("meta"), f"{name}: is on the meta device"),
    ]
    for broken, message in cases:
        with pytest.raises(InvalidFileError, match=message):
            damaged(matrix, **{name: broken}).validate()
    for broken in (buffer[:-1], torch.cat([buffer, buffer[-1:]])):
        with pytest.raises(InvalidFileError, match=r"expected shape|are set for|must end at"):
            damaged(matrix, **{name: broken}).validate()


@pytest.mark.parametrize(("spec", "name"), [case for case in BUFFERS if case[1] != "values"])
def test_every_bit_flip_is_seen_or_still_one_matrix(spec: str, name: str) -> None:
    """No flip in an index, pointer, mask or position loses a value or fails in any other way."""
    matrix = sample(spec)
    buffer = getattr(matrix, name)
    caught = 0
    octets = buffer.contiguous().view(torch.uint8).reshape(-1)
    for at in range(octets.numel()):
        for bit in range(8):
            flipped = octets.clone()
            flipped[at] ^= 1 << bit
            changed = flipped.view(buffer.dtype).view(buffer.shape)
            broken = damaged(matrix, **{name: changed})
            try:
                broken.validate()
            except InvalidFileError:
                caught += 1
            else:
                assert int(broken.to_dense().count_nonzero()) == matrix.nnz
    total = 8 * octets.numel()
    assert caught == total if name == "mask" else caught >= total // 3


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7,), "expected two integers"),
        ((7, 13, 1), "expected two integers"),
        ((7.0, 13), "expected two integers"),
        ((True, 13), "expected two integers"),
        ((-7, 13), "must lie in 0..2147483647"),
        ((7, 2**31), "must lie in 0..2147483647"),
    ],
)
def test_shape_must_be_two_sizes(spec: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidFileError, match=f"shape: .*{message}"):
        damaged(sample(spec), shape=shape).validate()


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("csr", (8, 13), r"pointers: expected shape \[9\], got \[8\]"),
        ("csr", (7, 12), r"indices: entry 2 is 12, outside 0\.\.11"),
        ("bsr:2x3", (9, 13), r"pointers: expected shape \[6\], got \[5\]"),
        ("bsr:2x3", (7, 12), r"indices: entry 3 is 4, outside 0\.\.3"),
        ("bitmask", (6, 13), r"mask: expected shape \[6, 2\], got \[7, 2\]"),
        ("bitmask", (7, 17), r"mask: expected shape \[7, 3\], got \[7, 2\]"),
        ("bitmask", (7, 12), r"row 0 has bits set beyond its 12 columns"),
        ("nm:2:5", (8, 13), r"values: expected shape \[8, 6\], got \[7, 6\]"),
        ("nm:2:5", (7, 16), r"values: expected shape \[7, 8\], got \[7, 6\]"),
        ("nm:2:5", (7, 12), r"padding outside the matrix must be 0, 2 are not"),
    ],
)
def test_shape_must_fit_the_buffers(spec: str, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(InvalidFileError, match=message):
        damaged(sample(spec), shape=shape).validate()


@pytest.mark.parametrize("spec", ["csr", "bsr:2x3"])
@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("pointers", 0, 1, "pointers: must start at 0, got 1"),
        ("pointers", -1, 4, "pointers: (must end at|falls from)"),
        ("pointers", 1, 9, "pointers: falls from 9 to . after row 1"),
        ("pointers", 1, -1, "pointers: falls from 0 to -1 after row 0"),
        ("pointers", 1, -(2**31), "pointers: falls from 0 to -2147483648 after row 0"),
        ("indices", 1, -1, "indices: entry 1 is -1, outside"),
        ("indices", -1, 13, r"indices: entry . is 13, outside 0\.\."),
        ("indices", 1, 0, "increase strictly within a row; row 0 has 0, then 0"),
    ],
)
def test_pointers_and_indices(spec: str, name: str, at: int, value: int, message: str) -> None:
    matrix = sample(spec)
    with pytest.raises(InvalidFileError, match=message):
        damaged(matrix, **{name: with_entry(getattr(matrix, name), at, value)}).validate()


def test_order_is_checked_within_rows_only() -> None:
    matrix = CSR.from_dense(torch.tensor([[0.0, 0, 1], [2, 0, 0], [0, 0, 0], [3, 4, 0]]))
    assert matrix.indices.tolist() == [2, 0, 0, 1]
    matrix.validate()
    swapped = with_entry(matrix.indices, 2, 2)
    with pytest.raises(InvalidFileError, match="row 3 has 2, then 1"):
        damaged(matrix, indices=swapped).validate()


@pytest.mark.parametrize(("rows", "cols", "at"), [(4, 1, (-1, 3, 0)), (1, 4, (-1, 0, 3))])
def test_bsr_padding_must_be_zero(rows: int, cols: int, at: tuple[int, ...]) -> None:
    matrix = BSR.from_dense(torch.ones(7, 7), rows, cols)
    matrix.validate()
    with pytest.raises(InvalidFileError, match="padding outside the matrix must be 0, 1 are not"):
        damaged(matrix, values=with_entry(matrix.values, at, float("nan"))).validate()


def test_bsr_block_too_large() -> None:
    empty = torch.zeros(2, dtype=torch.int32)
    bomb = BSR((1, 1), torch.zeros(0, 2**20, 2**20), empty[:0], empty)
    with pytest.raises(InvalidFileError, match=r"block sides must lie in 1\.\.4096"):
        bomb.validate()
    with pytest.raises(InvalidFileError, match=r"block sides must lie in 1\.\.4096"):
        damaged(bomb, values=torch.zeros(0, 0, 1)).validate()


def test_bitmask_counts_and_pad_bits() -> None:
    matrix = sample("bitmask")
    assert isinstance(matrix, Bitmask)
    with pytest.raises(InvalidFileError, match="mask: row 3 has bits set beyond its 13 columns"):
        damaged(matrix, mask=with_entry(matrix.mask, (3, 1), 1 << 5)).validate()
    with pytest.raises(InvalidFileError, match="mask: 9 bits are set for 8 values"):
        damaged(matrix, mask=with_entry(matrix.mask, (3, 1), 1 << 4)).validate()


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (0b01_00_01_01, "must increase strictly within a group; row 1, group 0"),
        (0b00_01_01_00, "must increase strictly within a group; row 1, group 1"),
        (0b11_00_01_00, r"row 1, group 1 has 3, outside 0\.\.2"),
        (0b10_00_01_00, "padding outside the matrix must be 0, 1 are not"),
    ],
)
def test_nm_positions(packed: int, message: str) -> None:
    matrix = NM.from_dense(torch.tensor([[1.0, 1, 0, 1, 1]] * 2), keep=2, of=3)
    assert matrix.positions.tolist() == [[0b01_00_01_00]] * 2
    matrix.validate()
    with pytest.raises(InvalidFileError, match=message):
        damaged(matrix, positions=with_entry(matrix.positions, (1, 0), packed)).validate()


def test_nm_pad_bits() -> None:
    matrix = NM.from_dense(torch.tensor([[1.0, 1, 0]]), keep=2, of=3)
    with pytest.raises(InvalidFileError, match="row 0 has bits set beyond its 4 bits"):
        damaged(matrix, positions=matrix.positions | 0b1_0000).validate()


@pytest.mark.parametrize(("keep", "of"), [(0, 4), (5, 4), (1, 257), (1.0, 4), (True, 4)])
def test_nm_parameters(keep: int, of: int) -> None:
    with pytest.raises(InvalidFileError, match="expected 1 <= keep <= of and 2 <= of <= 256"):
        damaged(sample("nm:2:5"), keep=keep, of=of).validate()


@pytest.mark.parametrize("spec", SPECS)
def test_from_tensors_refuses_wrong_names(spec: str) -> None:
    matrix = sample(spec)
    tensors, params = matrix.tensors(), matrix.params()
    name = matrix.buffer_names[-1]
    without = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(InvalidFileError, match=rf"buffers: expected .*'{name}'"):
        type(matrix).from_tensors(matrix.shape, params, without)
    with pytest.raises(InvalidFileError, match=r"buffers: expected .*, got .*'scales'"):
        type(matrix).from_tensors(matrix.shape, params, {**tensors, "scales": matrix.values})
    with pytest.raises(InvalidFileError, match=r"parameters: expected .*, got .*'group'"):
        type(matrix).from_tensors(matrix.shape, {**params, "group": 1}, tensors)


def test_from_tensors_refuses_another_block() -> None:
    matrix = sample("bsr:2x3")
    with pytest.raises(InvalidFileError, match=r"buffers have \{'rows': 2, 'cols': 3\}"):
        BSR.from_tensors(matrix.shape, {"rows": 3, "cols": 2}, matrix.tensors())
