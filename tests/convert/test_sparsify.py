"""sparsify_ and densify_ of any module: what is swapped, what stays and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.nn import SparseLinear


def zero_out_(linear: nn.Linear, sparsity: float, rows: int = 1) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    out, inner = linear.weight.shape
    keep = torch.rand(out // rows, inner, generator=generator) >= sparsity
    with torch.no_grad():
        linear.weight.mul_(keep.repeat_interleave(rows, 0))
    return linear


def small_model() -> nn.Module:
    return nn.Sequential(
        zero_out_(nn.Linear(32, 64), 0.9),
        nn.ReLU(),
        zero_out_(nn.Linear(64, 32), 0.9),
        nn.Linear(32, 4),
    )


def test_swaps_in_place_and_reports() -> None:
    model = small_model().eval()
    x = torch.randn(5, 32)
    with torch.inference_mode():
        want = model(x)
    seen: list[tuple[int, int, str]] = []
    report = se.sparsify_(model, se.SparseConfig(format="csr"), progress=lambda *a: seen.append(a))
    assert [type(m) for m in model] == [SparseLinear, nn.ReLU, SparseLinear, nn.Linear]
    with torch.inference_mode():
        torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    assert [row.format for row in report.rows] == ["csr", "csr", "dense"]
    assert "0% zeros" in report.rows[2].reason
    assert report.rows[0].bytes < report.rows[0].dense_bytes
    assert report.rows[0].kernel.startswith("spmm_runs_f32")
    assert "2 of 3" in str(report)
    assert seen[-1][:2] == (3, 3)


def test_filter_tied_and_subclassed_layers_stay_with_a_reason() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.head = zero_out_(nn.Linear(8, 16, bias=False), 0.9)
            self.embed.weight = self.head.weight
            self.scaled = zero_out_(Scaled(8, 8), 0.9)
            self.out = zero_out_(nn.Linear(8, 8), 0.9)
            self.skip = zero_out_(nn.Linear(8, 8), 0.9)

    model = Model()
    report = se.sparsify_(model, "csr", filter_fn=lambda module, name: name != "skip")
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["head"] == "tied to embed"
    assert "is a Scaled" in reasons["scaled"]
    assert reasons["skip"] == "left out by filter_fn"
    assert isinstance(model.out, SparseLinear)


def test_layers_that_share_a_weight_share_the_sparse_one() -> None:
    linear = zero_out_(nn.Linear(8, 8), 0.5)
    model = nn.Sequential(linear, nn.ReLU(), linear)
    se.sparsify_(model, "csr")
    assert model[0] is model[2]


def test_refusals() -> None:
    with pytest.raises(UsageError, match="from_dense"):
        se.sparsify_(nn.Linear(2, 2), "csr")
    for bad in (
        {"format": "coo"},
        {"format": "bsr:0x4"},
        {"dtype": "float64"},
        {"tokens": ()},
        {"tokens": (0,)},
    ):
        with pytest.raises(UsageError):
            se.SparseConfig(**bad)


def test_layers_that_share_a_weight_keep_their_own_biases() -> None:
    a, b = zero_out_(nn.Linear(8, 8), 0.5), nn.Linear(8, 8)
    b.weight = a.weight
    model, x = nn.ModuleDict({"a": a, "b": b}), torch.randn(3, 8)
    with torch.inference_mode():
        want = b(x)
        se.sparsify_(model, "csr")
        torch.testing.assert_close(model["b"](x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "lstm", "conv"])
def test_a_bfloat16_model_whose_every_layer_is_swapped_comes_back_in_it(kind: str) -> None:
    torch.manual_seed(0)
    made = {
        "linear": lambda: nn.Linear(16, 16),
        "lstm": lambda: nn.LSTM(16, 16, batch_first=True),
        "conv": lambda: nn.Conv1d(6, 16, 3),
    }
    model = nn.Sequential(made[kind]()).to(torch.bfloat16).eval()
    se.prune(model, 0.5)
    x = torch.randn(2, 6, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        dense = model(x)
        se.sparsify_(model, "csr")
        se.densify_(model)
        torch.testing.assert_close(model(x), dense)


def test_what_was_swapped_before_is_called_sparse() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(6, 16, 3))
    se.prune(model, 0.5)
    se.sparsify_(model, "csr")
    again = se.sparsify_(model, "csr")
    assert {row.name: row.reason for row in again.left} == dict.fromkeys("01", "sparse already")
    assert again.skipped == pytest.approx(0.5, abs=0.01)


def test_densify_gives_a_model_that_runs_whatever_was_stored() -> None:
    model, x = small_model().eval(), torch.randn(5, 32)
    with torch.inference_mode():
        want = model(x)
        se.sparsify_(model, se.SparseConfig("csr", "bfloat16"))
        se.densify_(model)
        assert all(type(m) is not SparseLinear for m in model.modules())
        torch.testing.assert_close(model(x), want, rtol=5e-2, atol=5e-2)


def test_nothing_is_swapped_when_one_layer_does_not_fit() -> None:
    fits = nn.Linear(8, 4)
    with torch.no_grad():
        fits.weight.copy_(torch.tensor([1.0, 2, 0, 0] * 2).expand(4, 8))
    model = nn.Sequential(fits, zero_out_(nn.Linear(4, 8), 0.3))
    with pytest.raises(UsageError):
        se.sparsify_(model, "nm:2:4")
    assert type(model[0]) is nn.Linear


def test_half_precision_stays_dense_with_a_reason() -> None:
    model = nn.Sequential(zero_out_(nn.Linear(8, 8), 0.9).half())
    (row,) = se.sparsify_(model, "csr").rows
    assert row.format == "dense"
    assert "float16" in row.reason


def test_torchs_own_encoder_layer_runs_sparse() -> None:
    """Its fast path looks at linear1.weight and must step aside, not fail or read nothing."""
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    for linear in (encoder.linear1, encoder.linear2):
        zero_out_(linear, 0.8)
    x = torch.randn(2, 5, 32)
    with torch.inference_mode():
        want = encoder(x)
        report = se.sparsify_(encoder, "csr")
        assert {row.name for row in report.swapped} == {"linear1", "linear2"}
        torch.testing.assert_close(encoder(x), want, rtol=1e-4, atol=1e-5)


def test_a_hugging_face_encoder_decoder_runs_sparse() -> None:
    """T5 reads wo.weight.dtype before it calls the layer."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    model = transformers.T5EncoderModel(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            zero_out_(module, 0.5)
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        want = model(ids).last_hidden_state
        assert se.sparsify_(model, "csr").swapped
        torch.testing.assert_close(model(ids).last_hidden_state, want, rtol=1e-4, atol=1e-5)
