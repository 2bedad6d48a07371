"""What only a GPU can show: graphs, measured choices, memory; test_triton.py runs them on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine.backends import CPU, CUDA
from sparse_engine.backends.cuda_timer import capture, time_on_gpu
from sparse_engine.nn.recurrent.cuda import MAX_GRAPHS

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_memory_of_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", "")


def pruned(module: nn.Module, side: int = 16) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if "weight" in name and parameter.dim() == 2:
            rows, cols = parameter.shape
            kept = torch.rand(-(-rows // side), -(-cols // side), generator=generator) < 0.3
            mask = kept.repeat_interleave(side, 0).repeat_interleave(side, 1)[:rows, :cols]
            parameter.data *= mask.to(parameter)
    return module.eval()


def lstm() -> tuple[nn.LSTM, nn.Module]:
    torch.manual_seed(0)
    network = pruned(nn.LSTM(32, 64))
    return network, se.nn.SparseLSTM.from_dense(network, "bsr:16x16").to(DEVICE)  # type: ignore[arg-type]


def test_a_shape_that_comes_again_replays_a_graph() -> None:
    """With other inputs and states, in and out of inference mode, and past the number that
    is kept.
    """
    network, twin = lstm()
    for modes in ((torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)):
        for turn in range(6):
            with modes[turn % 2]():
                x, h, c = torch.randn(9, 3, 32), torch.randn(1, 3, 64), torch.randn(1, 3, 64)
                y, (h1, c1) = twin(x.to(DEVICE), (h.to(DEVICE), c.to(DEVICE)))
                expected, (h2, c2) = network(x, (h, c))
                for a, b in ((y, expected), (h1, h2), (c1, c2)):
                    torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3)
    with torch.inference_mode():
        for steps in [*range(5, 8 + MAX_GRAPHS)] * 3:
            x = torch.randn(steps, 2, 32)
            torch.testing.assert_close(
                twin(x.to(DEVICE))[0].cpu(), network(x)[0], rtol=1e-3, atol=1e-3
            )
    assert len(twin.cuda_runner.graphs) <= MAX_GRAPHS


def test_steps_write_their_state_over() -> None:
    network, twin = lstm()
    state = torch.zeros(1, 2, 64, device=DEVICE), torch.zeros(1, 2, 64, device=DEVICE)
    place = state[0].data_ptr()
    x = torch.randn(6, 2, 32)
    with torch.inference_mode():
        expected, (h, c) = network(x)
        for step, wanted in zip(x.to(DEVICE), expected, strict=True):
            y, state = twin.step(step, state)  # type: ignore[operator]
            torch.testing.assert_close(y.cpu(), wanted, rtol=1e-3, atol=1e-3)
        assert state[0].data_ptr() == place
        for mine, theirs in zip(state, (h, c), strict=True):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-3)


def test_drop_in_layers() -> None:
    """What is made of sparse linear layers runs where they are."""
    torch.manual_seed(0)
    layer = pruned(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True))
    twin = se.nn.SparseTransformerEncoderLayer.from_dense(layer, "bsr:16x16").to(DEVICE)  # type: ignore[arg-type]
    x = torch.randn(2, 7, 64)
    conv = nn.Conv1d(16, 32, 3)
    sparse = se.nn.SparseConv1d.from_dense(conv, "csr").to(DEVICE)
    with torch.inference_mode():
        torch.testing.assert_close(twin(x.to(DEVICE)).cpu(), layer(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            sparse(x[:, :, :16].transpose(1, 2).to(DEVICE)).cpu(),
            conv(x[:, :, :16].transpose(1, 2)),
            rtol=1e-3,
            atol=1e-3,
        )


def test_a_graph_does_not_outlive_its_weights() -> None:
    network, twin = lstm()
    x = torch.randn(9, 3, 32)
    with torch.inference_mode():
        for turn in range(4):
            if turn == 2:
                other = pruned(nn.LSTM(32, 64))
                made = se.nn.SparseLSTM.from_dense(other, "bsr:16x16").to(DEVICE)
                twin.load_state_dict(made.state_dict())
                network = other
            torch.testing.assert_close(
                twin(x.to(DEVICE))[0].cpu(), network(x)[0], rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize("spec", ["bsr:64x64", "bsr:16x16", "csr", "nm:2:4"])
def test_layers_in_a_graph(spec: str) -> None:
    linear = nn.Linear(512, 4096).to(DEVICE).bfloat16()
    pruned(linear, 64)
    if spec == "nm:2:4":
        linear.weight.data[:, 1::2] = 0
    layer = se.nn.SparseLinear.from_dense(linear, se.SparseConfig(spec, dtype="bfloat16"))
    with torch.inference_mode():
        for tokens in (1, 64, 300):
            x = torch.randn(tokens, 512, device=DEVICE).bfloat16()
            result: list[torch.Tensor] = []
            graph = capture(
                lambda x=x, result=result: result.__setitem__(slice(None), [layer(x)]), DEVICE
            )
            for _ in range(3):
                x.copy_(torch.randn_like(x))
                graph.replay()
                torch.testing.assert_close(result[0], linear(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_auto_measures_and_is_never_wrong(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 1024))
    pruned(model, 64).to(DEVICE, dtype)
    x = torch.randn(4, 1024, device=DEVICE, dtype=dtype)
    with torch.inference_mode():
        expected = model(x)
        report = se.sparsify_(model, se.SparseConfig(tokens=(4,)))
        assert all(row.times_us["dense"][4] > 0 for row in report.rows)
        torch.testing.assert_close(model(x), expected, rtol=2e-2, atol=2e-2)
    for row in report.swapped:
        assert model.get_submodule(row.name).values.dtype == dtype  # type: ignore[union-attr]


def test_there_and_back(tmp_path: Path) -> None:
    """float16 on the GPU is float32 on the CPU; packages go both ways."""
    model = pruned(nn.Sequential(nn.Linear(64, 64))).to(DEVICE).half()
    se.sparsify_(model, se.SparseConfig("bsr:16x16", dtype="float16"))
    assert CUDA.holds(model[0].packed)  # type: ignore[index]
    weight = model[0].packed.to_dense().float().cpu()  # type: ignore[index]
    se.save(model, tmp_path / "package")
    model.to("cpu")
    assert CPU.holds(model[0].packed)  # type: ignore[index]
    assert torch.equal(model[0].packed.to_dense(), weight)  # type: ignore[index]
    loaded = se.load(tmp_path / "package", nn.Sequential(nn.Linear(64, 64)), device="cuda")
    assert torch.equal(loaded[0].packed.to_dense().cpu(), weight)  # type: ignore[index]


def test_tensors_elsewhere_are_refused() -> None:
    layer = se.nn.SparseLinear.from_dense(pruned(nn.Linear(32, 32)), "bsr:16x16")  # type: ignore[arg-type]
    with torch.inference_mode():
        with pytest.raises(se.errors.UsageError, match="x is on cuda:0, the layer on cpu"):
            layer(torch.ones(1, 32, device=DEVICE))
        layer.to(DEVICE)
        with pytest.raises(se.errors.UsageError, match="x is on cpu, the layer on cuda:0"):
            layer(torch.ones(1, 32))


def test_the_timer_measures() -> None:
    x = torch.randn(4096, 4096, device=DEVICE)
    times = time_on_gpu({"much": lambda: x @ x, "little": lambda: x[:1] + 1}, DEVICE, rounds=3)
    assert 0 < times["little"] < times["much"]


def test_2_of_4_by_torch() -> None:
    """Whatever it says: the results are those of the dense layer, and the weight comes back."""
    linear = nn.Linear(1024, 2048).to(DEVICE).bfloat16()
    linear.weight.data[:, ::2] = 0
    model, weight = nn.Sequential(linear), linear.weight.detach().clone()
    x = torch.randn(512, 1024, device=DEVICE).bfloat16()
    with torch.inference_mode():
        expected = model(x)
        report = se.sparsify_(model, se.SparseConfig(tokens=(512,)))
        assert "2:4" in report.rows[0].reason or report.swapped
        torch.testing.assert_close(model(x), expected, rtol=2e-2, atol=2e-2)
    se.densify_(model)
    assert torch.equal(model[0].weight, weight)
