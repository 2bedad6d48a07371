"""The native encoder against float64: every ISA, ragged batches, and all that a layer may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.ops import weight_handle
from sparse_engine.ops.native import ACTIVATION_CODES
from sparse_engine.packings import Bits, QuadRuns, Runs, Strips

ISAS = ["scalar", "avx2", "avx512", "avx512_vnni", "avx512_vbmi2", "avx512_bf16"]
ISAS = ISAS[: ISAS.index(_core.detected_isa()) + 1]
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
}
VARIANTS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"norm_first": True, "activation": "relu"},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 7},
    "grouped heads": {"key_heads": 2},
    "gated rms": {"gated": True, "rms": True, "norm_first": True, "activation": "silu"},
    "position bias": {"bias": True},
    "odd sizes": {"hidden": 97, "heads": 1, "key_heads": 1, "head": 17, "inner": 3},
}
LENGTHS = (
    [1],
    [0, 3, 0],
    [16],
    [17, 1, 40],
    [64, 64],
    [130],
    [5] * 29,
    [200, 63, 1, 70, 90, 12, 90],
)


def make(config: dict[str, Any], layers: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Random weights; the second of three layers is packed as strips."""
    generator = torch.Generator().manual_seed(3)
    hidden, inner = config["hidden"], config["inner"]
    queries, keys = config["heads"] * config["head"], config["key_heads"] * config["head"]
    shapes = {"query": (queries, hidden), "key": (keys, hidden), "value": (keys, hidden)}
    shapes |= {"output": (hidden, queries), "gate": (inner, hidden), "up": (inner, hidden)}
    shapes |= {"down": (hidden, inner)}
    made = []
    for _ in range(layers):
        layer: dict[str, Any] = {}
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator) / math.sqrt(0.3 * shape[1])
            weight[torch.rand(shape, generator=generator) < 0.7] = 0
            bias = None if name == "key" else torch.randn(shape[0], generator=generator)
            layer[name] = weight.to(dtype), bias
        for name in ("norm1", "norm2"):
            gamma, beta = torch.randn(2, hidden, generator=generator)
            layer[name] = gamma, None if config["rms"] else beta
        made.append(layer)
    return made


def position_bias(config: dict[str, Any], reach: int = 200) -> Tensor | None:
    if not config["bias"]:
        return None
    return torch.randn(config["heads"], 2 * reach - 1, generator=torch.Generator().manual_seed(4))


def pack(i: int, weight: Tensor, int8: bool) -> Runs | Strips:
    if int8:
        return QuadRuns.from_dense(weight)
    return Strips.from_dense(weight, height=3) if i == 1 else Runs.from_dense(weight)


def native(
    config: dict[str, Any], layers: list[dict[str, Any]], int8: bool = False
) -> _core.Encoder:
    def linear(i: int, pair: tuple[Tensor, Tensor | None]) -> tuple[_core.Weight, Any]:
        weight, bias = pair
        # int8 beside float products in one layer, too.
        packed = pack(i, weight, int8 and (i, len(weight)) != (2, config["hidden"]))
        return weight_handle(packed), None if bias is None else bias.numpy()

    given = []
    for i, layer in enumerate(layers):
        one: dict[str, Any] = {}
        for name, pair in layer.items():
            if name.startswith("norm"):
                gamma, beta = pair
                one[name] = (
                    gamma.numpy(),
                    None if beta is None else beta.numpy(),
                    1e-5,
                    config["rms"],
                )
            else:
                one[name] = linear(i, pair)
        if not config["gated"]:
            one["gate"] = None
        given.append(one)
    bias = position_bias(config)
    told = {k: v for k, v in config.items() if k not in ("rms", "gated")}
    told |= {"activation": ACTIVATION_CODES[config["activation"]]}
    told |= {"bias": None if bias is None else bias.numpy()}
    return _core.Encoder(told, given)


def reference(
    config: dict[str, Any], layers: list[dict[str, Any]], x: Tensor, int8: bool = False
) -> Tensor:
    """One sequence [tokens, hidden], float64, as the formulas say."""
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
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    bias = position_bias(config)

    def attention(layer: dict[str, Any], x: Tensor) -> Tensor:
        q, k, v = (
            linear(layer[n], x).view(tokens, -1, config["head"]) for n in ("query", "key", "value")
        )
        share = config["heads"] // config["key_heads"]
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = torch.einsum("ihd,jhd->hij", q, k) * config["scale"]
        if bias is not None:
            scores += bias.double()[:, distance + 199]
        if config["causal"]:
            scores.masked_fill_(distance < 0, -math.inf)
        if config["window"]:
            scores.masked_fill_(distance >= config["window"], -math.inf)
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)
        return linear(layer["output"], mixed.reshape(tokens, -1))

    def feed_forward(layer: dict[str, Any], x: Tensor) -> Tensor:
        if config["gated"]:
            return linear(layer["down"], act(linear(layer["gate"], x)) * linear(layer["up"], x))
        return linear(layer["down"], act(linear(layer["up"], x)))

    x = x.double()
    for layer in layers:
        if config["norm_first"]:
            x = x + attention(layer, norm(layer["norm1"], x))
            x = x + feed_forward(layer, norm(layer["norm2"], x))
        else:
            x = norm(layer["norm1"], x + attention(layer, x))
            x = norm(layer["norm2"], x + feed_forward(layer, x))
    return x


def check(variant: str, isa: str, lengths: list[int], dtype: torch.dtype = torch.float32) -> None:
    config = CONFIG | VARIANTS[variant]
    layers = make(config, 3, dtype)
    x = torch.randn(sum(lengths), config["hidden"], generator=torch.Generator().manual_seed(5))
    y = torch.full_like(x, math.nan)
    native(config, layers).encode(x.numpy(), lengths, y.numpy(), isa)
    expected = torch.cat(
        [reference(config, layers, part) for part in x.split(lengths) if len(part)]
    )
    error = (
        (y.double() - expected).abs().max() / expected.abs().max() if len(x) else torch.zeros(())
    )
    assert error < 2e-5, (variant, lengths, float(error))  # NaN fails too


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_follow_their_formulas(variant: str, isa: str) -> None:
    check(variant, isa, [17, 1, 70, 64])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_sequences_of_any_length(lengths: list[int], isa: str) -> None:
    check("post-norm", isa, lengths)
    check("window", isa, lengths)


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_weights(isa: str) -> None:
    check("pre-norm", isa, [33, 60], torch.bfloat16)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", ["post-norm", "gated rms", "odd sizes"])
def test_int8_weights_and_activations(variant: str, isa: str) -> None:
    """As in float64 with both quantised; a value next to a tie may round the other way."""
    config = CONFIG | VARIANTS[variant]
    layers = make(config, 3, torch.float32)
    lengths = [33, 0, 60, 64, 1, 290]
    x = torch.randn(sum(lengths), config["hidden"], generator=torch.Generator().manual_seed(5))
    y = torch.full_like(x, math.nan)
    native(config, layers, int8=True).encode(x.numpy(), lengths, y.numpy(), isa)
    parts = [reference(config, layers, part, int8=True) for part in x.split(lengths) if len(part)]
    expected = torch.cat(parts)
    far = (y.double() - expected).abs() / expected.abs().max()
    assert far.max() < 5e-2
    assert far.median() < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    config, before = CONFIG | {"causal": True}, torch.get_num_threads()
    encoder = native(config, make(config, 3, torch.float32))
    x = torch.randn(400, 20)
    one, many = torch.empty_like(x), torch.full_like(x, math.nan)
    try:
        torch.set_num_threads(1)
        encoder.encode(x.numpy(), [300, 100], one.numpy())
        torch.set_num_threads(threads)
        encoder.encode(x.numpy(), [300, 100], many.numpy())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, many)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    config = CONFIG | {"norm_first": True}
    layers = make(config, 1, torch.float32)
    x = torch.randn(9, 20) + 1000.0
    y = torch.empty_like(x)
    native(config, layers).encode(x.numpy(), [9], y.numpy())
    expected = reference(config, layers, x)
    assert (y - expected).abs().max() < 1e-3  # of values around 1000: 1e-6 of them


def test_scores_far_apart_and_nan() -> None:
    config = dict(CONFIG)
    layers = make(config, 1, torch.float32)
    weight, bias = layers[0]["query"]
    layers[0]["query"] = weight * 1e4, bias
    x = torch.randn(90, 20)
    y = torch.empty_like(x)
    encoder = native(config, layers)
    encoder.encode(x.numpy(), [90], y.numpy())
    assert torch.isfinite(y).all()
    x[3, 2] = math.nan
    encoder.encode(x.numpy(), [50, 40], y.numpy())
    assert y[:50].isnan().any()
    assert torch.isfinite(y[50:]).all()  # another sequence


def bad(change: dict[str, Any], layer: dict[str, Any] | None = None) -> None:
    config = CONFIG | {"activation": 2} | change
    told = {k: v for k, v in config.items() if k not in ("rms", "gated")}
    made = make(CONFIG, 1, torch.float32)[0]
    given: dict[str, Any] = {
        name: (pair[0].numpy(), pair[1].numpy(), 1e-5, False)
        if name.startswith("norm")
        else (weight_handle(Runs.from_dense(pair[0])), None if pair[1] is None else pair[1].numpy())
        for name, pair in made.items()
    }
    _core.Encoder(told, [{**given, "gate": None, **(layer or {})}])


def test_bad_encoders_are_refused() -> None:
    bad({})
    weight = torch.randn(20, 20)
    for change in ({"hidden": 0}, {"heads": 3}, {"key_heads": 3}, {"activation": 9}, {"more": 1}):
        with pytest.raises((ValueError, RuntimeError)):
            bad(change)
    for layer in (
        {"up": (weight_handle(Runs.from_dense(weight)), None)},
        {"query": None},
        {"query": (weight_handle(Bits.from_dense(weight)), None)},
        {"query": (weight_handle(Runs.from_dense(weight)), np.zeros(3, np.float32))},
        {"norm1": (np.zeros(3, np.float32), None, 1e-5, False)},
    ):
        with pytest.raises(ValueError, match="encoder"):
            bad({}, layer)


def test_bad_inputs_are_refused() -> None:
    config = CONFIG | {"bias": True}
    encoder = native(config, make(config, 1, torch.float32))
    x = np.zeros((5, 20), np.float32)
    for lengths, rows in (
        ([6], x),
        ([-1, 6], x),
        ([5], x[:, :19].copy()),
        ([300], np.zeros((300, 20), "f")),
    ):
        with pytest.raises(ValueError, match=r"length|longer|must be"):
            encoder.encode(rows, lengths, np.empty_like(rows))
    with pytest.raises(TypeError):
        encoder.encode(x.astype(np.float64), [5], x)
