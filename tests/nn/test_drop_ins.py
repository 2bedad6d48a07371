"""Drop-in layers against the torch.nn layers whose names they bear, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from recurrent_cases import ISAS
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.nn import (
    SparseConv1d,
    SparseMultiheadAttention,
    SparseTransformerDecoderLayer,
    SparseTransformerEncoderLayer,
)


def thinned(module: nn.Module) -> Any:
    """With 70 % zeros in every matrix, and biases and norms that show."""
    torch.manual_seed(0)
    for parameter in module.requires_grad_(False).parameters():
        if parameter.dim() > 1:
            parameter[torch.rand_like(parameter) < 0.7] = 0
        else:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def close(y: Tensor, truth: Tensor, bound: float = 1e-5) -> None:
    assert y.shape == truth.shape
    assert (y.double() - truth).abs().max() <= bound * truth.abs().max()


CONVS: list[dict[str, Any]] = [
    {},
    {"stride": 3, "bias": False},
    {"padding": 2, "dilation": 3},
    {"groups": 4, "padding": "same"},
    {"groups": 2, "padding": "valid", "dilation": 2},
    {"padding": "same", "kernel_size": 4, "dilation": 3, "padding_mode": "circular"},
    {"padding": 3, "padding_mode": "reflect", "stride": 2},
    {"padding": 1, "padding_mode": "replicate", "kernel_size": 1},
]


@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_convolution(options: dict[str, Any], batch: int | None) -> None:
    conv = thinned(nn.Conv1d(12, 20, **({"kernel_size": 5} | options)))
    x = torch.randn(12, 33) if batch is None else torch.randn(batch, 12, 33)
    truth = copy.deepcopy(conv).double()(x.double())
    layer = SparseConv1d.from_dense(conv, "csr")
    close(layer(x), truth)
    close(layer.to_dense()(x), truth)
    assert torch.equal(layer.to_dense().weight, conv.weight)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spec", ["csr", "bsr:16x1", "sellp"])
def test_convolutions_of_every_length(spec: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that share, fill or span panels; empty rows and columns."""
    monkeypatch.setenv("SPARSE_ENGINE_ISA", isa)
    for batch, length in [
        (0, 9),
        (1, 5),
        (1, 20),
        (3, 7),
        (5, 30),
        (2, 64),
        (2, 69),
        (9, 21),
        (1, 200),
    ]:
        more = {"dilation": 1 if length < 20 else 2, "stride": 1 + length % 2}
        conv = thinned(nn.Conv1d(7, 33, 5, **more))
        conv.weight[4:9] = 0
        conv.weight[:, 3] = 0
        x = torch.randn(batch, 7, length)
        layer = SparseConv1d.from_dense(conv, spec)
        y, expected = layer(x), copy.deepcopy(conv).double()(x.double())
        assert y.shape == expected.shape
        if batch == 0:
            continue
        close(y, expected)
        if spec == "csr":
            x[0, 0, 0] = float("nan")  # stays in its sequence and in its window
            poisoned = layer(x)
            assert torch.equal(poisoned[1:], y[1:])
            assert torch.equal(poisoned[0, :, 1:], y[0, :, 1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_convolutions_in_every_dtype(dtype: str) -> None:
    conv = thinned(nn.Conv1d(16, 32, 3, padding=1))
    x = torch.randn(4, 16, 40)
    layer = SparseConv1d.from_dense(conv, se.SparseConfig("csr", dtype))
    truth = copy.deepcopy(conv).double()(x.double())
    bound = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 5e-2}[dtype]
    close(layer(x), truth, bound)
    close(layer(x.bfloat16()), truth, max(bound, 3e-2))
    with pytest.raises(UsageError, match="inference"):
        layer(x.requires_grad_())


def test_convolution_is_made_empty_and_filled() -> None:
    conv = thinned(nn.Conv1d(6, 8, 3, padding=1, groups=2))
    empty = SparseConv1d(6, 8, 3, padding=1, groups=2)
    assert not empty(torch.randn(2, 6, 9)).any()
    empty.load_state_dict(SparseConv1d.from_dense(conv, "csr").state_dict())
    x = torch.randn(2, 6, 9)
    close(empty(x), conv.double()(x.double()))
    for wrong in (torch.randn(2, 5, 9), torch.randn(9), torch.randn(1, 2, 6, 9)):
        with pytest.raises(UsageError, match="expected"):
            empty(wrong)
    with pytest.raises(UsageError, match="kernel"):
        SparseConv1d(6, 8, 30)(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_text_classifier_of_convolutions(dtype: str) -> None:
    """TextCNN (Kim 2014): widths 3, 4 and 5, the largest value of each filter, a linear layer."""

    class TextCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 24)
            self.convs = nn.ModuleList(nn.Conv1d(24, 16, width) for width in (3, 4, 5))
            self.output = nn.Linear(48, 4)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids).transpose(1, 2)
            return self.output(torch.cat([conv(x).relu().amax(2) for conv in self.convs], 1))

    model, ids = thinned(TextCNN()), torch.randint(0, 50, (7, 20))
    truth = copy.deepcopy(model).double()(ids)
    config = se.SparseConfig("csr", dtype)
    model.convs = nn.ModuleList(SparseConv1d.from_dense(conv, config) for conv in model.convs)
    se.sparsify_(model, config)
    close(model(ids), truth, {"float32": 1e-5, "bfloat16": 2e-2, "int8": 5e-2}[dtype])


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 10, "vdim": 14}], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_attention(options: dict[str, Any], batch_first: bool, need_weights: bool) -> None:
    attention = thinned(nn.MultiheadAttention(24, 4, batch_first=batch_first, **options))
    layer = SparseMultiheadAttention.from_dense(attention, "csr")
    truth = copy.deepcopy(attention).double()
    kdim, vdim = options.get("kdim", 24), options.get("vdim", 24)
    q, k, v = torch.randn(3, 5, 24), torch.randn(3, 9, kdim), torch.randn(3, 9, vdim)
    padding = torch.arange(9) >= torch.tensor([[9], [4], [7]])
    causal = torch.ones(5, 9, dtype=torch.bool).triu(3)
    masks: list[dict[str, Any]] = [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": torch.randn(5, 9)},
        {"attn_mask": torch.randn(12, 5, 9), "key_padding_mask": padding},
        {"average_attn_weights": False},
    ]
    for mask in masks:
        double_masks = {
            n: t.double() if isinstance(t, Tensor) and t.dtype == torch.float32 else t
            for n, t in mask.items()
        }
        inputs = [t if batch_first else t.transpose(0, 1) for t in (q, k, v)]
        y, weights = layer(*inputs, need_weights=need_weights, **mask)
        expected, shares = truth(
            *(t.double() for t in inputs), need_weights=need_weights, **double_masks
        )
        close(y, expected)
        assert (weights is None) == (shares is None)
        if weights is not None:
            close(weights, shares)
    single = [t[0] for t in (q, k, v)]
    close(layer(*single)[0], truth(*(t.double() for t in single))[0])
    close(layer.to_dense()(*inputs)[0], truth(*(t.double() for t in inputs))[0])


def test_attention_options_that_are_refused() -> None:
    for option in ("add_bias_kv", "add_zero_attn"):
        with pytest.raises(UsageError, match=option):
            SparseMultiheadAttention.from_dense(
                nn.MultiheadAttention(8, 2, **{option: True}), "csr"
            )
    with pytest.raises(UsageError, match="multiple"):
        SparseMultiheadAttention(9, 2)
    empty = SparseMultiheadAttention(8, 2, batch_first=True)
    assert not empty(*[torch.randn(1, 3, 8)] * 3)[0].any()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", torch.tanh], ids=str)
def test_encoder_layer(norm_first: bool, batch_first: bool, activation: Any) -> None:
    dense = thinned(
        nn.TransformerEncoderLayer(
            24, 4, 40, activation=activation, norm_first=norm_first, batch_first=batch_first
        )
    )
    layer = SparseTransformerEncoderLayer.from_dense(dense, "csr")
    truth = copy.deepcopy(dense).double()
    x = torch.randn(3, 70, 24)
    padding = torch.arange(70) >= torch.tensor([[70], [4], [65]])
    shape = x if batch_first else x.transpose(0, 1)
    close(layer(shape), truth(shape.double()))
    close(layer(x[0]), truth(x[0].double()))
    seen = ~padding if batch_first else ~padding.T
    y = layer(shape, src_key_padding_mask=padding)
    close(y[seen], truth(shape.double(), src_key_padding_mask=padding)[seen])
    causal = nn.Transformer.generate_square_subsequent_mask(70)
    y = layer(shape, src_mask=causal, is_causal=True)
    close(y, truth(shape.double(), src_mask=causal.double(), is_causal=True))
    assert (layer.problem(shape, None) is None) == (activation is not torch.tanh)
    assert "mask" in str(layer.problem(shape, causal))
    close(layer.to_dense()(shape), truth(shape.double()))
    other = copy.deepcopy(layer)
    layer.linear1.bias.add_(1.0)  # is seen, here only
    assert not torch.allclose(layer(shape), other(shape))
    close(other(shape), truth(shape.double()))


def test_encoder_of_layers() -> None:
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True)
    model = thinned(
        nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(24), enable_nested_tensor=False)
    )
    x = torch.randn(2, 9, 24)
    truth = copy.deepcopy(model).double()(x.double())
    model.layers = nn.ModuleList(
        SparseTransformerEncoderLayer.from_dense(layer, "csr") for layer in model.layers
    )
    close(model(x), truth)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_decoder_layer(norm_first: bool, batch_first: bool) -> None:
    dense = thinned(
        nn.TransformerDecoderLayer(24, 4, 40, norm_first=norm_first, batch_first=batch_first)
    )
    layer = SparseTransformerDecoderLayer.from_dense(dense, "csr")
    truth = copy.deepcopy(dense).double()
    x, memory = torch.randn(3, 7, 24), torch.randn(3, 11, 24)
    if not batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    padding = torch.arange(11) >= torch.tensor([[11], [4], [7]])
    options = {"tgt_is_causal": True, "memory_key_padding_mask": padding}
    y = layer(x, memory, tgt_mask=causal, **options)
    close(y, truth(x.double(), memory.double(), tgt_mask=causal.double(), **options))
    close(layer.to_dense()(x, memory), truth(x.double(), memory.double()))
