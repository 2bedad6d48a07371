"""Every row of the kernel tables that this machine supports, against float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_engine import _core, ops
from sparse_engine.backends.cpu_ops import as_array, native_weight
from sparse_engine.formats import Format
from sparse_engine.ops import reference
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

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
ROWS = [k for k in _core.kernels() if k["supported"]]
# [out, in]: ones, primes, around vector widths, around a K-block, several K-blocks.
SHAPES = [(1, 1), (7, 13), (16, 16), (17, 31), (33, 193), (128, 192), (61, 500), (257, 1031)]
HEIGHTS = (1, 2, 3, 4, 8, 16, 21)
SPARSITIES = (0.9, 0.5, 0.0, 1.0)
# Packings that multiply stored zeros with activations: NaN may reach rows without the column.
PADDED = (Columns, PackedSellP, SellP8, Bits8, QuadRuns, Groups, Groups8, PackedTiles)
PACKINGS = (
    *(Runs, HalfRuns, QuadRuns, PackedSellP, SellP8, Bits, Bits8),
    *(Groups, Groups8, Strips, Columns, Columns8, PackedTiles, PackedTiles8),
)
# int8 kernels that quantise activations.
QUANTISING = (QuadRuns, Bits8, Columns8, PackedTiles8)
KINDS = ("1:2", "2:4", "1:4", "4:8", "2:8", "8:16", "4:16")


def sparse_weight(out: int, inner: int, sparsity: float, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(out * 1009 + inner)
    weight = torch.randn(out, inner, generator=generator)
    weight[torch.rand(out, inner, generator=generator) < sparsity] = 0
    weight[out // 2] = 0  # an empty row
    return weight.to(dtype)


def thinned(weight: Tensor, keep: int, of: int) -> Tensor:
    """`weight` without the non-zeros past `keep` in a group of `of` columns."""
    inner = weight.shape[1]
    groups = torch.nn.functional.pad(weight, (0, -inner % of)).view(len(weight), -1, of)
    kept = (groups != 0).cumsum(2) <= keep
    return (groups * kept).view(len(weight), -1)[:, :inner].contiguous()


def packers(kernel: dict[str, str]) -> list[Callable[[Tensor], Format]]:
    """Ways to pack a weight for a kernel: default sizes, and small ones with many boundaries."""
    int8 = kernel["dtype"] == "int8"
    if kernel["packing"] in ("runs", "half_runs"):
        cls = HalfRuns if kernel["packing"] == "half_runs" else QuadRuns if int8 else Runs
        sizes = ((None, None), (5, 3), (64, 256), (16, 16))
        return [lambda w, c=c, b=b: cls.from_dense(w, chunk=c, block=b) for c, b in sizes]
    if kernel["packing"] == "columns":
        cls = Columns8 if int8 else Columns
        return [lambda w, h=h: cls.from_dense(w, height=h) for h in (16, 32)]
    if kernel["packing"] == "strips":
        return [lambda w, h=h: Strips.from_dense(w, height=h) for h in HEIGHTS]
    if kernel["packing"] == "groups":
        groups = Groups8 if int8 else Groups
        pairs = [tuple(map(int, kind.split(":"))) for kind in KINDS]
        return [
            lambda w, k=k, o=o: groups.from_dense(thinned(w, k, o), keep=k, of=o) for k, o in pairs
        ]
    kinds = {
        "sellp": (PackedSellP, SellP8),
        "bits": (Bits, Bits8),
        "tiles": (PackedTiles, PackedTiles8),
    }
    cls = kinds[kernel["packing"]][int8]
    return [cls.from_dense]


def dtype_of(cls: type[Format]) -> torch.dtype:
    """Of weights that a packing can be made from."""
    dtype = cls.value_dtypes[0]
    return torch.float32 if dtype == torch.int8 else dtype


def run(packed: Format, x: Tensor, isa: str, **kwargs: object) -> Tensor:
    """The output of the kernel; elements that it does not write are NaN."""
    y = torch.full((x.shape[0], packed.shape[0]), float("nan"), dtype=x.dtype)
    residual = kwargs.pop("residual", None)
    bias = kwargs.pop("bias", None)
    handle = native_weight(
        packed.kind, list(packed.tensors().values()), list(packed.params().values()), packed.shape
    )
    handle.linear(
        as_array(x),
        as_array(y),
        None if bias is None else bias.numpy(),
        None if residual is None else as_array(residual),
        _core.ACTIVATIONS[kwargs.pop("activation", "none")],
        isa,
    )
    return y


def quantised_tokens(x: Tensor) -> Tensor:
    """x as int8 kernels quantise it, in float64: symmetric, scale max |token| / 127."""
    x = x.float()
    scale = x.abs().amax(1, keepdim=True) / 127 if x.shape[1] else x.new_ones(len(x), 1)
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return (x * inverse).round().double() * scale.double()


def truth_of(packed: Format, x: Tensor, *args: object) -> Tensor:
    read = quantised_tokens(x) if isinstance(packed, QUANTISING) else x
    return reference.linear(packed.to_dense(), read, *args)


def tolerance(kernel: dict[str, str], x_dtype: torch.dtype = torch.float32) -> float:
    """Sums are float32; only kernels that multiply bf16 by bf16 round the activations."""
    rounds = kernel["name"] == "spmm_strips_bf16_avx512_bf16" or x_dtype == torch.bfloat16
    rounds = rounds or kernel["name"].startswith("spmm_tiles_bf16")
    rounds = rounds or kernel["name"] == "spmm_columns_bf16_avx512_amx"
    if kernel["name"] == "spmm_half_runs_bf16_avx512_fp16" and not rounds:
        return 4e-3  # rounding activations to bfloat16 costs 2e-3 of the largest
    return 2e-2 if rounds else 1e-5


def relative_error(y: Tensor, truth: Tensor) -> float:
    """|y - truth| / |truth| in the maximum norm."""
    assert y.shape == truth.shape
    assert torch.isfinite(y).all()
    worst, scale = float((y.double() - truth).abs().max()), float(truth.abs().max())
    return worst / scale if scale else worst


def tokens_of(kernel: dict[str, str]) -> tuple[int, ...]:
    """Few tokens for kernels that are only used for few; other kernels get any number."""
    if kernel["packing"] == "strips":
        return (*range(1, 9),) if kernel["op"] == "spmv" else (9, 16, 17, 33, 64, 65, 131)
    if kernel["packing"] == "tiles":
        return (1, 2, 3, 4) if kernel["op"] == "spmv" else (5, 16, 17, 32, 33, 65, 131)
    return (1, 2, 3, 4, 7, 9) if kernel["op"] == "spmv" else (1, 5, 16, 17, 33, 64, 65, 131)


def cases(kernel: dict[str, str]) -> Iterator[tuple[Callable[[Tensor], Format], float, int]]:
    ways = zip(packers(kernel), itertools.cycle(SPARSITIES))
    if kernel["packing"] != "strips":
        ways = itertools.product(packers(kernel), SPARSITIES)
    for (packer, sparsity), tokens in itertools.product(ways, tokens_of(kernel)):
        yield packer, sparsity, tokens


def test_tables_cover_every_isa_and_dtype() -> None:
    rows = {(k["packing"], k["dtype"], k["isa"]) for k in _core.kernels()}
    for packing, dtype in itertools.product(("runs", "sellp", "bits", "groups", "tiles"), DTYPES):
        assert (packing, dtype, "scalar") in rows
    for dtype in ("float32", "bfloat16"):
        assert ("strips", dtype, "scalar") in rows
    assert ("half_runs", "bfloat16", "scalar") in rows
    for dtype in ("bfloat16", "int8"):
        assert ("columns", dtype, "scalar") in rows
    assert len({k["name"] for k in _core.kernels()}) == len(_core.kernels())
    assert {k["isa"] for k in ROWS} >= {"scalar"}


@pytest.mark.parametrize("kernel", ROWS, ids=lambda k: k["name"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_matches_float64(kernel: dict[str, str], shape: tuple[int, int]) -> None:
    dtype, isa = DTYPES[kernel["dtype"]], kernel["isa"]
    packed: dict[tuple[object, float], Format] = {}
    for packer, sparsity, tokens in cases(kernel):
        key = packer, sparsity
        if key not in packed:
            packed[key] = packer(sparse_weight(*shape, sparsity, dtype))
        weight = packed[key]
        x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(tokens))
        found = _core.linear_kernel(kernel["packing"], kernel["dtype"], tokens, isa)
        assert found == kernel["name"]
        error = relative_error(run(weight, x, isa), truth_of(weight, x))
        assert error <= tolerance(kernel), (weight, sparsity, tokens, error)


ON_PANELS = ("runs", "half_runs", "strips", "columns")
PANELS = [k for k in ROWS if k["op"] == "spmm" and k["packing"] in ON_PANELS]


@pytest.mark.parametrize("kernel", PANELS, ids=lambda k: k["name"])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_on_panels_matches_float64(kernel: dict[str, str], width: int) -> None:
    isa = kernel["isa"]
    for packer, sparsity in itertools.product(packers(kernel), SPARSITIES):
        packed = packer(sparse_weight(61, 197, sparsity, DTYPES[kernel["dtype"]]))
        handle = ops.weight_handle(packed)
        if handle.panel_width(width, isa) != width:
            wide = np.zeros((1, 197, width), "f4"), np.zeros((1, 61, width), "f4")
            with pytest.raises(ValueError, match="width"):
                handle.linear_on_panels(*wide, isa=isa)
            continue
        generator = torch.Generator().manual_seed(width)
        x, bias = (torch.randn(n, generator=generator) for n in ((3 * width, 197), (61,)))
        panels = x.view(3, width, 197).transpose(1, 2).contiguous()
        y = torch.full((3, 61, width), float("nan"))
        handle.linear_on_panels(
            panels.numpy(), y.numpy(), bias.numpy(), _core.ACTIVATIONS["relu"], isa
        )
        rows = y.transpose(1, 2).flatten(0, 1)
        assert relative_error(rows, truth_of(packed, x, bias, "relu", None)) <= tolerance(kernel)


@pytest.mark.parametrize("kernel", ROWS, ids=lambda k: k["name"])
@pytest.mark.parametrize("activation", list(_core.ACTIVATIONS))
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_epilogue_matches_float64(
    kernel: dict[str, str], activation: str, x_dtype: torch.dtype
) -> None:
    packed = packers(kernel)[1 % len(packers(kernel))](
        sparse_weight(61, 67, 0.7, DTYPES[kernel["dtype"]])
    )
    for tokens in tokens_of(kernel):
        x = torch.randn(tokens, 67).to(x_dtype)
        bias, residual = torch.randn(61), torch.randn(tokens, 61).to(x_dtype)
        y = run(packed, x, kernel["isa"], bias=bias, residual=residual, activation=activation)
        truth = truth_of(packed, x, bias, activation, residual)
        assert relative_error(y, truth) <= tolerance(kernel, x_dtype)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("isa", sorted({k["isa"] for k in ROWS}))
def test_activation_over_its_whole_range(activation: str, isa: str) -> None:
    x = torch.cat(
        [torch.linspace(-30, 30, 2003), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88, -88])]
    )
    identity = Runs.from_dense(torch.eye(1))
    y = run(identity, x[:, None].contiguous(), isa, activation=activation)
    truth = reference.linear(torch.eye(1), x[:, None], activation=activation)
    assert float((y.double() - truth).abs().max()) <= 3e-6


@pytest.mark.parametrize("kernel", ROWS, ids=lambda k: k["name"])
def test_nan_and_inf_go_where_the_pattern_says(kernel: dict[str, str]) -> None:
    weight = torch.zeros(5, 40, dtype=DTYPES[kernel["dtype"]])
    weight[0, 3], weight[1, 7], weight[2, 3], weight[2, 20] = 1.0, 2.0, -1.0, 1.0
    packed = packers(kernel)[0](weight)
    exact = not isinstance(packed, PADDED) and not (
        isinstance(packed, Bits) and kernel["name"].endswith("avx512_vbmi2")
    )
    for tokens in tokens_of(kernel):
        x = torch.ones(tokens, 40)
        x[0, 3], x[0, 11] = float("inf"), float("nan")  # no row stores column 11
        y = run(packed, x, kernel["isa"])
        if exact:
            assert y[0].tolist() == [float("inf"), 2.0, float("-inf"), 0.0, 0.0]
        else:  # it may reach more rows, but not fewer
            assert not y[0, [0, 2]].isfinite().any()
        expected = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0])
        torch.testing.assert_close(y[1:], expected.expand(tokens - 1, 5), rtol=1e-5, atol=1e-5)
        activated = run(packed, x * float("nan"), kernel["isa"], activation="relu")
        assert activated[:, :3].isnan().all()


@pytest.mark.parametrize("cls", QUANTISING)
@pytest.mark.parametrize("isa", sorted({k["isa"] for k in ROWS}))
def test_int8_never_saturates(cls: type[Format], isa: str) -> None:
    """All magnitudes are maximal: 16-bit intermediate sums would overflow."""
    signs = torch.where(torch.rand(16, 512) > 0.5, 1.0, -1.0)
    signs[0], signs[1] = 1.0, -1.0
    for x in (torch.ones(17, 512), -torch.ones(17, 512), signs[:1].expand(17, 512).contiguous()):
        packed = cls.from_dense(signs)
        assert relative_error(run(packed, x, isa), truth_of(packed, x)) <= 1e-6


@pytest.mark.parametrize("cls", [Runs, QuadRuns, PackedSellP, Bits, PackedTiles, PackedTiles8])
def test_result_does_not_depend_on_threads(cls: type[Format]) -> None:
    packed = cls.from_dense(sparse_weight(301, 1411, 0.8, torch.float32))
    x = torch.randn(150, 1411)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(packed, x, _core.active_isa()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("cls", PACKINGS)
def test_strided_rows_and_empty_sizes(cls: type[Format]) -> None:
    isa = _core.active_isa()
    dtype = dtype_of(cls)
    packed = cls.from_dense(thinned(sparse_weight(9, 20, 0.5, dtype), 2, 4))
    wide = torch.randn(6, 50)
    y = run(packed, wide[:, 10:30], isa)
    bound = 2e-2 if cls in (Columns, HalfRuns) else 1e-5  # round activations
    assert relative_error(y, truth_of(packed, wide[:, 10:30])) < bound
    assert run(packed, torch.randn(0, 20), isa).shape == (0, 9)
    empty = cls.from_dense(torch.zeros(4, 0, dtype=dtype))
    assert (run(empty, torch.zeros(3, 0), isa, bias=torch.ones(4)) == 1).all()
    none = cls.from_dense(torch.zeros(0, 5, dtype=dtype))
    assert run(none, torch.zeros(3, 5), isa).shape == (3, 0)


@pytest.mark.parametrize("cls", PACKINGS)
def test_library_refuses_what_does_not_fit(cls: type[Format]) -> None:
    packed = cls.from_dense(torch.eye(4).to(dtype_of(cls)))
    buffers = [as_array(t) for t in packed.tensors().values()]
    params = list(packed.params().values())
    x, y = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)

    def call(x=x, buffers=buffers, params=params, y=y, kind=packed.kind, **rest) -> None:  # type: ignore[no-untyped-def]
        _core.Weight(kind, buffers, params, 4, 4).linear(x, y, **rest)

    call()
    wrong = [
        dict(x=np.zeros((3, 4), np.float32)),
        dict(x=np.zeros((2, 4))),
        dict(y=np.zeros((2, 50), np.float32)),
        dict(params=[*params, 1]),
        dict(params=[0] * len(params)) if params else dict(kind="runs"),
        dict(activation=9),
        dict(isa="avx9"),
        dict(bias=np.zeros(3, np.float32)),
        dict(residual=np.zeros((2, 3), np.float32)),
        dict(buffers=buffers[:-1]),
        dict(buffers=[*buffers, buffers[0]]),
        dict(kind="no such packing"),
    ]
    for i, buffer in enumerate(buffers):
        changed = [buffer.astype(np.float64), buffer[:-1], buffer.repeat(2, 0)[::2][:-1]]
        wrong += [dict(buffers=[*buffers[:i], other, *buffers[i + 1 :]]) for other in changed]
    for bad in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            call(**bad)
