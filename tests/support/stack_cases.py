"""What the tests of native stacks share: random layers, the same natively, and the truth in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.ops import weight_handle
from sparse_engine.packings import Bits, Bits8, PackedSellP, QuadRuns, Runs, SellP8, Strips

ISAS = _core.presets()
CONFIG = {
    "hidden": 20,
    "heads": 4,
    "key_heads": 4,
    "head": 5,
    "inner": 33,
    "activation": "gelu",
    "norm_first": False,
    "causal": False,
    "window": 0,
    "scale": 5**-0.5,
    "bias": None,
    "rms": False,
    "gated": False,
    "half": 0,
    "head norms": False,
    "last": False,
    "stacked": False,
    "cross": False,
}
# What `native` and `reference` know, and the library is not told by these names.
CROSS = ("cross_query", "cross_key", "cross_value", "cross_output", "cross_norm")
OWN = ("rms", "gated", "half", "head norms", "last", "stacked", "cross")
LLAMA = {
    "causal": True,
    "heads": 8,
    "key_heads": 2,
    "head": 6,
    "half": 3,
    "gated": True,
    "rms": True,
    "norm_first": True,
    "activation": "silu",
    "last": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"norm_first": True, "activation": "relu"},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 7},
    "grouped heads": {"key_heads": 2},
    "gated rms": {"gated": True, "rms": True, "norm_first": True, "activation": "silu"},
    "position bias": {"bias": True},
    "rotary": {"half": 2},
    "llama": LLAMA,
    "head norms": LLAMA | {"head norms": True, "heads": 7, "key_heads": 1},
    "stacked": {"stacked": True, "causal": True, "norm_first": True, "last": True},
    "odd sizes": {"hidden": 97, "heads": 1, "key_heads": 1, "head": 17, "inner": 3},
}


def make(config: dict[str, Any], layers: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Random weights; the second of three layers is packed as strips."""
    generator = torch.Generator().manual_seed(3)
    hidden, inner = config["hidden"], config["inner"]
    queries, keys = config["heads"] * config["head"], config["key_heads"] * config["head"]
    shapes = {"query": (queries, hidden), "key": (keys, hidden), "value": (keys, hidden)}
    shapes |= {"output": (hidden, queries), "gate": (inner, hidden), "up": (inner, hidden)}
    shapes |= {"down": (hidden, inner)}
    if config["cross"]:
        shapes |= {"cross_query": (queries, hidden), "cross_output": (hidden, queries)}
        shapes |= {"cross_key": (keys, hidden), "cross_value": (keys, hidden)}
    made = []
    for _ in range(layers):
        layer: dict[str, Any] = {}
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator) / math.sqrt(0.3 * shape[1])
            weight[torch.rand(shape, generator=generator) < 0.7] = 0
            bias = None if name == "key" else torch.randn(shape[0], generator=generator)
            layer[name] = weight.to(dtype), bias
        sizes = {"norm1": hidden, "norm2": hidden, "last": hidden}
        sizes |= {"query_norm": config["head"], "key_norm": config["head"]}
        if config["cross"]:
            sizes["cross_norm"] = hidden
        for name, size in sizes.items():
            gamma, beta = torch.randn(2, size, generator=generator)
            layer[name] = gamma, None if config["rms"] else beta
        made.append(layer)
    return made


def position_bias(config: dict[str, Any], reach: int = 200) -> Tensor | None:
    if not config["bias"]:
        return None
    return torch.randn(config["heads"], 2 * reach - 1, generator=torch.Generator().manual_seed(4))


def angles(config: dict[str, Any], positions: int = 400) -> Tensor:
    return torch.arange(positions)[:, None] * 0.7 ** torch.arange(1, 1 + config["half"])


def pack(i: int, weight: Tensor, int8: bool) -> tuple[Any, Any]:
    """For panels, and for rows."""
    if int8:
        rows = Bits8.from_dense(weight) if i % 2 else SellP8.from_dense(weight)
        return QuadRuns.from_dense(weight), rows
    if i == 1:
        strips = Strips.from_dense(weight, height=3)
        return strips, strips
    rows = (PackedSellP, Bits)[len(weight) % 2].from_dense(weight)
    return Runs.from_dense(weight), rows


def norm_of(config: dict[str, Any], pair: tuple[Tensor, Tensor | None]) -> tuple[Any, ...]:
    gamma, beta = pair
    return gamma.numpy(), None if beta is None else beta.numpy(), 1e-5, config["rms"]


def native(
    config: dict[str, Any], layers: list[dict[str, Any]], int8: bool = False, panels: bool = True
) -> _core.Stack:
    def linear(i: int, pair: tuple[Tensor, Tensor | None]) -> tuple[Any, ...]:
        weight, bias = pair
        # int8 beside float products in one layer, too.
        packed = pack(i, weight, int8 and (i, len(weight)) != (2, config["hidden"]))
        many, few = map(weight_handle, packed)
        return many if panels else None, few, None if bias is None else bias.numpy()

    given = []
    for i, layer in enumerate(layers):
        one = {
            name: norm_of(config, pair) if "norm" in name else linear(i, pair)
            for name, pair in layer.items()
            if name != "last"
        }
        if not config["head norms"]:
            one |= {"query_norm": None, "key_norm": None}
        if not config["gated"]:
            one["gate"] = None
        one = dict.fromkeys(CROSS) | one
        if config["stacked"]:
            pairs = [layer[name] for name in ("query", "key", "value")]
            biases = [torch.zeros(len(w)) if b is None else b for w, b in pairs]
            one["query"] = linear(i, (torch.cat([w for w, _ in pairs]), torch.cat(biases)))
            one |= {"key": None, "value": None}
        given.append(one)
    bias = position_bias(config)
    turned = angles(config)
    told = {k: v for k, v in config.items() if k not in OWN}
    told |= {"activation": _core.ACTIVATIONS[config["activation"]]}
    told |= {"bias": None if bias is None else bias.numpy()}
    told |= {"rotary": (turned.cos().numpy(), turned.sin().numpy()) if config["half"] else None}
    told |= {"last": norm_of(config, layers[-1]["last"]) if config["last"] else None}
    return _core.Stack(told, given)


def run(
    stack: _core.Stack,
    x: Tensor,
    lengths: list[int],
    isa: str | None = None,
    cache: _core.KvCache | None = None,
) -> Tensor:
    """The result, written over NaN."""
    y = torch.full_like(x, math.nan)
    before = cache.lengths if cache else [0] * len(lengths)
    positions = [torch.arange(b, b + n) for b, n in zip(before, lengths, strict=True)]
    stack.run(x.numpy(), lengths, y.numpy(), cache, torch.cat(positions).numpy(), isa=isa)
    return y


def reference(
    config: dict[str, Any],
    layers: list[dict[str, Any]],
    x: Tensor,
    int8: bool = False,
    memory: Tensor | None = None,
    kept: torch.dtype = torch.float64,
) -> Tensor:
    """One sequence [tokens, hidden], float64, as the formulas say; `kept`: of keys and values."""
    last = {id(pair[0]) for pair in layers[-1].values() if len(pair[0]) == config["hidden"]}

    def linear(pair: tuple[Tensor, Tensor | None], x: Tensor) -> Tensor:
        weight = pair[0]
        if int8 and id(weight) not in last:
            weight = QuadRuns.from_dense(weight).to_dense()
            scale = x.abs().amax(-1, keepdim=True) / 127
            x = (x / scale).round() * scale
        return F.linear(x, weight.double(), None if pair[1] is None else pair[1].double())

    def norm(pair: tuple[Tensor, Tensor | None], x: Tensor) -> Tensor:
        centred = x if config["rms"] else x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * pair[0].double()
        return y if pair[1] is None else y + pair[1].double()

    act = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[config["activation"]]
    tokens = len(x)
    turn = torch.polar(torch.ones(()).double(), angles(config)[:tokens, None].double())

    def rotated(layer: dict[str, Any], name: str, x: Tensor) -> Tensor:
        """x [tokens, heads, head], normed and turned as complex numbers."""
        x, half = norm(layer[name], x) if config["head norms"] else x, config["half"]
        y = torch.complex(x[..., :half], x[..., half : 2 * half]) * turn
        return torch.cat([y.real, y.imag, x[..., 2 * half :]], -1)

    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    bias = position_bias(config)

    def attention(layer: dict[str, Any], x: Tensor) -> Tensor:
        q, k, v = (
            linear(layer[n], x).view(tokens, -1, config["head"]) for n in ("query", "key", "value")
        )
        q, k = rotated(layer, "query_norm", q), rotated(layer, "key_norm", k)
        share = config["heads"] // config["key_heads"]
        k, v = (kv.to(kept).double().repeat_interleave(share, 1) for kv in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) * config["scale"]
        if bias is not None:
            scores += bias.double()[:, distance + 199]
        if config["causal"]:
            scores.masked_fill_(distance < 0, -math.inf)
        if config["window"]:
            scores.masked_fill_(distance >= config["window"], -math.inf)
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)
        return linear(layer["output"], mixed.reshape(tokens, -1))

    def cross(layer: dict[str, Any], x: Tensor) -> Tensor:
        assert memory is not None
        share = config["heads"] // config["key_heads"]
        q, k, v = (
            linear(layer[f"cross_{n}"], y).unflatten(1, (-1, config["head"]))
            for n, y in (("query", x), ("key", memory.double()), ("value", memory.double()))
        )
        k, v = (kv.to(kept).double().repeat_interleave(share, 1) for kv in (k, v))
        shares = (torch.einsum("ihd,jhd->hij", q, k) * config["scale"]).softmax(-1)
        return linear(layer["cross_output"], torch.einsum("hij,jhd->ihd", shares, v).flatten(1))

    def feed_forward(layer: dict[str, Any], x: Tensor) -> Tensor:
        if config["gated"]:
            return linear(layer["down"], act(linear(layer["gate"], x)) * linear(layer["up"], x))
        return linear(layer["down"], act(linear(layer["up"], x)))

    x = x.double()
    for layer in layers:
        if config["norm_first"]:
            x = x + attention(layer, norm(layer["norm1"], x))
            if config["cross"]:
                x = x + cross(layer, norm(layer["cross_norm"], x))
            x = x + feed_forward(layer, norm(layer["norm2"], x))
        else:
            x = norm(layer["norm1"], x + attention(layer, x))
            if config["cross"]:
                x = norm(layer["cross_norm"], x + cross(layer, x))
            x = norm(layer["norm2"], x + feed_forward(layer, x))
    return norm(layers[-1]["last"], x) if config["last"] else x


def error_of(y: Tensor, expected: Tensor) -> float:
    """Relative, in the maximum norm; NaN where y has one."""
    return float((y.double() - expected).abs().max() / expected.abs().max()) if len(y) else 0.0


def cache_of(
    config: dict[str, Any], layers: int, sequences: int, dtype: str = "float32"
) -> _core.KvCache:
    return _core.KvCache(layers, config["key_heads"], config["head"], sequences, dtype)
