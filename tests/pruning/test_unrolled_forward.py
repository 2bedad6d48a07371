"""Attention, convolutions, cells and experts as linear layers compute the same values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from expert_models import KINDS as EXPERT_KINDS
from expert_models import experts, routed
from torch import Tensor, nn
from unrolled_modules import ATTENTION, CELLS, CONVS, attention, conv

from sparse_engine.pruning.unrolled import unrolled


def close(found: Any, truth: Any) -> None:
    if truth is None or found is None:
        assert found is truth
    elif isinstance(truth, tuple):
        for a, b in zip(found, truth, strict=True):
            close(a, b)
    else:
        assert found.shape == truth.shape
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


def both(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The module and its unrolled self compute the same, in float64."""
    wide = copy.deepcopy(module).double()
    torch.manual_seed(1)
    truth = wide(*args, **kwargs)
    with unrolled(wide):
        torch.manual_seed(1)
        close(wide(*args, **kwargs), truth)
    close(wide(*args, **kwargs), truth)


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_computes_the_same(kind: str, need_weights: bool) -> None:
    layer = attention(kind)
    first = layer.batch_first
    query, key, value = (
        states(3, length, width) if first else states(length, 3, width)
        for length, width in ((5, 16), (7, layer.kdim), (7, layer.vdim))
    )
    padding = torch.arange(7) >= torch.tensor([7, 4, 2])[:, None]
    floats = torch.zeros(3, 7, dtype=torch.float64).masked_fill(padding, float("-inf"))
    hidden = torch.rand(5, 7) < 0.3
    hidden[:, 0] = False
    for masks in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": hidden},
        {"attn_mask": states(5, 7)},
        {"attn_mask": hidden.expand(12, 5, 7), "key_padding_mask": padding},
        {"attn_mask": states(12, 5, 7), "key_padding_mask": floats},
    ):
        both(layer, query, key, value, need_weights=need_weights, **masks)
    both(layer, query, key, value, average_attn_weights=False, need_weights=need_weights)
    at = 0 if first else 1
    one = [t.select(at, 0) for t in (query, key, value)]
    both(layer, *one, need_weights=need_weights, key_padding_mask=padding[1], attn_mask=hidden)


@pytest.mark.parametrize("kind", ["plain", "batch first"])
def test_self_attention_reads_one_tensor_and_takes_hints(kind: str) -> None:
    layer = attention(kind)
    x = states(6, 6, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    for need_weights in (True, False):
        both(layer, x, x, x, attn_mask=causal, is_causal=True, need_weights=need_weights)
        both(layer, x, x, x, attn_mask=causal < 0, need_weights=need_weights)
    seen: list[int] = []
    with unrolled(layer.double()):
        for name in ("q_proj", "k_proj", "v_proj"):
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, args: seen.append(id(args[0]))
            )
        layer(x, x, x)
    assert seen == [id(x)] * 3


@pytest.mark.parametrize("kind", CONVS)
def test_convolutions_compute_the_same(kind: str) -> None:
    layer = conv(kind)
    both(layer, states(3, 8, 20))
    both(layer, states(8, 15))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_compute_the_same(kind: str, bias: bool) -> None:
    cell = CELLS[kind](bias=bias)
    state = states(3, 12)
    pair = (state, states(3, 12)) if kind == "lstm" else state
    one = tuple(t[0] for t in pair) if isinstance(pair, tuple) else state[0]
    both(cell, states(3, 8))
    both(cell, states(3, 8), pair)
    both(cell, states(8), one)


@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_experts_compute_the_same(kind: str) -> None:
    torch.manual_seed(0)
    layer = experts(kind)
    hidden, index, weights = routed()
    both(layer, hidden.double(), index, weights.double())


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_stacks_show_every_layer(norm_first: bool, padded: bool) -> None:
    """torch's fused layers and nested tensors would read weights without running the modules."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    mask = torch.arange(7) >= torch.tensor([7, 4, 2])[:, None] if padded else None
    x = torch.randn(3, 7, 16)
    keep = ~mask if mask is not None else torch.ones(3, 7, dtype=torch.bool)
    with torch.no_grad():
        truth = model(x, src_key_padding_mask=mask)
        before = torch.backends.mha.get_fastpath_enabled()
        with unrolled(model):
            ran: set[str] = set()
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_pre_hook(lambda _, args, name=name: ran.add(name))
            found = model(x, src_key_padding_mask=mask)
        assert torch.backends.mha.get_fastpath_enabled() == before
        assert len(ran) == 12
        assert "layers.1.self_attn.q_proj" in ran
        torch.testing.assert_close(found[keep], truth[keep], rtol=1e-5, atol=1e-5)


def test_dropout_is_that_of_the_mode_it_is_run_in() -> None:
    network = nn.LSTM(8, 8, 2, dropout=0.5).train()
    model = nn.Sequential(network)
    x = torch.randn(5, 3, 8)
    with unrolled(model):
        model.eval()
        truth = model(x)[0]
        assert torch.equal(truth, model(x)[0])
    assert not model[0].training
