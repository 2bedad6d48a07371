"""The engine on a GPU, or as if on one: formats, layers and networks run the Triton kernels."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from triton_common import DEVICE, outputs
from triton_engine import on_gpu, weight_for

import sparse_engine as se
from sparse_engine.backends import CUDA
from sparse_engine.errors import UsageError
from sparse_engine.formats import FormatSpec
from sparse_engine.nn import SparseLinear
from sparse_engine.nn.recurrent.base import SparseRNNBase
from sparse_engine.nn.recurrent.cuda import step_kernel
from sparse_engine.nn.recurrent.weights import GATES
from sparse_engine.ops import linear_kernel, reference, run_linear
from sparse_engine.packings.cuda import bsr, ell, nm

__all__ = ["on_gpu", "outputs"]

SPECS = (
    "bsr:16x16",
    "bsr:32x64",
    "bsr:64x1",
    "bsr:4x1",
    "csr",
    "bitmask",
    "sellp",
    "nm:2:4",
    "nm:3:4",
)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("spec", SPECS)
def test_every_format_and_dtype(spec: str, dtype: str) -> None:
    """The op, for few tokens and for many, with a full epilogue."""
    packed = CUDA.pack(
        FormatSpec.parse(spec).from_dense(weight_for(spec, 72, 88)).to(DEVICE), dtype
    )
    truth = packed.to_dense()
    bias = torch.randn(72, device=DEVICE)
    for shape in ((2, 88), (2, 12, 88)):
        kind = torch.float32 if dtype == "int8" else getattr(torch, dtype)
        x = torch.randn(shape).to(kind).to(DEVICE)
        residual = torch.randn(*shape[:-1], 72).to(kind).to(DEVICE)
        y = run_linear(packed, x, bias, "gelu", residual)
        expected = reference.linear(truth, x, bias, "gelu", residual)
        assert y.shape == expected.shape
        assert y.dtype == x.dtype
        error = float((y - expected).abs().max() / expected.abs().max())
        assert error <= {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[kind]


def test_kernels_are_named() -> None:
    cases = {
        ("bsr:16x16", 1): "linear_bsr_kernel",
        ("bsr:64x64", 300): "linear_bsr_tma_kernel",
        ("csr", 16): "linear_ell_kernel",
        ("csr", 17): "expand_ell_kernel, dense",
        ("nm:2:4", 4): "linear_nm_kernel",
        ("nm:2:4", 64): "expand_nm_kernel, dense",
    }
    for (spec, tokens), name in cases.items():
        stored = FormatSpec.parse(spec).from_dense(weight_for(spec, 128, 128).bfloat16()).to(DEVICE)
        if "tma" in name and DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0):
            continue
        assert linear_kernel(CUDA.pack(stored), tokens) == name


@pytest.mark.parametrize("spec", SPECS)
def test_layers(spec: str) -> None:
    """A layer is made from a format and gives it back; its state loads into another."""
    linear = nn.Linear(88, 72)
    linear.weight.data = weight_for(spec, 72, 88)
    layer = SparseLinear.from_dense(linear, spec).to(DEVICE)
    assert CUDA.holds(layer.packed)
    assert torch.equal(layer.to_dense().weight.cpu(), linear.weight)
    assert torch.equal(layer.to_format().to_dense().cpu(), linear.weight)
    x = torch.randn(3, 88)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x.to(DEVICE)).cpu(), linear(x), rtol=1e-4, atol=1e-5)
    twin = SparseLinear(88, 72).to(DEVICE)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.packed.to_dense(), layer.packed.to_dense())
    assert twin.format == spec


def test_layers_refuse_what_lies_elsewhere() -> None:
    layer = SparseLinear.from_dense(nn.Linear(16, 16), "bsr:16x16").to(DEVICE)
    with torch.inference_mode(), pytest.raises(UsageError, match=r"x is on meta, the layer on"):
        layer(torch.ones(1, 16, device="meta"))
    with torch.inference_mode(), pytest.raises(UsageError, match="the weight takes"):
        layer(torch.ones(1, 15, device=DEVICE))


def test_a_layer_traces_and_compiles() -> None:
    layer = SparseLinear.from_dense(nn.Linear(32, 32), "bsr:16x16").to(DEVICE)
    x = torch.randn(4, 32, device=DEVICE)
    with torch.inference_mode():
        exported = torch.export.export(layer, (x,), strict=False)
        assert "linear_gpu" in str(exported.graph)
        torch.testing.assert_close(exported.module()(x), layer(x))
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), layer(x))


def test_a_model_is_swapped() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32)).to(DEVICE)
    for linear in (model[0], model[2]):
        linear.weight.data = weight_for("bsr:16x16", *linear.weight.shape).to(DEVICE)
    x = torch.randn(5, 64, device=DEVICE)
    with torch.inference_mode():
        expected = model(x)
        report = se.sparsify_(model, "bsr:16x16")
        assert [row.kernel for row in report.rows] == ["linear_bsr_kernel"] * 2
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["bsr:16x16", "bsr:16x1", "csr"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind: type[nn.RNNBase], spec: str) -> None:
    """Whole sequences against torch: layers, directions, states, packed sequences."""
    torch.manual_seed(0)
    network = kind(20, 24, num_layers=2, bidirectional=True)
    sparse_weights(network)
    twin = twin_of(network, spec).to(DEVICE)
    assert (step_kernel(twin.hh_l0) == "recurrent_step_kernel") == spec.startswith("bsr")
    x = torch.randn(3, 2, 20)
    with torch.inference_mode():
        check_outputs(twin(x.to(DEVICE)), network(x))
        lengths = torch.tensor([2, 5, 3])
        packed = nn.utils.rnn.pack_padded_sequence(
            torch.randn(5, 3, 20), lengths, enforce_sorted=False
        )
        shape = (4, 3, 24)
        h = torch.randn(shape)
        state = (h, torch.randn(shape)) if kind is nn.LSTM else h
        moved = tuple(t.to(DEVICE) for t in state) if kind is nn.LSTM else h.to(DEVICE)
        found, last = twin(packed.to(DEVICE), moved)
        wanted, wanted_last = network(packed, state)
        check_outputs((found.data, last), (wanted.data, wanted_last))


def test_states_of_any_strides() -> None:
    """As where states are kept batch first."""
    torch.manual_seed(0)
    network = nn.LSTM(20, 24, num_layers=2)
    sparse_weights(network)
    twin = twin_of(network, "bsr:16x16").to(DEVICE)
    x = torch.randn(3, 2, 20)
    state = torch.randn(2, 2, 24).transpose(0, 1), torch.randn(2, 2, 24).transpose(0, 1)
    with torch.inference_mode():
        found = twin(x.to(DEVICE), tuple(t.to(DEVICE) for t in state))
        check_outputs(found, network(x, state))


def test_many_sequences_on_single_elements() -> None:
    torch.manual_seed(0)
    network = nn.GRU(20, 24)
    sparse_weights(network)
    twin = twin_of(network, "csr").to(DEVICE)
    x = torch.randn(3, 20, 20)
    with torch.inference_mode():
        check_outputs(twin(x.to(DEVICE)), network(x))


@pytest.mark.parametrize("spec", ["csr", "bsr:16x16", "nm:2:4"])
def test_layers_without_inputs_or_outputs(spec: str) -> None:
    for shape in ((5, 0), (0, 8)):
        packed = CUDA.pack(FormatSpec.parse(spec).from_dense(torch.zeros(shape)).to(DEVICE))
        x, residual = torch.zeros(2, 3, shape[1]), torch.ones(2, 3, shape[0])
        y = run_linear(packed, x.to(DEVICE), None, "none", residual.to(DEVICE))
        assert torch.equal(y.cpu(), residual)


def test_kernels_and_packings_agree_on_layouts() -> None:
    """Kernels know nothing of the project, so what both must know is written twice."""
    tables = sys.modules["sparse_engine.kernels.linear_bsr"]
    assert (tables.BLOCK_ROWS, tables.BLOCK_COLS) == (bsr.ROWS, bsr.COLS)
    tables = sys.modules["sparse_engine.kernels.linear_ell"]
    assert (tables.ROWS, tables.WIDTH) == (ell.LANES, ell.WIDTH)
    assert sys.modules["sparse_engine.kernels.linear_nm"].BITS == nm.BITS
    assert sys.modules["sparse_engine.kernels.recurrent_step"].GATES == GATES


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projections_and_steps() -> None:
    torch.manual_seed(0)
    network = nn.LSTM(20, 24, proj_size=7)
    sparse_weights(network)
    twin = twin_of(network, "bsr:16x16").to(DEVICE)
    x = torch.randn(4, 2, 20)
    with torch.inference_mode():
        expected = network(x)
        check_outputs(twin(x.to(DEVICE)), expected)
        state = None
        for step in x.to(DEVICE):
            y, state = twin.step(step, state)
        check_outputs((y[None], state), (expected[0][-1:], expected[1]))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    cell = kind(20, 24)
    twins = {
        nn.LSTMCell: se.nn.SparseLSTMCell,
        nn.GRUCell: se.nn.SparseGRUCell,
        nn.RNNCell: se.nn.SparseRNNCell,
    }
    twin = twins[kind].from_dense(cell, "bsr:16x16").to(DEVICE)
    x, h = torch.randn(3, 20), torch.randn(3, 24)
    state = (h, torch.randn(3, 24)) if kind is nn.LSTMCell else h
    moved = tuple(t.to(DEVICE) for t in state) if kind is nn.LSTMCell else h.to(DEVICE)
    with torch.inference_mode():
        found, expected = twin(x.to(DEVICE), moved), cell(x, state)
        if kind is not nn.LSTMCell:
            found, expected = (found,), (expected,)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-5)


def test_recurrent_networks_in_16_bits() -> None:
    torch.manual_seed(0)
    network = nn.LSTM(20, 24)
    sparse_weights(network)
    config = se.SparseConfig("bsr:16x16", dtype="bfloat16")
    twin = se.nn.SparseLSTM.from_dense(network, config).to(DEVICE)
    x = torch.randn(6, 2, 20)
    with torch.inference_mode():
        y, _ = twin(x.bfloat16().to(DEVICE))
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float().cpu(), network(x)[0], rtol=0, atol=2e-2)


def sparse_weights(network: nn.RNNBase) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if name.startswith("weight"):
            keep = torch.rand(parameter.shape, generator=generator) < 0.5
            parameter.data *= keep


def twin_of(network: nn.RNNBase, spec: str) -> SparseRNNBase:
    cls = {nn.LSTM: se.nn.SparseLSTM, nn.GRU: se.nn.SparseGRU, nn.RNN: se.nn.SparseRNN}
    return cls[type(network)].from_dense(network, spec)


def check_outputs(found: tuple, expected: tuple) -> None:
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-4, atol=1e-5)
    pairs = [(found[1], expected[1])]
    if isinstance(expected[1], tuple):
        pairs = list(zip(found[1], expected[1], strict=True))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-5)
