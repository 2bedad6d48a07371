"""What the GPU kernels read: made on any device, back without loss, refused when damaged."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sparse_engine as se
from sparse_engine.backends import CUDA
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import FormatSpec
from sparse_engine.ops import run_linear
from sparse_engine.packings import Ell, PackedBSR, PackedNM

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
pytestmark = needs_triton

SHAPES = [(1, 1), (16, 16), (47, 61), (130, 300), (257, 1021), (0, 5), (5, 0)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]


def random_weight(out_features: int, in_features: int, density: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(out_features + in_features)
    weight = torch.randn(out_features, in_features, generator=generator)
    weight = weight * (torch.rand(weight.shape, generator=generator) < density)
    weight[1:2] = 0
    return weight


def half_of_four(weight: Tensor) -> Tensor:
    """At most two non-zeros in every group of four."""
    weight = weight.clone()
    weight[:, 2::4] = 0
    weight[:, 1::4] = 0
    return weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trips(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random_weight(*shape)
    for packed, source in (
        (Ell.from_dense(weight, dtype), weight),
        (PackedBSR.from_dense(weight, dtype, rows=16, cols=16), weight),
        (PackedBSR.from_dense(weight, dtype, rows=64, cols=1), weight),
        (PackedNM.from_dense(half_of_four(weight), dtype, keep=2, of=4), half_of_four(weight)),
    ):
        packed.validate()
        dense = packed.to_dense()
        if dtype == torch.int8:
            step = source.abs().amax(1, keepdim=True) / 127 if source.numel() else source
            assert bool(((dense - source).abs() <= 0.51 * step).all())
        else:
            assert torch.equal(dense, source.to(dtype))
        again = type(packed).from_tensors(packed.shape, packed.params(), packed.tensors())
        assert torch.equal(again.to_dense(), dense)


@pytest.mark.parametrize(
    ("spec", "cls"),
    [
        ("csr", Ell),
        ("bitmask", Ell),
        ("sellp", Ell),
        ("bsr:4x1", Ell),
        ("bsr:16x3", Ell),
        ("bsr:16x16", PackedBSR),
        ("bsr:128x1", PackedBSR),
        ("nm:2:4", PackedNM),
        ("nm:3:4", Ell),
        ("nm:2:5", Ell),
    ],
)
def test_what_packs_to_what(spec: str, cls: type) -> None:
    weight = half_of_four(random_weight(32, 40)) if spec.startswith("nm") else random_weight(32, 40)
    weight[:, ::5] = 0 if spec == "nm:2:5" else weight[:, ::5]
    stored = FormatSpec.parse(spec).from_dense(weight)
    packed = CUDA.pack(stored)
    assert type(packed) is cls
    assert CUDA.pack(packed) is packed
    assert torch.equal(packed.to_dense(), stored.to_dense())


def test_memory() -> None:
    """At most 1.05 x values and indices, of elements in 16 bits up to 90 % zeros."""
    generator = torch.Generator().manual_seed(0)
    for sparsity in (0.5, 0.8, 0.9, 0.95):
        weight = torch.randn(4096, 1020, generator=generator)
        weight *= torch.rand(weight.shape, generator=generator) >= sparsity
        packed = Ell.from_dense(weight, torch.bfloat16)
        assert packed.nnz >= 0.96 * packed.stored  # more in larger weights
        if sparsity > 0.9:  # numbers of rows take as much as ever
            continue
        assert packed.nbytes <= 1.05 * 3 * int((weight != 0).sum())
    mask = torch.rand(128, 128, generator=generator) < 0.1
    blocks = mask.repeat_interleave(32, 0).repeat_interleave(32, 1) * 1.0
    packed = PackedBSR.from_dense(blocks, torch.bfloat16, rows=32, cols=32)
    assert packed.nbytes <= 1.05 * (packed.values.nbytes + packed.indices.nbytes)


def test_what_no_dtype_holds() -> None:
    weight = torch.full((16, 16), 1e6)
    with pytest.raises(UsageError, match="float16 holds numbers up to 65504"):
        Ell.from_dense(weight, torch.float16)
    with pytest.raises(UsageError, match="int8 cannot hold"):
        PackedBSR.from_dense(weight / 0, torch.int8, rows=16, cols=16)
    with pytest.raises(UsageError, match="no cuda kernel has weights of float64"):
        Ell.from_dense(weight, torch.float64)
    with pytest.raises(UsageError, match="blocks of 8x16: GPU kernels have 16, 32, 64, 128 rows"):
        PackedBSR.from_dense(weight, rows=8, cols=16)
    with pytest.raises(UsageError, match="3:4: GPU kernels have powers of two"):
        PackedNM.from_dense(weight, keep=3, of=4)
    with pytest.raises(UsageError, match="are not two halves of rows of 16"):
        PackedBSR.from_dense(weight, rows=16, cols=16, gated=True)


def test_joined_and_split() -> None:
    pieces = [PackedBSR.from_dense(random_weight(32 * n, 48), rows=16, cols=16) for n in (1, 2, 3)]
    joined = PackedBSR.join(pieces)
    joined.validate()
    assert torch.equal(joined.to_dense(), torch.cat([piece.to_dense() for piece in pieces]))
    for piece, part in zip(pieces, joined.split(pieces), strict=True):
        part.validate()
        assert torch.equal(part.to_dense(), piece.to_dense())
        assert (
            part.values.untyped_storage().data_ptr() == joined.values.untyped_storage().data_ptr()
        )


def damaged_blocks() -> list[tuple[PackedBSR, str]]:
    good = PackedBSR.from_dense(torch.ones(64, 64), rows=16, cols=16)
    items = torch.tensor([[0, 0, 2, 0], [0, 2, 4, 1], [1, 4, 8, 0], [2, 8, 12, 0], [3, 12, 16, 0]])
    parts = torch.tensor([2, 1, 1, 1]).int()
    cut = replace(good, items=items.int(), parts=parts, most=2)
    cut.validate()
    wrong = items.clone()
    wrong[1, 1] = 1
    return [
        (replace(good, order=good.order[[0, 0, 1, 2]]), "is not every row of blocks once"),
        (replace(good, indices=good.indices + 9), "indices"),
        (replace(good, scales=torch.ones(64)), "scales"),
        (replace(good, values=good.values.double()), "values"),
        (replace(good, most=0), "most is 0"),
        (replace(good, gated=1, order=good.order), "order"),
        (replace(cut, items=wrong.int()), "do not share out"),
        (replace(cut, items=items[:-1].int()), "do not share out"),
        (replace(cut, most=3), "do not share out"),
        (replace(cut, parts=parts[:3]), "parts"),
    ]


def damaged_ell() -> list[tuple[Ell, str]]:
    good = Ell.from_dense(random_weight(200, 600))
    groups, rows, columns = good.groups.clone(), good.rows.int(), good.columns.clone()
    groups[0, 2] += 1
    twice = groups.clone()
    twice[:, 0] = 0
    rows[0, 0] = rows[0, 1]
    full = (columns != 255).nonzero()[0]
    columns[tuple(full)] = columns[full[0] + 1, full[1]]
    far = good.columns.clone()
    far[tuple(full)] = 254
    return [
        (replace(good, groups=groups), "do not hold every slot once"),
        (replace(good, groups=twice), "slot once|every row once"),
        (replace(good, rows=rows.to(torch.uint16)), "does not hold every row once"),
        (replace(good, rows=good.rows.int()), "rows"),
        (replace(good, columns=columns), "stored twice"),
        (replace(good, columns=torch.full_like(good.columns, 255)), "an empty slot is not zero"),
        (replace(good, columns=good.columns[:-1]), "columns"),
        (replace(good, scales=torch.ones(3)), "scales"),
    ]


def damaged_nm() -> list[tuple[PackedNM, str]]:
    good = PackedNM.from_dense(half_of_four(random_weight(8, 30)) + 0, keep=2, of=4)
    same = PackedNM.from_dense(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), keep=2, of=4)
    wide = PackedNM.from_dense(torch.tensor([[1.0, 2.0]]), keep=2, of=8)
    return [
        (replace(good, positions=good.positions[:, :-1]), "positions"),
        (replace(same, positions=torch.zeros_like(same.positions)), "stored twice"),
        (replace(wide, positions=torch.full_like(wide.positions, 255)), "must lie in 0..7"),
        (replace(good, keep=3), "3:4"),
    ]


@pytest.mark.parametrize("make", [damaged_blocks, damaged_ell, damaged_nm])
def test_damage_is_refused(make: object) -> None:
    for packed, message in make():  # type: ignore[operator]
        with pytest.raises(InvalidFileError, match=message):
            packed.validate()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_the_way_out_is_said() -> None:
    for packed in (
        Ell.from_dense(torch.ones(16, 16)),
        PackedBSR.from_dense(torch.ones(16, 16), rows=16, cols=16),
    ):
        assert CUDA.holds(packed)
        with pytest.raises(ValueError, match=r"x is on cpu; Triton needs a GPU"):
            run_linear(packed, torch.ones(1, 16), None, "none", None)
    linear = torch.nn.Linear(16, 16)
    with pytest.raises(UsageError, match="float16 has kernels on GPUs only"):
        se.nn.SparseLinear.from_dense(linear, se.SparseConfig("csr", dtype="float16"))
    layer = se.nn.SparseLinear.from_dense(linear, "csr")
    with pytest.raises(UsageError, match=r"no torch.float16 on cpu: use float32 or bfloat16"):
        layer.half()
