"""Packings: back without loss, and damaged buffers are refused or harmless."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recurrent_cases import ISAS
from torch import Tensor

import sparse_engine as se
from sparse_engine import _core
from sparse_engine.backends import CPU, META
from sparse_engine.backends.cpu_table import has_tiles
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import BSR, CSR, NM, Bitmask, Format, FormatSpec
from sparse_engine.ops import pack, reference, run_linear
from sparse_engine.packings import (
    Bits,
    Bits8,
    Columns,
    Columns8,
    Groups,
    Groups8,
    HalfRuns,
    PackedSellP,
    PackedTiles,
    PackedTiles8,
    QuadRuns,
    Runs,
    SellP8,
    Strips,
)
from sparse_engine.packings.values import quantise

INT8 = (QuadRuns, SellP8, Bits8, Groups8, Columns8, PackedTiles8)
BFLOAT16_ONLY = (Columns, HalfRuns)
ROUNDING = (QuadRuns, Bits8, Columns8, PackedTiles8, *BFLOAT16_ONLY)
"""Packings whose kernels round activations."""


def half_empty(out: int = 37, inner: int = 71, dtype: torch.dtype = torch.float32) -> Tensor:
    """At most two non-zeros in every four columns, some groups with fewer."""
    generator = torch.Generator().manual_seed(out * inner)
    order = torch.rand(out, -(-inner // 4), 4, generator=generator).argsort(-1)
    keep = (order < 2).flatten(1)[:, :inner]
    keep &= torch.rand(out, inner, generator=generator) < 0.8
    return (torch.randn(out, inner, generator=generator) * keep).to(dtype)


def make(cls: type[Format], weight: Tensor) -> Format:
    if cls in BFLOAT16_ONLY:
        weight = weight.bfloat16()
    if cls in (Runs, HalfRuns, QuadRuns):
        return cls.from_dense(weight, chunk=16, block=8)  # several chunks and K-blocks
    return cls.from_dense(weight)


@pytest.mark.parametrize("cls", CPU.packings, ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (16, 64), (37, 71), (257, 300)])
def test_back_without_loss(cls: type[Format], shape: tuple[int, int]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        if cls in BFLOAT16_ONLY and dtype == torch.float32:
            continue
        weight = half_empty(*shape, dtype=dtype)
        packed = make(cls, weight)
        packed.validate()
        dense = packed.to_dense()
        if cls in INT8:
            row = torch.arange(shape[0])[:, None].expand(shape).reshape(-1)
            integers, scales = quantise(weight.reshape(-1), row, shape[0])
            assert torch.equal(dense, integers.view(shape).float() * scales[:, None])
            assert dense.dtype == torch.float32
        else:
            assert torch.equal(dense, weight)
            assert dense.dtype == dtype
        again = cls.from_tensors(packed.shape, packed.params(), packed.tensors())
        assert torch.equal(again.to_dense(), dense)


@pytest.mark.parametrize("cls", BFLOAT16_ONLY, ids=lambda c: c.name)
def test_packings_of_bfloat16_refuse_float32(cls: type[Format]) -> None:
    with pytest.raises(UsageError, match="no cpu kernel has weights of float32"):
        cls.from_dense(half_empty())


def test_int8_error_is_half_a_step() -> None:
    weight = half_empty()
    for cls in INT8:
        step = weight.abs().amax(1, keepdim=True) / 127
        assert bool(((make(cls, weight).to_dense() - weight).abs() <= 0.5001 * step).all())
    for bad in (float("nan"), float("inf")):
        weight[3, 5] = bad
        with pytest.raises(UsageError, match="int8"):
            QuadRuns.from_dense(weight)


def test_runs_keep_the_bits_of_odd_numbers() -> None:
    bits = torch.tensor([[0x7FC12345, 0x7F800001, 1, 0x7F800000]], dtype=torch.int32)
    weight = bits.view(torch.float32)
    for cls in (Runs, PackedSellP, Bits, Strips):
        assert torch.equal(cls.from_dense(weight).to_dense().view(torch.int32), bits), cls


def test_what_packs_to_what() -> None:
    weight = half_empty(32, 64)
    blocks8 = "columns8" if has_tiles() else "quad_runs"
    expected = {
        "csr": ("runs", "quad_runs"),
        "bsr:4x1": ("runs", blocks8),
        "bsr:2x4": ("runs", "quad_runs"),
        "bsr:16x1": ("strips", blocks8),  # in bfloat16 see below
        "bitmask": ("tiles", "tiles8") if has_tiles() else ("bits", "bits8"),
        "bsr:16x32": ("tiles" if has_tiles() else "strips", blocks8),
        "sellp": ("sellp", "sellp8"),
        "nm:2:4": ("groups", "groups8"),
        "nm:3:4": ("runs", "quad_runs"),
    }
    for spec, names in expected.items():
        fmt = FormatSpec.parse(spec).from_dense(weight)
        assert (pack(fmt).name, pack(fmt, dtype="int8").name) == names
    half = BSR.from_dense(weight.bfloat16(), 16, 1)
    assert pack(half).name == ("columns" if has_tiles() else "strips")
    assert pack(half, tokens=(1,)).name == "strips"
    halves = "half_runs" if "fp16" in _core.capabilities() else "runs"
    assert pack(CSR.from_dense(weight.bfloat16())).name == halves
    assert META.pack(CSR.from_dense(weight)).name == "csr"
    with pytest.raises(UsageError, match="float16 has kernels on GPUs only"):
        pack(CSR.from_dense(weight), dtype="float16")
    assert isinstance(pack(BSR.from_dense(weight, 16, 1)), Strips)
    assert isinstance(pack(Bitmask.from_dense(weight)), PackedTiles if has_tiles() else Bits)
    assert isinstance(pack(NM.from_dense(weight)), Groups)


def test_too_wide_for_sellp() -> None:
    with pytest.raises(UsageError, match="65536"):
        PackedSellP.from_dense(torch.zeros(1, 65537))
    edge = torch.zeros(2, 65536)
    edge[1, 65535] = 3.0
    packed = PackedSellP.from_dense(edge)
    packed.validate()
    y = run_linear(packed, torch.ones(1, 65536), None, "none", None)
    assert y.tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("cls", CPU.packings, ids=lambda c: c.name)
def test_damage_is_refused_or_harmless(cls: type[Format]) -> None:
    """Whatever passes validation is a matrix, and the kernels compute what that matrix says."""
    good = make(cls, half_empty())
    generator = torch.Generator().manual_seed(7)

    def number(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    x = torch.randn(3, 71, generator=generator)
    floats = ("values", "scales", "powers")
    structural = [name for name in cls.buffer_names if name not in floats]
    refused = 0
    for _ in range(300):
        tensors = {name: t.clone() for name, t in good.tensors().items()}
        name = structural[number(len(structural))]
        flat = tensors[name].view(-1)
        size, kind = len(flat), number(4)
        wide = flat.to(torch.int64)
        if kind == 0:  # another value nearby
            wide[number(size)] += number(5) - 2
        elif kind == 1:  # an extreme one
            info = torch.iinfo(flat.dtype)
            wide[number(size)] = (min(info.max, 2**63 - 1), info.min, 0)[number(3)]
        elif kind == 2:  # two change places
            i, j = number(size), number(size)
            wide[[i, j]] = wide[[j, i]]
        else:  # one too few
            wide = wide[:-1]
        changed = wide.to(flat.dtype)
        same = kind != 3
        tensors[name] = changed.view(tensors[name].shape) if same else changed
        try:
            packed = cls.from_tensors(good.shape, good.params(), tensors)
        except InvalidFileError:
            refused += 1
            continue
        y = run_linear(packed, x, None, "none", None).double()
        truth = reference.linear(packed.to_dense(), x)
        bound = 2e-2 if cls in ROUNDING else 1e-5
        assert float((y - truth).abs().max()) <= bound * float(truth.abs().max()), name
    assert refused >= 150


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", ["bsr:4x4", "bsr:8x1", "bsr:4x1", "bsr:2x4"])
def test_low_blocks_that_meet_a_few_tokens(
    spec: str, dtype: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows lie in the lanes; the layer stays what it is by name, in copies, state dicts and
    packages.
    """
    monkeypatch.setenv("SPARSE_ENGINE_ISA", isa)
    torch.manual_seed(0)
    linear = torch.nn.Linear(37, 51).requires_grad_(False)
    linear.weight[torch.rand(51, 37) < 0.8] = 0
    linear.weight[8:24] = 0
    layers = {
        tokens: se.nn.SparseLinear.from_dense(linear, se.SparseConfig(spec, dtype, tokens))
        for tokens in ((1,), (2, 4), (1, 5), (1, 128))
    }
    assert [type(layer.packed) is PackedSellP for layer in layers.values()] == [
        True,
        True,
        False,
        False,
    ]
    few, many = layers[(1,)], layers[(1, 128)]
    assert few.format == many.format == spec
    assert torch.equal(few.to_format().values, many.to_format().values)
    empty = se.nn.SparseLinear(37, 51)
    empty.load_state_dict(few.state_dict())
    assert type(empty.packed) is PackedSellP
    se.save(torch.nn.Sequential(few), tmp_path / "package")
    loaded = se.load(tmp_path / "package", model=torch.nn.Sequential(torch.nn.Linear(37, 51)))
    assert type(loaded[0].packed) is PackedSellP
    for tokens in (1, 2, 3, 4, 9):
        x = torch.randn(tokens, 37)
        truth = x.double() @ few.packed.to_dense().double().T + linear.bias.double()
        for layer in (few, empty, loaded):
            error = float((layer(x).double() - truth).abs().max())
            rounds = "bf16" in _core.capabilities(isa) and dtype == "bfloat16"
            assert error < (3e-2 if rounds else 1e-5)
    int8 = se.nn.SparseLinear.from_dense(linear, se.SparseConfig(spec, "int8", (1,)))
    assert int8.packed.kind == "runs"


@pytest.mark.parametrize("cls", [c for c in CPU.packings if "scales" in c.buffer_names])
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_scales_are_numbers_from_zero_on(cls: type[Format], value: float) -> None:
    good = make(cls, half_empty())
    tensors = good.tensors() | {"scales": good.tensors()["scales"].clone()}
    tensors["scales"][1] = value
    told = "must not be negative" if value < 0 else "must be finite"
    with pytest.raises(InvalidFileError, match=told):
        cls.from_tensors(good.shape, good.params(), tensors)
