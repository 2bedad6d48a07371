"""Formats: round trips bit for bit, buffers as drawn in the docs, specs, refusals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.formats import (
    BSR,
    CSR,
    FORMATS,
    NM,
    Bitmask,
    Format,
    FormatSpec,
    block_fill,
)
from sparse_engine.formats.bits import pack_numbers, popcounts, unpack_numbers

DTYPES = (torch.float32, torch.bfloat16)
SPECS = (
    "csr",
    "bsr:1x1",
    "bsr:4x1",
    "bsr:3x5",
    "bsr:16x16",
    "bitmask",
    "nm:2:4",
    "nm:1:3",
    "sellp",
)
SHAPES = ((0, 0), (0, 5), (5, 0), (1, 1), (1, 9), (13, 1), (7, 31), (16, 32), (33, 17))


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns, so that NaN equals NaN and -0.0 differs from +0.0."""
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def fit(weight: Tensor, spec: str) -> Tensor:
    """`weight` with elements zeroed until the format can hold it."""
    parsed = FormatSpec.parse(spec)
    params = parsed.params
    if parsed.format is not NM:
        return weight
    keep, of = params["keep"], params["of"]
    out_features, in_features = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -in_features % of))
    groups = padded.view(out_features, padded.shape[1] // of, of).clone()
    rank = (groups != 0).int().cumsum(2)
    groups[rank > keep] = 0
    return groups.view(padded.shape)[:, :in_features].contiguous()


def random_weight(shape: tuple[int, int], density: float, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return (weight * (torch.rand(shape, generator=generator) < density)).to(dtype)


def make(spec: str, weight: Tensor) -> Format:
    return FormatSpec.parse(spec).from_dense(weight)


def assert_round_trip(spec: str, weight: Tensor) -> Format:
    matrix = make(spec, weight)
    matrix.validate()
    dense = matrix.to_dense()
    assert dense.dtype == weight.dtype
    assert dense.is_contiguous()
    expected = torch.where(weight == 0, torch.zeros_like(weight), weight)
    assert torch.equal(bits(dense), bits(expected))
    copy = type(matrix).from_tensors(matrix.shape, matrix.params(), matrix.tensors())
    assert torch.equal(bits(copy.to_dense()), bits(expected))
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("spec", SPECS)
def test_round_trip(spec: str, density: float, dtype: torch.dtype) -> None:
    for seed, shape in enumerate(SHAPES):
        weight = fit(random_weight(shape, density, dtype, seed), spec)
        matrix = assert_round_trip(spec, weight)
        assert matrix.shape == shape
        assert matrix.spec == spec
        assert matrix.dtype == dtype
        assert matrix.nnz == int(weight.count_nonzero())
        assert matrix.nbytes == sum(buffer.nbytes for buffer in matrix.tensors().values())
        elements = shape[0] * shape[1]
        assert matrix.sparsity == (1 - matrix.nnz / elements if elements else 0.0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 24), st.integers(0, 40)),
    density=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
    block=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    of=st.integers(2, 20),
    data=st.data(),
)
def test_round_trip_any_shape(
    shape: tuple[int, int],
    density: float,
    dtype: torch.dtype,
    seed: int,
    block: tuple[int, int],
    of: int,
    data: st.DataObject,
) -> None:
    keep = data.draw(st.integers(1, of))
    weight = random_weight(shape, density, dtype, seed)
    for spec in ("csr", "bitmask", f"bsr:{block[0]}x{block[1]}", f"nm:{keep}:{of}"):
        assert_round_trip(spec, fit(weight, spec))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(patterns=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=24))
def test_any_bit_pattern_survives(patterns: list[int]) -> None:
    """Signalling NaNs, payloads, infinities and subnormals come back bit for bit."""
    words = torch.tensor([patterns], dtype=torch.int32)
    weights = (words.view(torch.float32), words.to(torch.int16).view(torch.bfloat16))
    for weight in weights:
        for spec in ("csr", "bsr:2x3", "bitmask", "nm:4:4"):
            assert_round_trip(spec, weight)


@pytest.mark.parametrize("spec", SPECS)
def test_special_values(spec: str) -> None:
    weight = torch.tensor([[-0.0, 0.0, math.nan, -0.0, 0.0, math.inf, 0.0, -0.0, 0.0]])
    matrix = assert_round_trip(spec, weight)
    assert matrix.nnz == 2
    assert not bool(torch.signbit(matrix.to_dense()[0, [0, 3, 7]]).any())
    assert_round_trip(spec, torch.full((2, 3), -0.0))


def test_noncontiguous_weight_with_graph() -> None:
    weight = torch.nn.Parameter(random_weight((6, 8), 0.4, torch.float32, 0)).t()
    for spec in ("csr", "bsr:4x3", "bitmask", "nm:3:3", "nm:4:4", "nm:6:256"):
        matrix = assert_round_trip(spec, weight)
        assert not any(buffer.requires_grad for buffer in matrix.tensors().values())


def test_csr_buffers_as_drawn() -> None:
    matrix = CSR.from_dense(torch.tensor([[5.0, 0, 0, 1], [0, 0, 0, 0], [0, 2, 7, 3]]))
    assert matrix.values.tolist() == [5, 1, 2, 7, 3]
    assert matrix.indices.tolist() == [0, 3, 1, 2, 3]
    assert matrix.pointers.tolist() == [0, 2, 2, 5]
    assert matrix.indices.dtype == matrix.pointers.dtype == torch.int32
    assert matrix.nbytes == 4 * (5 + 5 + 4)


def test_bsr_buffers_as_drawn() -> None:
    weight = torch.tensor([[5.0, 0, 0, 1], [6, 0, 0, 0], [0, 2, 7, 0], [0, 4, 8, 0]])
    matrix = BSR.from_dense(weight, rows=2, cols=1)
    assert matrix.values.flatten(1).tolist() == [[5, 6], [1, 0], [2, 4], [7, 8]]
    assert matrix.indices.tolist() == [0, 3, 1, 2]
    assert matrix.pointers.tolist() == [0, 2, 4]
    assert (matrix.nnz, matrix.stored) == (7, 8)


def test_bitmask_buffers_as_drawn() -> None:
    weight = torch.tensor([[5.0, 0, 0, 1, 0, 0, 0, 0, 9], [0, 2, 7, 0, 0, 0, 0, 0, 0]])
    matrix = Bitmask.from_dense(weight)
    assert matrix.values.tolist() == [5, 1, 9, 2, 7]
    assert matrix.mask.tolist() == [[0b00001001, 0b1], [0b00000110, 0]]


def test_nm_buffers_as_drawn() -> None:
    weight = torch.tensor([[5.0, 0, 0, 1, 0, 8, 0, 0], [0, 2, 7, 0, 3, 0, 0, 4]])
    matrix = NM.from_dense(weight, keep=2, of=4)
    assert matrix.values.tolist() == [[5, 1, 0, 8], [2, 7, 3, 4]]
    assert matrix.positions.tolist() == [[0b01001100], [0b11001001]]
    assert matrix.unpacked_positions().tolist() == [[[0, 3], [0, 1]], [[1, 2], [0, 3]]]


@pytest.mark.parametrize("width", range(1, 9))
def test_packed_numbers_match_python(width: int) -> None:
    numbers = torch.randint(0, 2**width, (3, 7), generator=torch.Generator().manual_seed(width))
    packed = pack_numbers(numbers.to(torch.uint8), width)
    for row, expected in zip(packed.tolist(), numbers.tolist(), strict=True):
        total = sum(number << (width * i) for i, number in enumerate(expected))
        assert int.from_bytes(bytes(row), "little") == total
    assert torch.equal(unpack_numbers(packed, width, 7).long(), numbers)


def test_popcount_of_every_byte() -> None:
    everything = torch.arange(256).to(torch.uint8)
    assert popcounts(everything[:, None]).tolist() == [i.bit_count() for i in range(256)]


def test_nm_refuses_full_group() -> None:
    weight = torch.zeros(3, 12)
    weight[2, 4:7] = 1
    with pytest.raises(UsageError, match=r"nm:2:4: row 2, group 1 has 3 non-zeros"):
        NM.from_dense(weight)


@pytest.mark.parametrize(
    ("spec", "cls", "params"),
    [
        ("csr", CSR, {}),
        ("bsr:4x1", BSR, {"rows": 4, "cols": 1}),
        ("bsr:128x16", BSR, {"rows": 128, "cols": 16}),
        ("bitmask", Bitmask, {}),
        ("nm:2:4", NM, {"keep": 2, "of": 4}),
    ],
)
def test_spec(spec: str, cls: type[Format], params: dict[str, int]) -> None:
    parsed = FormatSpec.parse(spec)
    assert (parsed.format, parsed.params, str(parsed)) == (cls, params, spec)
    assert parsed == FormatSpec(cls, tuple(params.values()))
    assert hash(parsed) == hash(FormatSpec.parse(spec))
    assert parsed != FormatSpec.parse("bsr:7x7")


@pytest.mark.parametrize(
    "text", ["", "coo", "CSR", "bsr", "bsr:4", "bsr:4x", "bsr:-1x1", "nm:2", "csr:1", "bsr:4x1\n"]
)
def test_spec_lists_what_exists(text: str) -> None:
    with pytest.raises(UsageError, match=r"csr, bsr:ROWSxCOLS, bitmask, nm:KEEP:OF") as caught:
        FormatSpec.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["bsr:0x1", "bsr:4x5000", "nm:5:4", "nm:0:4", "nm:2:300"])
def test_spec_checks_numbers(text: str) -> None:
    with pytest.raises(UsageError, match=r"format .*(must lie in 1..4096|expected 1 <= keep)"):
        FormatSpec.parse(text)


def test_every_format_is_named_once() -> None:
    assert [cls.name for cls in FORMATS] == ["csr", "bsr", "bitmask", "nm", "sellp"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4), "expected 2 dimensions"),
        (torch.zeros(2, 2, 2), "expected 2 dimensions"),
        (torch.zeros(2, 2, dtype=torch.float16), "expected float32 or bfloat16, got float16"),
        (torch.zeros(2, 2, dtype=torch.int64), "got int64"),
        (torch.zeros(2, 2, device="meta"), "meta device"),
        (torch.zeros(2, 2).to_sparse(), "expected a dense tensor"),
        ([[1.0]], "expected a dense tensor, got list"),
        (torch.zeros(1, 1).expand(1, 2**31), "exceeds int32"),
    ],
)
def test_from_dense_refuses(spec: str, weight: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(spec, weight)


@pytest.mark.parametrize("sides", [(0, 1), (1, -1), (4097, 1), (2.0, 1), (True, 1)])
def test_bsr_refuses_block(sides: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="block sides must lie in"):
        BSR.from_dense(torch.ones(4, 4), *sides)
    with pytest.raises(UsageError, match="block sides must lie in"):
        block_fill(torch.ones(4, 4), *sides)


@pytest.mark.parametrize("spec", SPECS)
def test_frozen_compared_by_identity_and_short(spec: str) -> None:
    weight = fit(random_weight((6, 9), 0.3, torch.bfloat16, 1), spec)
    first, second = make(spec, weight), make(spec, weight)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.shape = (1, 1)  # type: ignore[misc]
    assert first != second
    assert len({first, second}) == 2
    assert "\n" not in repr(first)
    assert spec in repr(first)
    moved = first.to("cpu")
    assert type(moved) is type(first)
    assert torch.equal(moved.to_dense(), weight)


def test_block_fill() -> None:
    weight = torch.zeros(9, 10)
    weight[0:4, 3] = 1
    weight[8, 7] = 1  # the last block row has one row inside the matrix
    assert block_fill(weight, 4, 1) == 1.0
    assert block_fill(weight, 1, 1) == 1.0
    assert block_fill(weight, 4, 2) == 5 / (8 + 2)
    assert block_fill(weight, 16, 16) == 5 / 90
    assert block_fill(torch.zeros(3, 3), 4, 1) == 1.0
    assert block_fill(torch.zeros(0, 3), 4, 1) == 1.0
    random = random_weight((64, 64), 0.5, torch.float32, 0)
    assert 0.4 < block_fill(random, 4, 4) < 0.6
