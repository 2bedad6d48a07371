"""SparseLinear: drop-in for torch.nn.Linear, plain-tensor state, no pickle, no gradients."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.nn import SparseLinear
from sparse_engine.ops import reference

SPECS = ("csr", "bsr:4x1", "bsr:3x5", "bitmask", "nm:2:4")


def pruned_linear(
    out: int = 33, inner: int = 50, bias: bool = True, spec: str = "csr"
) -> nn.Linear:
    torch.manual_seed(out * inner)
    linear = nn.Linear(inner, out, bias=bias)
    with torch.no_grad():
        if spec == "nm:2:4":
            groups = torch.rand(out, -(-inner // 4), 4).argsort(-1) < 2
            linear.weight.mul_(groups.reshape(out, -1)[:, :inner])
        else:
            linear.weight.mul_(torch.rand(out, inner) > 0.8)
    return linear


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
def test_matches_dense(spec: str, dtype: str, bias: bool) -> None:
    linear = pruned_linear(bias=bias, spec=spec)
    layer = SparseLinear.from_dense(linear, se.SparseConfig(format=spec, dtype=dtype))
    assert layer.format == spec
    for shape in [(50,), (1, 50), (7, 50), (2, 3, 50), (0, 50), (2, 0, 50)]:
        x = torch.randn(shape)
        with torch.inference_mode():
            y = layer(x)
        dense = layer.to_dense()
        truth = reference.linear(dense.weight, x, layer.bias)
        assert y.shape == truth.shape
        assert y.dtype == x.dtype
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        if truth.numel():
            assert float((y - truth).abs().max() / truth.abs().max()) <= tolerance


def test_inputs_of_any_layout_and_dtype() -> None:
    linear = pruned_linear()
    layer = SparseLinear.from_dense(linear, "csr")
    big = torch.randn(50, 6, 4)
    for x in (
        big.transpose(0, 2),
        big[:, ::2].permute(1, 2, 0),
        torch.randn(3, 100)[:, ::2],
        torch.randn(1, 50).expand(5, 50),
    ):
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), linear(x), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        y = layer(torch.randn(4, 50).bfloat16())
    assert y.dtype == torch.bfloat16


def test_zero_sizes() -> None:
    for out, inner in ((0, 5), (5, 0), (0, 0), (1, 1)):
        layer = SparseLinear(inner, out)
        with torch.inference_mode():
            assert layer(torch.zeros(3, inner)).shape == (3, out)


@pytest.mark.parametrize("spec", SPECS)
def test_to_dense_and_back(spec: str) -> None:
    linear = pruned_linear(spec=spec)
    layer = SparseLinear.from_dense(linear, spec)
    dense = layer.to_dense()
    assert torch.equal(dense.weight, linear.weight)
    assert torch.equal(dense.bias, linear.bias)
    fmt = layer.to_format()
    assert fmt.spec == spec
    assert torch.equal(fmt.to_dense(), linear.weight)


def test_from_dense_leaves_the_linear_alone() -> None:
    linear = pruned_linear()
    before = linear.weight.clone()
    layer = SparseLinear.from_dense(linear, "csr")
    layer.values.fill_(9)
    layer.bias.fill_(9)
    assert torch.equal(linear.weight, before)
    assert not (linear.bias == 9).any()


def test_state_dict_is_plain_tensors_and_round_trips() -> None:
    layer = SparseLinear.from_dense(pruned_linear(), "bsr:4x1")
    state = layer.state_dict()
    assert all(type(t) is torch.Tensor and t.layout == torch.strided for t in state.values())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other = SparseLinear(50, 33)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(5, 50)
    with torch.inference_mode():
        assert torch.equal(other(x), layer(x))
    assert other.format == "bsr:4x1"


def test_damaged_state_dict_is_refused() -> None:
    layer = SparseLinear.from_dense(pruned_linear(), "csr")
    for name, damage in (
        ("columns", lambda t: t.to(torch.int32).add(200).to(torch.uint8)),
        ("starts", lambda t: t.flip(0)),
        ("values", lambda t: t[:-1]),
        ("_extra_state", lambda t: t[:-2]),
    ):
        state = layer.state_dict()
        state[name] = damage(state[name])
        with pytest.raises((InvalidFileError, RuntimeError)):
            SparseLinear(50, 33).load_state_dict(state)


def test_loading_a_state_copies_it() -> None:
    layer, other = SparseLinear.from_dense(pruned_linear(), "csr"), SparseLinear(50, 33)
    other.load_state_dict(layer.state_dict())
    layer.values.zero_()
    layer.bias.zero_()
    assert other.values.abs().sum() > 0
    assert other.bias.abs().sum() > 0


def test_state_of_a_gpu_layer_loads_into_a_cpu_layer() -> None:
    """On CUDA a layer holds BSR as it is; what the CPU kernels read is made from it."""
    linear = pruned_linear()
    matrix = se.formats.BSR.from_dense(linear.weight.detach(), 4, 1)
    told = {"format": "bsr:4x1", "packing": "bsr", "params": matrix.params()}
    state = {**matrix.tensors(), "bias": linear.bias.detach()}
    state["_extra_state"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    layer = SparseLinear(50, 33)
    layer.load_state_dict(state)
    assert layer.packed.name == "runs"
    assert torch.equal(layer.to_dense().weight, linear.weight)


def test_weight_tells_shape_dtype_and_device_but_holds_nothing() -> None:
    layer = SparseLinear.from_dense(pruned_linear(), se.SparseConfig("csr", "bfloat16"))
    weight = layer.weight
    assert weight.shape == weight.size() == (33, 50)
    assert (weight.dim(), weight.numel(), len(weight), weight.ndim) == (2, 1650, 33, 2)
    assert weight.dtype == weight.data.dtype == torch.bfloat16
    assert weight.device == torch.device("cpu")
    assert weight.is_cpu
    assert not weight.is_cuda
    assert weight.is_meta
    assert "33" in repr(weight)
    assert not list(layer.parameters())


READERS: dict[str, Callable[[torch.Tensor], object]] = {
    "linear": lambda w: nn.functional.linear(torch.randn(2, 50), w),
    "matmul": lambda w: torch.randn(2, 50) @ w.T,
    "embedding": lambda w: nn.functional.embedding(torch.tensor([1]), w),
    "sum": lambda w: w.sum(),
    "stack": lambda w: torch.stack([w, w]),
    "clone": lambda w: w.clone(),
    "add to data": lambda w: w.data.add_(1),
    "copy": lambda w: w.data.copy_(torch.ones(33, 50)),
    "zero": lambda w: w.zero_(),
    "assignment": lambda w: w.__setitem__(0, 1.0),
    "initialisation": lambda w: nn.init.xavier_uniform_(w),
}


@pytest.mark.parametrize("reads", READERS.values(), ids=READERS.keys())
def test_reading_or_writing_the_weight_of_a_sparse_layer_is_refused(
    reads: Callable[[torch.Tensor], object],
) -> None:
    """torch's products on the CPU return memory that nothing was written to for a meta tensor."""
    layer = SparseLinear.from_dense(pruned_linear(), "csr")
    with pytest.raises(UsageError, match="needs the values of a sparse layer's weight"):
        reads(layer.weight)


def test_a_model_that_reads_the_weight_of_another_layer_is_told() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = pruned_linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.up(x.to(self.up.weight.device)), self.up.weight.t())

    model = Tied()
    se.sparsify_(model, "csr")
    with pytest.raises(UsageError, match="keep the layer dense with filter_fn"):
        model(torch.randn(2, 50))


def test_a_refused_cast_changes_nothing() -> None:
    layer = SparseLinear.from_dense(pruned_linear(), "csr")
    with pytest.raises(UsageError, match="float16"):
        layer.half()
    assert layer.values.dtype == torch.float32
    with torch.inference_mode():
        assert layer(torch.randn(2, 50)).dtype == torch.float32


def test_deepcopy_yes_pickle_no() -> None:
    layer = SparseLinear.from_dense(pruned_linear(), "csr")
    twin = copy.deepcopy(nn.Sequential(layer))[0]
    twin.values.zero_()
    assert layer.values.abs().sum() > 0
    with pytest.raises(UsageError, match="save"):
        torch.save(nn.Sequential(layer), io.BytesIO())


def test_inference_only_and_bad_input_say_so_in_one_line() -> None:
    layer = SparseLinear.from_dense(pruned_linear(), "csr")
    x = torch.randn(2, 50, requires_grad=True)
    cases = (
        (x, "inference only"),
        (torch.randn(2, 49), r"\[2, 49\]"),
        (torch.randn(2, 50).double(), "float32 or bfloat16"),
        (torch.tensor(1.0), "50"),
    )
    for bad, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            layer(bad)
        assert "\n" not in str(caught.value)
    with torch.no_grad():
        assert layer(x).shape == (2, 33)


def test_moves_between_dtypes_and_devices() -> None:
    linear = pruned_linear()
    layer = SparseLinear.from_dense(linear, "csr").to(torch.bfloat16)
    with torch.inference_mode():
        y = layer(torch.randn(3, 50, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert layer.packed.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore")
def test_compile_and_export() -> None:
    model = nn.Sequential(SparseLinear.from_dense(pruned_linear(), "csr"), nn.GELU())
    x = torch.randn(4, 50)
    with torch.no_grad():
        want = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), want)
        dims = {0: torch.export.Dim("tokens", min=2, max=64)}
        program = torch.export.export(model, (x,), dynamic_shapes=(dims,))
        longer = torch.randn(9, 50)
        torch.testing.assert_close(program.module()(longer), model(longer))


def test_op_passes_torchs_own_checks() -> None:
    layer = SparseLinear.from_dense(pruned_linear(), "csr")
    packed = layer.packed
    args = (
        torch.randn(3, 50),
        list(packed.tensors().values()),
        list(packed.params().values()),
        packed.kind,
        layer.bias,
        torch.randn(3, 33),
        33,
        "gelu",
    )
    torch.library.opcheck(torch.ops.sparse_engine.linear.default, args)
