"""se.ops.linear over every format, and its refusals."""

from __future__ import annotations

import pytest
import torch

import sparse_engine as se
from sparse_engine.backends.cpu_table import has_tiles
from sparse_engine.errors import UsageError
from sparse_engine.formats import BSR, CSR, FORMATS, Bitmask, Format, SellP
from sparse_engine.ops import linear_kernel, pack, reference
from sparse_engine.packings import Strips

PARAMS = {
    "csr": {},
    "bsr": {"rows": 4, "cols": 2},
    "bitmask": {},
    "nm": {"keep": 2, "of": 4},
    "sellp": {},
}


def weight(out: int = 23, inner: int = 37) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    groups = torch.rand(out, -(-inner // 4), 4, generator=generator).argsort(-1) < 2
    return torch.randn(out, inner, generator=generator) * groups.reshape(out, -1)[:, :inner]


@pytest.mark.parametrize("cls", FORMATS, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_format_runs(cls: type[Format], dtype: torch.dtype) -> None:
    fmt = cls.from_dense(weight().to(dtype), **PARAMS[cls.name])
    x, bias, residual = torch.randn(2, 9, 37), torch.randn(23), torch.randn(2, 9, 23)
    y = se.ops.linear(fmt, x, bias, "gelu", residual)
    truth = reference.linear(fmt.to_dense(), x, bias, "gelu", residual)
    error = float((y - truth).abs().max() / truth.abs().max())
    assert error <= (1e-5 if dtype == torch.float32 else 2e-2)


def test_strips_hold_what_they_are_made_from() -> None:
    dense = weight(29, 411)
    for height in (1, 2, 3, 4, 16, 64):
        strips = Strips.from_dense(dense, height=height, block=100)
        strips.validate()
        assert torch.equal(strips.to_dense(), dense)
        again = Strips.from_tensors(strips.shape, strips.params(), strips.tensors())
        assert torch.equal(again.to_dense(), dense)
    assert pack(BSR.from_dense(dense, 32, 2)).height == 32
    kinds = {CSR: "runs", Bitmask: "tiles" if has_tiles() else "bits", SellP: "sellp"}
    for cls, kind in kinds.items():
        assert pack(cls.from_dense(dense)).kind == kind
        assert pack(cls.from_dense(dense), dtype="int8").kind == kind
    for rows in (1, 4):
        assert pack(BSR.from_dense(dense, rows, 4)).kind == "runs"
    blocks = "columns" if has_tiles() else "runs"
    assert pack(BSR.from_dense(dense, 4, 1), dtype="int8").kind == blocks


def test_strips_validation_catches_what_kernels_must_not_read() -> None:
    good = Strips.from_dense(weight(29, 411), height=4, block=100)

    def damaged(name: str, index: int, value: int) -> dict[str, torch.Tensor]:
        tensors = {key: t.clone() for key, t in good.tensors().items()}
        tensors[name] = tensors[name].to(torch.int64)
        tensors[name][index] = value
        tensors[name] = tensors[name].to(good.tensors()[name].dtype)
        return tensors

    padded = {**good.tensors(), "values": good.values.clone()}
    padded["values"][-1, -1] = 1.0
    for tensors in (
        damaged("columns", 0, 100),
        damaged("columns", -1, 11),
        damaged("columns", 1, 0),
        damaged("pointers", 0, 1),
        damaged("pointers", 3, -5),
        damaged("pointers", 3, 10**6),
        damaged("pointers", -1, 10**6),
        {**good.tensors(), "values": good.values[:-1]},
        {**good.tensors(), "values": good.values.double()},
        {**good.tensors(), "pointers": good.pointers[:-1]},
        padded,
    ):
        with pytest.raises(se.errors.InvalidFileError):
            Strips.from_tensors(good.shape, good.params(), tensors)


def test_refusals_are_one_line() -> None:
    fmt, x = CSR.from_dense(weight()), torch.randn(2, 37)
    cases = (
        ((fmt, torch.randn(2, 36)), {}, r"\[\.\.\., 37\]"),
        ((fmt, x.half()), {}, "float16"),
        ((fmt, x, torch.randn(22)), {}, r"\[22\]"),
        ((fmt, x), {"activation": "tanh"}, "gelu_tanh"),
        ((fmt, x), {"residual": torch.randn(2, 22)}, "residual"),
        ((fmt, x), {"residual": torch.randn(2, 23).bfloat16()}, "residual"),
        ((fmt, x.to("meta")), {}, "meta"),
    )
    for args, kwargs, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            se.ops.linear(*args, **kwargs)
        assert "\n" not in str(caught.value)


def test_gradients_are_refused_and_parameters_taken() -> None:
    fmt, x = CSR.from_dense(weight()), torch.randn(2, 37)
    bias = torch.nn.Parameter(torch.randn(23))
    truth = reference.linear(fmt.to_dense(), x, bias)
    torch.testing.assert_close(se.ops.linear(fmt, x, bias).double(), truth, rtol=1e-5, atol=1e-5)
    strided = torch.randn(46)[::2]
    torch.testing.assert_close(
        se.ops.linear(fmt, x, strided).double(),
        reference.linear(fmt.to_dense(), x, strided),
        rtol=1e-5,
        atol=1e-5,
    )
    with pytest.raises(UsageError, match="inference only"):
        se.ops.linear(fmt, x.requires_grad_())


def test_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(CSR.from_dense(weight()))
    monkeypatch.setenv("SPARSE_ENGINE_ISA", "scalar")
    assert linear_kernel(packed, 1) == "spmm_runs_f32_scalar"
    assert linear_kernel(packed, 2) == "spmm_runs_f32_scalar"
    monkeypatch.setenv("SPARSE_ENGINE_ISA", "sse9")
    for call in (
        lambda: linear_kernel(packed, 1),
        lambda: se.ops.linear(packed, torch.ones(1, 37)),
    ):
        with pytest.raises(
            UsageError, match="SPARSE_ENGINE_ISA: unknown ISA 'sse9': use"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
