"""Conversions between formats and packings: bit for bit, and without a dense matrix."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparse_engine.backends import CPU, CUDA
from sparse_engine.formats import Format, FormatSpec
from sparse_engine.formats.dense import Dense
from sparse_engine.formats.rows import RowSource
from sparse_engine.io.tensorfile import tensor_bytes
from sparse_engine.packings import (
    Bits,
    Ell,
    Groups,
    PackedBSR,
    PackedNM,
    PackedSellP,
    Packing,
    Runs,
    Strips,
)

SPECS = ("csr", "bsr:1x1", "bsr:4x1", "bsr:3x5", "bsr:16x16", "bitmask", "nm:2:4", "sellp")
TRITON = importlib.util.find_spec("triton") is not None
Pack = Callable[[RowSource], Packing]
PACKS: dict[str, Pack] = {
    "runs": lambda w: Runs.from_format(w, chunk=10, block=24),
    "strips": lambda w: Strips.from_format(w, height=16, block=40),
    "low strips": lambda w: Strips.from_format(w, height=3, block=64),
    "sellp": PackedSellP.from_format,
    "bits": Bits.from_format,
    "groups": lambda w: Groups.from_format(w, keep=2, of=4),
    "wide groups": lambda w: Groups.from_format(w, keep=4, of=8),
    "ell": Ell.from_format,
    "packed bsr": lambda w: PackedBSR.from_format(w, rows=16, cols=8),
    "packed nm": lambda w: PackedNM.from_format(w, keep=2, of=4),
}
if not TRITON:  # whose kernels plan the work
    del PACKS["packed bsr"]
SHAPES = ((0, 5), (5, 0), (1, 1), (37, 71), (64, 300))


def odd_weight(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """At most two non-zeros in four columns, among them NaNs with a payload and infinities."""
    generator = torch.Generator().manual_seed(shape[0] + shape[1])
    bits = torch.randint(-(2**31), 2**31 - 1, shape, generator=generator).int()
    bits[::3] = bits[::3] | 0x7F800001  # signalling and quiet NaNs
    order = torch.rand(shape[0], -(-shape[1] // 4), 4, generator=generator).argsort(-1)
    kept = (order < 2).flatten(1)[:, : shape[1]]
    kept &= torch.rand(shape, generator=generator) < 0.7
    bits[~kept] = 0
    weight = bits.view(torch.float32)
    if dtype == torch.bfloat16:
        weight = (bits >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(weight == 0, torch.zeros_like(weight), weight)


@pytest.fixture
def no_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a dense matrix was made")

    monkeypatch.setattr(RowSource, "to_dense", refuse)
    monkeypatch.setattr(Packing, "to_dense", refuse)
    monkeypatch.setattr(Dense, "of", refuse)


def same(one: Format, other: Format) -> bool:
    """Whether the buffers are equal bit for bit."""
    pairs = zip(one.tensors().items(), other.tensors().items(), strict=True)
    return type(one) is type(other) and all(
        name == again and a.shape == b.shape and tensor_bytes(a) == tensor_bytes(b)
        for (name, a), (again, b) in pairs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("text", SPECS)
def test_there_and_back(
    text: str, name: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    spec, pack = FormatSpec.parse(text), PACKS[name]
    formats = [spec.from_dense(odd_weight(shape, dtype)) for shape in SHAPES]
    request.getfixturevalue("no_dense")
    for stored in formats:
        packed = pack(stored)
        packed.validate()
        assert same(spec.convert(packed), stored)


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("other", SPECS)
def test_between_formats(text: str, other: str, request: pytest.FixtureRequest) -> None:
    spec, target = FormatSpec.parse(text), FormatSpec.parse(other)
    weights = [odd_weight(shape, torch.float32) for shape in SHAPES]
    pairs = [(spec.from_dense(weight), target.from_dense(weight)) for weight in weights]
    request.getfixturevalue("no_dense")
    for stored, wanted in pairs:
        assert same(target.convert(stored), wanted)
        assert spec.convert(stored) is stored


@pytest.mark.parametrize("first", PACKS)
@pytest.mark.parametrize("second", PACKS)
def test_between_packings(first: str, second: str, request: pytest.FixtureRequest) -> None:
    weight = FormatSpec.parse("csr").from_dense(odd_weight((37, 71), torch.float32))
    request.getfixturevalue("no_dense")
    assert same(PACKS[second](PACKS[first](weight)), PACKS[second](weight))


@pytest.mark.parametrize("cls", [c for c in CPU.packings if c.value_dtypes == (torch.int8,)])  # type: ignore[attr-defined]
@pytest.mark.parametrize("text", ["csr", "bsr:16x1", "bitmask", "nm:2:4", "sellp"])
def test_int8_keeps_integers_and_scales(cls: type[Packing], text: str) -> None:
    weight = odd_weight((37, 71), torch.float32)
    finite = weight.isfinite() & (weight != 0)
    weight = torch.where(finite, weight.sign() * (1 + weight.abs().log10().abs()), 0.0)
    packed = cls.from_format(FormatSpec.parse(text).from_dense(weight))
    packed.validate()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((packed.to_dense() - weight).abs() <= 0.5001 * step).all())
    others = [c for c in (*CPU.packings, *CUDA.packings) if torch.int8 in c.value_dtypes]  # type: ignore[attr-defined]
    for other in others:
        if other is PackedBSR:
            continue
        kwargs = {"keep": 2, "of": 4} if other is PackedNM else {}
        again = other.from_format(packed, **kwargs)
        again.validate()
        assert torch.equal(again.to_dense(), packed.to_dense())
        assert torch.equal(again.tensors()["scales"], packed.tensors()["scales"])
