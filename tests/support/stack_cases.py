"""What the tests of native stacks share: random layers, and the same natively."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparse_engine import _core
from sparse_engine.ops import weight_handle
from sparse_engine.packings import (
    Bits,
    Bits8,
    Columns,
    Columns8,
    PackedSellP,
    PackedTiles,
    PackedTiles8,
    QuadRuns,
    Runs,
    SellP8,
    Strips,
)

ISAS = _core.presets()
PLACES = ("input", "output", "sum")
# Of a stack; `each` holds what is different in single layers, in turn.
CONFIG: dict[str, Any] = {
    "hidden": 20,
    "heads": 4,
    "key_heads": 4,
    "head": 5,
    "inner": 33,
    "activation": "gelu",
    "norms": ("sum",),  # of a sublayer: its input, its output, and the sum with the residual
    "causal": False,
    "window": 0,
    "scale": 5**-0.5,
    "soft cap": 0.0,
    "bias": False,
    "rms": False,
    "gated": False,
    "fused gate": False,  # gate and up in one weight
    "parallel": False,  # both sublayers read the same residual stream
    "half": 0,  # rotated features of a head / 2
    "base": 0.7,  # of rotary angles
    "head norms": False,
    "final": False,  # a norm after the last layer
    "stacked": False,  # query, key and value in one weight
    "interleaved": False,  # and there by key head
    "cross": False,
    "cross sizes": {},  # heads of cross attention, where they differ
    "each": ({},),
}
PRE = {"norms": ("input",)}
LLAMA = {
    "causal": True,
    "heads": 8,
    "key_heads": 2,
    "head": 6,
    "half": 3,
    "gated": True,
    "rms": True,
    "norms": ("input",),
    "activation": "silu",
    "final": True,
}
# Heads that were pruned, narrower feed-forwards, heads of another size.
UNEVEN = {
    "each": (
        {"heads": 6, "key_heads": 2, "head": 7, "inner": 9},
        {"heads": 1, "key_heads": 1, "head": 18, "inner": 70},
        {"heads": 4, "key_heads": 4, "head": 5, "inner": 1},
    )
}
VARIANTS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": PRE | {"activation": "relu"},
    "output norms": {"norms": ("output",), "rms": True},
    "sandwich norms": LLAMA | {"norms": ("input", "output")},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 7},
    "window both ways": {"window": 7},
    "wide window both ways": PRE | {"each": ({"window": 65}, {"window": 0}, {"window": 1})},
    "soft cap": LLAMA | {"soft cap": 1.5, "window": 9},
    "soft cap, encoder": {"soft cap": 0.7},
    "grouped heads": {"key_heads": 2},
    "gated rms": PRE | {"gated": True, "rms": True, "activation": "silu"},
    "position bias": {"bias": True},
    "rotary": {"half": 2},
    "llama": LLAMA,
    "head norms": LLAMA | {"head norms": True, "heads": 7, "key_heads": 1},
    "stacked": PRE | {"stacked": True, "causal": True, "final": True},
    "stacked groups": LLAMA | {"stacked": True},
    "interleaved": PRE | {"stacked": True, "interleaved": True, "causal": True, "half": 2},
    "interleaved groups": LLAMA | {"stacked": True, "interleaved": True, "head norms": True},
    "fused gate": LLAMA | {"fused gate": True, "inner": 131},
    "parallel": PRE | {"parallel": True, "causal": True, "stacked": True, "interleaved": True},
    "parallel encoder": LLAMA | {"parallel": True, "causal": False, "fused gate": True},
    "parallel, all norms": {"parallel": True, "causal": True, "norms": PLACES},
    "odd sizes": {"hidden": 97, "heads": 1, "key_heads": 1, "head": 17, "inner": 3},
    "uneven encoder": UNEVEN,
    "uneven decoder": PRE | UNEVEN | {"causal": True, "bias": True},
    "alternating windows": LLAMA | {"each": ({"window": 7}, {"window": 0}, {"window": 65})},
    "two rotary bases": LLAMA | {"each": ({"base": 0.7}, {"base": 0.95, "half": 2}, {"half": 0})},
    "mixed kinds": LLAMA
    | {
        "each": (
            {"norms": ("sum",), "gated": False, "activation": "relu", "stacked": True},
            {"norms": ("input", "output"), "rms": False, "heads": 3, "key_heads": 3, "window": 9},
            {"heads": 2, "key_heads": 1, "head": 24, "inner": 50, "base": 0.9, "half": 12},
        )
    },
}


def layer_config(config: dict[str, Any], i: int) -> dict[str, Any]:
    """The config of layer i."""
    return config | config["each"][i % len(config["each"])]


def make(config: dict[str, Any], layers: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Random weights and norms of each layer, by role."""
    generator = torch.Generator().manual_seed(3)
    return [make_layer(layer_config(config, i), dtype, generator) for i in range(layers)]


def make_layer(
    config: dict[str, Any], dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Any]:
    hidden, inner = config["hidden"], config["inner"]
    queries, keys = config["heads"] * config["head"], config["key_heads"] * config["head"]
    shapes = {"query": (queries, hidden), "key": (keys, hidden), "value": (keys, hidden)}
    shapes |= {"output": (hidden, queries), "gate": (inner, hidden), "up": (inner, hidden)}
    shapes |= {"down": (hidden, inner)}
    if config["cross"]:
        cross = config | config["cross sizes"]
        queries, keys = cross["heads"] * cross["head"], cross["key_heads"] * cross["head"]
        shapes |= {"cross_query": (queries, hidden), "cross_output": (hidden, queries)}
        shapes |= {"cross_key": (keys, hidden), "cross_value": (keys, hidden)}
    layer: dict[str, Any] = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator) / math.sqrt(0.3 * shape[1])
        weight[torch.rand(shape, generator=generator) < 0.7] = 0
        bias = None if name == "key" else torch.randn(shape[0], generator=generator)
        layer[name] = weight.to(dtype), bias
    sizes = {"final": hidden, "query_norm": config["head"], "key_norm": config["head"]}
    sizes |= {f"{part}.{place}": hidden for part in ("attention", "ff") for place in PLACES}
    if config["cross"]:
        sizes |= {f"cross.{place}": hidden for place in PLACES}
    for name, size in sizes.items():
        gamma, beta = torch.randn(2, size, generator=generator)
        layer[name] = gamma, None if config["rms"] else beta
    return layer


def position_bias(config: dict[str, Any], reach: int = 200) -> Tensor | None:
    if not config["bias"]:
        return None
    return torch.randn(config["heads"], 2 * reach - 1, generator=torch.Generator().manual_seed(4))


def angles(config: dict[str, Any], positions: int = 400) -> Tensor:
    powers = config["base"] ** torch.arange(1, 1 + config["half"])
    return torch.arange(positions)[:, None] * powers


def pack(i: int, weight: Tensor, int8: bool, layout: str) -> tuple[Any, Any]:
    """Packed for panels, and for rows; the second layer as strips.

    Args:
        i: The layer.
        weight: Of one of its linear layers.
        int8: Whether to quantise.
        layout: "tiles" for both, "columns" for panels of bfloat16 or int8, or none.
    """
    narrow = int8 or weight.dtype == torch.bfloat16
    if layout == "tiles" and narrow:
        both = (PackedTiles8 if int8 else PackedTiles).from_dense(weight)
        return both, both
    if layout == "columns" and narrow:
        height = (16, 32)[(i + len(weight)) % 2]
        columns = (Columns8 if int8 else Columns).from_dense(weight, height=height)
        return columns, (Bits8 if int8 else Bits).from_dense(weight)
    if int8:
        rows = Bits8.from_dense(weight) if i % 2 else SellP8.from_dense(weight)
        return QuadRuns.from_dense(weight), rows
    if i == 1:
        strips = Strips.from_dense(weight, height=3)
        return strips, strips
    rows = (PackedSellP, Bits)[len(weight) % 2].from_dense(weight)
    return Runs.from_dense(weight), rows


def norm_of(config: dict[str, Any], pair: tuple[Tensor, Tensor | None]) -> _core.Norm:
    gamma, beta = pair
    return _core.Norm(
        gamma=gamma.numpy(),
        beta=None if beta is None else beta.numpy(),
        epsilon=1e-5,
        rms=config["rms"],
    )


def interleaved(config: dict[str, Any], rows: Tensor) -> Tensor:
    """Rows of all queries, keys and values; then those of each key head, after its queries."""
    heads = rows.unflatten(0, (-1, config["head"]))
    queries, keys, values = heads.split([config["heads"], *[config["key_heads"]] * 2])
    queries = queries.unflatten(0, (config["key_heads"], -1))
    return torch.cat([queries, keys[:, None], values[:, None]], 1).flatten(0, 2)


def bound_of(dtype: torch.dtype, isa: str) -> float:
    """Of errors of weights in `dtype`; in bfloat16, attention rounds where there are tiles."""
    return 1e-2 if dtype == torch.bfloat16 and isa == "avx512_amx" else 2e-5


class Builder:
    """Builds the native layers of a config."""

    def __init__(
        self, config: dict[str, Any], int8: bool = False, panels: bool = True, layout: str = ""
    ) -> None:
        self.config, self.int8, self.panels, self.layout = config, int8, panels, layout
        self.tables: dict[tuple[float, int], _core.RotaryTable] = {}

    def linear(self, i: int, pair: tuple[Tensor, Tensor | None]) -> _core.LinearPair:
        weight, bias = pair
        # int8 beside float products in one layer, too.
        int8 = self.int8 and (i, len(weight)) != (2, self.config["hidden"])
        packed = pack(i, weight, int8, self.layout)
        many, few = map(weight_handle, packed)
        return _core.LinearPair(
            panels=many if self.panels else None,
            rows=few,
            bias=None if bias is None else bias.numpy(),
        )

    def rotary(self, config: dict[str, Any]) -> _core.RotaryTable | None:
        """The table of a base, which layers share."""
        if not config["half"]:
            return None
        key = config["base"], config["half"]
        if key not in self.tables:
            turned = angles(config)
            self.tables[key] = _core.RotaryTable(turned.cos().numpy(), turned.sin().numpy())
        return self.tables[key]

    def norms(self, config: dict[str, Any], layer: dict[str, Any], part: str) -> dict[str, Any]:
        return {
            f"{place}_norm": norm_of(config, layer[f"{part}.{place}"]) for place in config["norms"]
        }

    def attention(self, i: int, layer: dict[str, Any]) -> _core.Attention:
        config = layer_config(self.config, i)
        names = ("query", "key", "value")
        if config["stacked"]:
            pairs = [layer[name] for name in names]
            biases = [torch.zeros(len(w)) if b is None else b for w, b in pairs]
            stacked = torch.cat([w for w, _ in pairs]), torch.cat(biases)
            if config["interleaved"]:
                stacked = tuple(interleaved(config, rows) for rows in stacked)
            linears = {"query": self.linear(i, stacked)}
        else:
            linears = {name: self.linear(i, layer[name]) for name in names}
        heads = ("query_norm", "key_norm") if config["head norms"] else ()
        bias = position_bias(config)
        return _core.Attention(
            heads=config["heads"],
            key_heads=config["key_heads"],
            head_size=config["head"],
            output=self.linear(i, layer["output"]),
            interleaved=config["interleaved"],
            scale=config["scale"],
            soft_cap=config["soft cap"],
            causal=config["causal"],
            window=config["window"],
            rotary=self.rotary(config),
            position_bias=None if bias is None else _core.PositionBias(bias.numpy()),
            **linears,
            **{name: norm_of(config, layer[name]) for name in heads},
            **self.norms(config, layer, "attention"),
        )

    def cross(self, i: int, layer: dict[str, Any]) -> _core.Attention | None:
        config = layer_config(self.config, i)
        if not config["cross"]:
            return None
        config = config | config["cross sizes"]
        names = ("query", "key", "value", "output")
        return _core.Attention(
            heads=config["heads"],
            key_heads=config["key_heads"],
            head_size=config["head"],
            scale=config["scale"],
            **{name: self.linear(i, layer[f"cross_{name}"]) for name in names},
            **self.norms(config, layer, "cross"),
        )

    def feed_forward(self, i: int, layer: dict[str, Any]) -> _core.FeedForward:
        config = layer_config(self.config, i)
        gate, up = (layer[name] for name in ("gate", "up"))
        fused = config["fused gate"]
        if fused:
            up = tuple(map(torch.cat, zip(gate, up, strict=True)))
        return _core.FeedForward(
            gate=self.linear(i, gate) if config["gated"] and not fused else None,
            up=self.linear(i, up),
            fused_gate=fused,
            down=self.linear(i, layer["down"]),
            activation=config["activation"],
            **self.norms(config, layer, "ff"),
        )

    def layer(self, i: int, layer: dict[str, Any]) -> _core.Layer:
        return _core.Layer(
            attention=self.attention(i, layer),
            feed_forward=self.feed_forward(i, layer),
            cross_attention=self.cross(i, layer),
            parallel=layer_config(self.config, i)["parallel"],
        )


def native(
    config: dict[str, Any],
    layers: list[dict[str, Any]],
    int8: bool = False,
    panels: bool = True,
    layout: str = "",
) -> _core.Stack:
    builder = Builder(config, int8, panels, layout)
    final = norm_of(layer_config(config, len(layers) - 1), layers[-1]["final"])
    return _core.Stack(
        config["hidden"],
        [builder.layer(i, layer) for i, layer in enumerate(layers)],
        final if config["final"] else None,
    )


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


def error_of(y: Tensor, expected: Tensor) -> float:
    """Relative, in the maximum norm; NaN where y has one."""
    return float((y.double() - expected).abs().max() / expected.abs().max()) if len(y) else 0.0


def cache_of(
    config: dict[str, Any], layers: int, sequences: int, dtype: str = "float32"
) -> _core.KvCache:
    return _cache([layer_config(config, i) for i in range(layers)], sequences, dtype)


def memory_of(
    config: dict[str, Any], layers: int, sequences: int, dtype: str = "float32"
) -> _core.KvCache:
    """A cache of what cross attention reads."""
    configs = [layer_config(config, i) for i in range(layers)]
    return _cache([config | config["cross sizes"] for config in configs], sequences, dtype)


def _cache(configs: list[dict[str, Any]], sequences: int, dtype: str) -> _core.KvCache:
    heads = [(config["key_heads"], config["head"]) for config in configs]
    return _core.KvCache(heads, sequences, dtype)
