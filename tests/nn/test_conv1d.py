"""The native convolution over time against float64, on every ISA that this machine has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_engine as se
from sparse_engine import _core, ops
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format
from sparse_engine.nn import SparseConv1d
from sparse_engine.ops.reference import ACTIVATIONS
from sparse_engine.packings import QuadRuns, Runs, Strips

KERNELS = [k for k in _core.kernels() if k["supported"] and k["op"] == "spmm"]
# batch, channels in and out, length, kernel, options: single steps, a kernel longer than the
# sequence, sequences that share panels, fill them and take several, panels of every width, several
# passes.
CASES: list[tuple[int, int, int, int, int, dict[str, int]]] = [
    (1, 1, 1, 1, 1, {}),
    (1, 3, 5, 1, 7, {"padding": 3}),
    (1, 7, 13, 30, 5, {"padding": 2}),
    (2, 13, 7, 17, 3, {}),
    (3, 5, 11, 64, 4, {"padding": 3}),
    (3, 2, 3, 65, 2, {"stride": 2}),
    (5, 11, 17, 31, 5, {"padding": 8, "dilation": 4}),
    (8, 31, 33, 30, 5, {"padding": 2}),
    (9, 3, 19, 16, 16, {}),
    (33, 7, 5, 4, 3, {"padding": 1, "stride": 3, "dilation": 2}),
    (33, 5, 2, 1, 2, {"padding": 1}),
    (2, 3, 37, 700, 9, {"padding": 4}),
    (0, 3, 5, 9, 3, {}),
    (2, 3, 0, 9, 3, {}),
]


def packed_for(kernel: dict[str, Any], weight: Tensor) -> list[Format]:
    """Packings of `weight` that the kernel takes: default sizes, and small ones with many seams."""
    if kernel["packing"] == "strips":
        return [Strips.from_dense(weight, height=height) for height in (4, 16)]
    cls = QuadRuns if kernel["dtype"] == "int8" else Runs
    return [
        cls.from_dense(weight, chunk=chunk, block=block) for chunk, block in ((None, None), (5, 3))
    ]


def random_weight(out: int, channels: int, kernel: int, dtype: str) -> Tensor:
    """[out, channels, kernel] with 60 % zeros and an empty row."""
    generator = torch.Generator().manual_seed(out * 31 + channels)
    weight = torch.randn(out, channels, kernel, generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < 0.6] = 0
    weight[out // 2 : out // 2 + 1] = 0
    return weight.bfloat16() if dtype == "bfloat16" else weight


def steps_of(length: int, kernel: int, options: dict[str, int]) -> int:
    reach = options.get("dilation", 1) * (kernel - 1) + 1
    return (length + 2 * options.get("padding", 0) - reach) // options.get("stride", 1) + 1


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k["name"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_convolution_matches_float64(kernel: dict[str, Any], case: tuple[Any, ...]) -> None:
    batch, channels, out, length, width, options = case
    weight = random_weight(out, channels, width, kernel["dtype"])
    x = torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(length))
    bias = torch.randn(out)
    for packed in packed_for(kernel, weight.flatten(1)):
        y = torch.full((batch, out, steps_of(length, width, options)), float("nan"))
        ops.weight_handle(packed).conv1d(
            x.numpy(),
            y.numpy(),
            width,
            options.get("stride", 1),
            options.get("dilation", 1),
            options.get("padding", 0),
            bias.numpy(),
            _core.ACTIVATIONS["silu"],
            kernel["isa"],
        )
        if not out or not batch:
            assert y.numel() == 0
            continue
        stored = packed.to_dense().double().view(weight.shape)
        truth = ACTIVATIONS["silu"](F.conv1d(x.double(), stored, bias.double(), **options))
        scale = max(1.0, float(truth.abs().max()))
        bound = 3e-2 if kernel["dtype"] == "int8" else 1e-5  # int8 rounds activations
        assert float((y.double() - truth).abs().max()) / scale <= bound


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k["name"])
def test_slices_of_channels_and_nothing_beside_them(kernel: dict[str, Any]) -> None:
    """x and y may be the channels of a group; what lies around them is neither read nor written."""
    weight = random_weight(9, 5, 3, kernel["dtype"])
    x = torch.full((3, 11, 40), float("nan"))
    x[:, 3:8, 2:32] = torch.randn(3, 5, 30)
    y = torch.full((3, 13, 50), -7.0)
    packed = packed_for(kernel, weight.flatten(1))[0]
    ops.weight_handle(packed).conv1d(
        x[:, 3:8, 2:32].numpy(), y[:, 2:11, 5:35].numpy(), 3, 1, 1, 1, isa=kernel["isa"]
    )
    truth = F.conv1d(x[:, 3:8, 2:32].double(), packed.to_dense().double().view(9, 5, 3), padding=1)
    bound = 0.2 if kernel["dtype"] == "int8" else 1e-5
    assert float((y[:, 2:11, 5:35] - truth).abs().max()) <= bound
    y[:, 2:11, 5:35] = -7.0
    assert (y == -7.0).all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k["name"])
def test_results_do_not_depend_on_threads(kernel: dict[str, Any]) -> None:
    handle = ops.weight_handle(
        packed_for(kernel, random_weight(70, 30, 5, "float32").flatten(1))[0]
    )
    x, threads = torch.randn(7, 30, 90), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = torch.full((7, 70, 86), float("nan"))
            handle.conv1d(x.numpy(), y.numpy(), 5, 1, 1, 0, isa=kernel["isa"])
            found.append(y)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_binding_refuses_what_does_not_fit() -> None:
    handle = ops.weight_handle(Runs.from_dense(torch.randn(4, 6)))
    x, y = np.zeros((2, 3, 9), "f4"), np.zeros((2, 4, 8), "f4")
    handle.conv1d(x, y, 2, 1, 1, 0)
    bad: list[tuple[Callable[[], None], str]] = [
        (lambda: handle.conv1d(x, y, 3, 1, 1, 0), "in / kernel"),
        (lambda: handle.conv1d(x[:1], y, 2, 1, 1, 0), "batch"),
        (lambda: handle.conv1d(x, y[:, :3], 2, 1, 1, 0), "out"),
        (lambda: handle.conv1d(x, y, 0, 1, 1, 0), "kernel"),
        (lambda: handle.conv1d(x, y, 2, 0, 1, 0), "stride"),
        (lambda: handle.conv1d(x, y, 2, 1, 1 << 31, 0), "dilation"),
        (lambda: handle.conv1d(x, y, 2, 1, 1, -1), "left"),
        (lambda: handle.conv1d(x, y, 2, 1, 1, 0, np.zeros(3, "f4")), "bias"),
        (lambda: handle.conv1d(x, y, 2, 1, 1, 0, None, 9), "activation"),
        (lambda: handle.conv1d(x[:, :, ::2], y, 2, 1, 1, 0), "contiguous times"),
        (lambda: handle.conv1d(x, y[:, :, ::-1], 2, 1, 1, 0), "contiguous times"),
    ]
    for call, why in bad:
        with pytest.raises(ValueError, match=why):
            call()
    with pytest.raises(TypeError):
        handle.conv1d(x.astype("f8"), y, 2, 1, 1, 0)
    few = ops.weight_handle(se.packings.PackedSellP.from_dense(torch.randn(16, 16)))
    with pytest.raises(ValueError, match="only runs and strips"):
        few.conv1d(np.zeros((1, 8, 9), "f4"), np.zeros((1, 16, 8), "f4"), 2, 1, 1, 0)


def thinned_conv(*args: Any, **kwargs: Any) -> nn.Conv1d:
    conv = nn.Conv1d(*args, **kwargs).eval().requires_grad_(False)
    conv.weight.mul_(torch.rand_like(conv.weight) > 0.7)
    return conv


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", ["csr", "bsr:16x1"])
def test_traces_see_one_operator(spec: str, dtype: torch.dtype) -> None:
    conv = thinned_conv(12, 32, 3, padding=1, groups=2)
    layer = SparseConv1d.from_dense(conv, spec)
    x = torch.randn(2, 12, 20).to(dtype)
    program = torch.export.export(layer, (x,))
    assert "sparse_engine.conv1d" in str(program.graph)
    assert torch.equal(program.module()(x), layer(x))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))


def test_exports_of_any_batch_and_length() -> None:
    layer = SparseConv1d.from_dense(thinned_conv(12, 32, 3, padding=1), "csr")
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("length", min=4)}
    program = torch.export.export(layer, (torch.randn(2, 12, 20),), dynamic_shapes=(sizes,))
    for batch, length in ((2, 20), (5, 4), (9, 33)):
        x = torch.randn(batch, 12, length)
        assert torch.allclose(program.module()(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 8, 9])
def test_short_sequences(steps: int) -> None:
    """Many are multiplied as rows, one at a time and longer ones on panels: the same results."""
    conv = thinned_conv(8, 16, 3)
    layer, x = SparseConv1d.from_dense(conv, "csr"), torch.randn(30, 8, steps + 2)
    truth = copy.deepcopy(conv).double()(x.double())
    assert torch.allclose(layer(x).double(), truth, atol=1e-5)
    assert torch.allclose(layer(x[3:4]).double(), truth[3:4], atol=1e-5)
    assert torch.allclose(layer(x[3]).double(), truth[3], atol=1e-5)


def test_hooks_of_the_inner_layer_still_run() -> None:
    layer = SparseConv1d.from_dense(thinned_conv(8, 16, 3), "csr")
    x, seen = torch.randn(2, 8, 20), []
    expected = layer(x)
    hook = layer.linears[0].register_forward_hook(lambda *call: seen.append(call))
    y = layer(x)
    assert len(seen) == 1
    assert torch.allclose(y, expected, atol=1e-5)
    hook.remove()
    assert torch.equal(layer(x), expected)


def test_transposed_and_expanded_inputs() -> None:
    """A text classifier convolves its embeddings transposed: times are not contiguous then."""
    conv = thinned_conv(24, 16, 5)
    layer, truth = SparseConv1d.from_dense(conv, "csr"), copy.deepcopy(conv).double()
    for x in (torch.randn(3, 20, 24).transpose(1, 2), torch.randn(1, 24, 20).expand(4, -1, -1)):
        assert torch.allclose(layer(x).double(), truth(x.double()), atol=1e-5)
    with pytest.raises(UsageError, match="float32 or bfloat16"):
        layer(torch.randn(1, 24, 20).double())
