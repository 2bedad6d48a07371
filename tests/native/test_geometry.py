"""Stacks of modules whose layers have other sizes: heads and widths are those of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine import _core
from sparse_engine.models import (
    AttentionNames,
    FeedForwardNames,
    LayerGeometry,
    LayerNames,
    LayerStack,
)
from sparse_engine.nn import NativeDecoder, NativeEncoder

HEAD = 6
NAMES = LayerNames(
    AttentionNames(query="q", key="k", value="v", output="o", sum_norm="norm1"),
    FeedForwardNames(up="up", down="down", sum_norm="norm2"),
)
# Heads, heads of keys and features of the feed-forward, as pruning of heads and units leaves them.
SIZES = ((4, 4, 40), (1, 1, 7), (6, 2, 25))


class Layer(nn.Module):
    """A post-norm layer of torch's own modules."""

    def __init__(self, heads: int, key_heads: int, inner: int, causal: bool) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(24, heads * HEAD), nn.Linear(heads * HEAD, 24)
        self.k, self.v = (nn.Linear(24, key_heads * HEAD) for _ in range(2))
        self.up, self.down = nn.Linear(24, inner), nn.Linear(inner, 24)
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.causal, self.share = causal, heads // key_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [batch, seq, hidden]."""
        q, k, v = (p(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.share, 1) for t in (k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = self.norm1(x + self.o(y.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


def holder(causal: bool) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Module()
    module.layers = nn.ModuleList([Layer(*sizes, causal) for sizes in SIZES])
    module.embed = nn.Embedding(50, 24)
    return module.eval().requires_grad_(False)


def stack_of(causal: bool) -> LayerStack:
    return LayerStack(
        tuple(f"layers.{i}" for i in range(3)),
        NAMES,
        tuple(LayerGeometry(HEAD, "gelu") for _ in SIZES),
        hidden=24,
        causal=causal,
        reach=300,
        embedding="embed" if causal else None,
    )


def test_an_encoder_of_uneven_layers() -> None:
    module, x = holder(causal=False), torch.randn(3, 70, 24)
    expected = x
    for layer in module.layers:
        expected = layer(expected)
    for layer in module.layers:
        se.sparsify_(layer, "csr")
    encoder = NativeEncoder(module, stack_of(causal=False))
    torch.testing.assert_close(encoder.encode(x), expected, atol=1e-5, rtol=1e-5)
    assert encoder.native().kv_heads == [(4, HEAD), (1, HEAD), (2, HEAD)]


def test_a_decoder_of_uneven_layers_with_a_cache() -> None:
    pytest.importorskip("transformers")
    from sparse_engine.nn.native.cache import NativeCacheLayer

    module, ids = holder(causal=True), torch.randint(50, (2, 70))
    expected = module.embed(ids)
    for layer in module.layers:
        expected = layer(expected)
    for layer in module.layers:
        se.sparsify_(layer, "bitmask")
    decoder = NativeDecoder(module, stack_of(causal=True))
    heads = [(4, HEAD), (1, HEAD), (2, HEAD)]
    assert decoder.native().kv_heads == heads
    layer = NativeCacheLayer(_core.KvCache(heads, 2), decoder)
    parts = ids.split([66, 1, 3], 1)
    found = [decoder.decode(part, None, None, None, layer) for part in parts]
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)
