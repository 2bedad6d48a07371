"""The layers of stack_cases in float64, as their formulas say: slow, and without any kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from stack_cases import PLACES, angles, layer_config, position_bias
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.packings import QuadRuns


class Reference:
    """One sequence in float64, as the formulas say."""

    def __init__(
        self,
        config: dict[str, Any],
        layers: list[dict[str, Any]],
        int8: bool = False,
        memory: Tensor | None = None,
        kept: torch.dtype = torch.float64,
    ) -> None:
        """kept: the dtype that keys and values are rounded to."""
        self.config, self.layers, self.memory, self.kept = config, layers, memory, kept
        # Builder keeps these in float32.
        hidden = config["hidden"]
        exact = {id(pair[0]) for pair in layers[-1].values() if len(pair[0]) == hidden}
        self.rounded = lambda weight: int8 and id(weight) not in exact

    def run(self, x: Tensor) -> Tensor:
        x = x.double()
        for i, layer in enumerate(self.layers):
            x = self.layer(layer_config(self.config, i), layer, x)
        if not self.config["final"]:
            return x
        last = layer_config(self.config, len(self.layers) - 1)
        return self.norm(last, self.layers[-1]["final"], x)

    def layer(self, config: dict[str, Any], layer: dict[str, Any], x: Tensor) -> Tensor:
        parts = {"attention": self.attention, "cross": self.cross, "ff": self.feed_forward}
        # The sum of both outputs; the feed-forward is added first.
        first = x if config["parallel"] else None
        for part, compute in reversed(parts.items()) if config["parallel"] else parts.items():
            if part == "cross" and not config["cross"]:
                continue
            norms = {
                place: layer[f"{part}.{place}"] if place in config["norms"] else None
                for place in PLACES
            }
            read = x if first is None else first
            y = compute(config, layer, self.norm(config, norms["input"], read))
            x = self.norm(config, norms["sum"], x + self.norm(config, norms["output"], y))
        return x

    def linear(self, pair: tuple[Tensor, Tensor | None], x: Tensor) -> Tensor:
        weight = pair[0]
        if self.rounded(weight):
            weight = QuadRuns.from_dense(weight).to_dense()
            scale = x.abs().amax(-1, keepdim=True) / 127
            x = (x / scale).round() * scale
        return F.linear(x, weight.double(), None if pair[1] is None else pair[1].double())

    def norm(
        self, config: dict[str, Any], pair: tuple[Tensor, Tensor | None] | None, x: Tensor
    ) -> Tensor:
        if pair is None:
            return x
        centred = x if config["rms"] else x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * pair[0].double()
        return y if pair[1] is None else y + pair[1].double()

    def attention(self, config: dict[str, Any], layer: dict[str, Any], x: Tensor) -> Tensor:
        q, k, v = (
            self.linear(layer[n], x).view(len(x), -1, config["head"])
            for n in ("query", "key", "value")
        )
        q, k = (self.rotated(config, layer[f"{n}_norm"], y) for n, y in (("query", q), ("key", k)))
        distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
        added = torch.zeros(1, len(x), len(x)).double()
        bias = position_bias(config)
        if bias is not None:
            added = bias.double()[:, distance + 199]
        if config["causal"]:
            added = added.masked_fill(distance < 0, -math.inf)
        if config["window"]:
            added = added.masked_fill(distance.abs() >= config["window"], -math.inf)
        return self.linear(layer["output"], self.mixed(config, q, k, v, added))

    def rotated(self, config: dict[str, Any], norm: Any, x: Tensor) -> Tensor:
        """x [tokens, heads, head], normed, and rotated as complex numbers."""
        x, half = self.norm(config, norm if config["head norms"] else None, x), config["half"]
        turn = torch.polar(torch.ones(()).double(), angles(config)[: len(x), None].double())
        y = torch.complex(x[..., :half], x[..., half : 2 * half]) * turn
        return torch.cat([y.real, y.imag, x[..., 2 * half :]], -1)

    def mixed(
        self, config: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, added: Tensor
    ) -> Tensor:
        share = config["heads"] // config["key_heads"]
        k, v = (kv.to(self.kept).double().repeat_interleave(share, 1) for kv in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) * config["scale"]
        if config["soft cap"]:
            scores = config["soft cap"] * (scores / config["soft cap"]).tanh()
        scores = scores + added
        return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)

    def cross(self, config: dict[str, Any], layer: dict[str, Any], x: Tensor) -> Tensor:
        assert self.memory is not None
        config, source = config | config["cross sizes"], self.memory.double()
        q, k, v = (
            self.linear(layer[f"cross_{n}"], y).unflatten(1, (-1, config["head"]))
            for n, y in (("query", x), ("key", source), ("value", source))
        )
        nothing = torch.zeros(()).double()
        return self.linear(layer["cross_output"], self.mixed(config, q, k, v, nothing))

    def feed_forward(self, config: dict[str, Any], layer: dict[str, Any], x: Tensor) -> Tensor:
        act = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[config["activation"]]
        up = self.linear(layer["up"], x)
        inner = act(self.linear(layer["gate"], x)) * up if config["gated"] else act(up)
        return self.linear(layer["down"], inner)


def reference(
    config: dict[str, Any], layers: list[dict[str, Any]], x: Tensor, **options: Any
) -> Tensor:
    """One sequence [tokens, hidden] in float64; options of Reference."""
    return Reference(config, layers, **options).run(x)
