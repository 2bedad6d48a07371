"""Stacks of layers against float64: every ISA, ragged batches, caches, and all that a layer may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.formats import SellP
from sparse_engine.ops import weight_handle
from sparse_engine.ops.native import ACTIVATION_CODES
from sparse_engine.packings import Bits, Bits8, QuadRuns, Runs, SellP8, Strips

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
    rows = (SellP, Bits)[len(weight) % 2].from_dense(weight)
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
    told |= {"activation": ACTIVATION_CODES[config["activation"]]}
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

    def cross(layer: dict[str, Any], x: Tensor) -> Tensor:
        assert memory is not None
        share = config["heads"] // config["key_heads"]
        q, k, v = (
            linear(layer[f"cross_{n}"], y).unflatten(1, (-1, config["head"]))
            for n, y in (("query", x), ("key", memory.double()), ("value", memory.double()))
        )
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
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


def check(variant: str, isa: str, lengths: list[int], dtype: torch.dtype = torch.float32) -> None:
    config = CONFIG | VARIANTS[variant]
    layers = make(config, 3, dtype)
    x = torch.randn(sum(lengths), config["hidden"], generator=torch.Generator().manual_seed(5))
    y = run(native(config, layers), x, lengths, isa)
    expected = torch.cat(
        [reference(config, layers, part) for part in x.split(lengths) if len(part)]
    )
    assert error_of(y, expected) < 2e-5, (variant, lengths)  # NaN fails too


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
    y = run(native(config, layers, int8=True), x, lengths, isa)
    parts = [reference(config, layers, part, int8=True) for part in x.split(lengths) if len(part)]
    expected = torch.cat(parts)
    far = (y.double() - expected).abs() / expected.abs().max()
    assert far.max() < 5e-2
    assert far.median() < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    config, before = CONFIG | {"causal": True}, torch.get_num_threads()
    stack = native(config, make(config, 3, torch.float32))
    x = torch.randn(405, 20)

    def both() -> Tensor:
        cache = cache_of(config, 3, 2)
        steps = (
            run(stack, x[:400], [300, 100], cache=cache),
            run(stack, x[400:], [1, 4], cache=cache),
        )
        return torch.cat(steps)

    try:
        torch.set_num_threads(1)
        one = both()
        torch.set_num_threads(threads)
        many = both()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, many)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    config = CONFIG | {"norm_first": True}
    layers = make(config, 1, torch.float32)
    x = torch.randn(9, 20) + 1000.0
    y = run(native(config, layers), x, [9])
    expected = reference(config, layers, x)
    assert (y - expected).abs().max() < 1e-3  # of values around 1000: 1e-6 of them


def test_scores_far_apart_and_nan() -> None:
    config = dict(CONFIG)
    layers = make(config, 1, torch.float32)
    weight, bias = layers[0]["query"]
    layers[0]["query"] = weight * 1e4, bias
    x = torch.randn(90, 20)
    stack = native(config, layers)
    assert torch.isfinite(run(stack, x, [90])).all()
    x[3, 2] = math.nan
    y = run(stack, x, [50, 40])
    assert y[:50].isnan().any()
    assert torch.isfinite(y[50:]).all()  # another sequence


def cache_of(config: dict[str, Any], layers: int, sequences: int) -> _core.KvCache:
    return _core.KvCache(layers, config["key_heads"], config["head"], sequences)


# New tokens of three sequences, call by call: rows and panels, in turns.
STEPS = [
    [5, 0, 1],
    [1, 1, 1],
    [70, 1, 40],
    [0, 7, 0],
    [1, 0, 2],
    [64, 130, 3],
    [1, 1, 1],
    [3, 0, 4],
]
CAUSAL = [name for name, change in VARIANTS.items() if (CONFIG | change)["causal"]]
WITH_CACHE = {name: VARIANTS[name] for name in CAUSAL}
WITH_CACHE["bias"] = {"causal": True, "bias": True}
WITH_CACHE["post-norm"] = {"causal": True, "head": 19, "heads": 3, "key_heads": 3}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", WITH_CACHE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cache_gives_what_whole_sequences_give(
    variant: str, isa: str, dtype: torch.dtype
) -> None:
    config = CONFIG | WITH_CACHE[variant]
    layers, cache = make(config, 3, dtype), cache_of(config, 3, 3)
    stack = native(config, layers)
    whole = [torch.randn(sum(step[i] for step in STEPS), config["hidden"]) for i in range(3)]
    found: list[list[Tensor]] = [[], [], []]
    for lengths in STEPS:
        at = cache.lengths
        new = [x[b : b + n] for x, b, n in zip(whole, at, lengths, strict=True)]
        y = run(stack, torch.cat(new), lengths, isa, cache)
        assert cache.lengths == [b + n for b, n in zip(at, lengths, strict=True)]
        for i, part in enumerate(y.split(lengths)):
            found[i].append(part)
    for x, parts in zip(whole, found, strict=True):
        assert error_of(torch.cat(parts), reference(config, layers, x)) < 2e-5


def test_a_few_tokens_run_on_rows_where_there_is_a_cache() -> None:
    config = CONFIG | LLAMA
    layers = make(config, 2, torch.float32)
    both, rows = native(config, layers), native(config, layers, panels=False)
    x = torch.randn(8, 20)
    for tokens in (1, 7):
        y = [run(s, x[:tokens], [tokens], cache=cache_of(config, 2, 1)) for s in (both, rows)]
        assert torch.equal(*y)
    for tokens, cache in ((8, cache_of(config, 2, 1)), (1, None)):
        with pytest.raises(ValueError, match="multiply panels"):
            run(rows, x[:tokens], [tokens], cache=cache)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"heads": 6, "key_heads": 2, "head": 17}], ids=str)
def test_cross_attention(norm_first: bool, sizes: dict[str, int], isa: str) -> None:
    config = CONFIG | {"causal": True, "cross": True, "norm_first": norm_first} | sizes
    layers = make(config, 3, torch.float32)
    stack, cache, memory = native(config, layers), cache_of(config, 3, 3), cache_of(config, 3, 3)
    sources = [torch.randn(n, 20) for n in (1, 130, 64)]
    stack.remember(torch.cat(sources).numpy(), [1, 130, 64], memory, isa)
    assert memory.lengths == [1, 130, 64]
    whole = [torch.randn(sum(step[i] for step in STEPS), 20) for i in range(3)]
    found: list[list[Tensor]] = [[], [], []]
    for lengths in STEPS:
        new = [x[b : b + n] for x, b, n in zip(whole, cache.lengths, lengths, strict=True)]
        x = torch.cat(new)
        y = torch.full_like(x, math.nan)
        stack.run(x.numpy(), lengths, y.numpy(), cache, None, memory, isa)
        for i, part in enumerate(y.split(lengths)):
            found[i].append(part)
    for x, parts, source in zip(whole, found, sources, strict=True):
        expected = reference(config, layers, x, memory=source)
        assert error_of(torch.cat(parts), expected) < 2e-5
    y = torch.empty_like(torch.cat(whole))  # without a cache
    lengths = [len(x) for x in whole]
    stack.run(torch.cat(whole).numpy(), lengths, y.numpy(), None, None, memory, isa)
    expected = [reference(config, layers, x, memory=m) for x, m in zip(whole, sources, strict=True)]
    assert error_of(y, torch.cat(expected)) < 2e-5


def test_bad_memories_are_refused() -> None:
    config = CONFIG | {"causal": True, "cross": True}
    stack, x = native(config, make(config, 2, torch.float32)), torch.randn(5, 20).numpy()
    memory, y = cache_of(config, 2, 1), torch.empty(5, 20).numpy()
    other = native(CONFIG, make(CONFIG, 2, torch.float32))
    for call, why in (
        (lambda: stack.run(x, [5], y), "memory"),
        (lambda: stack.run(x, [5], y, None, None, memory), "empty"),
        (lambda: stack.run(x, [5], y, memory, None, memory), "must not be the same"),
        (lambda: stack.remember(x, [4], memory), "must be"),
        (lambda: stack.remember(x, [5, 0], cache_of(config, 2, 2)), "1 or more"),
        (lambda: stack.remember(x, [5], cache_of(config, 3, 1)), "another model"),
        (lambda: other.remember(x, [5], cache_of(CONFIG, 2, 1)), "no cross attention"),
    ):
        with pytest.raises(ValueError, match=why):
            call()
    stack.remember(x, [5], memory)
    with pytest.raises(ValueError, match="not empty"):
        stack.remember(x, [5], memory)
    with pytest.raises(ValueError, match="only it"):
        other.run(x, [5], y, None, None, memory)


@pytest.mark.parametrize("isa", ISAS)
def test_int8_rows_are_near_int8_panels(isa: str) -> None:
    config = CONFIG | LLAMA
    stack = native(config, make(config, 2, torch.float32), int8=True)
    x, cache = torch.randn(40, 20), cache_of(config, 2, 1)
    whole = run(stack, x, [40], isa)
    steps = [run(stack, part, [len(part)], isa, cache) for part in x.split([3, 7, 1, 1, 20, 8])]
    assert error_of(torch.cat(steps), whole.double()) < 5e-2


def test_sequences_of_a_cache_are_copied_and_cropped() -> None:
    config = CONFIG | LLAMA
    layers, cache = make(config, 2, torch.float32), cache_of(config, 2, 2)
    stack = native(config, layers)
    a, b = torch.randn(2, 70, 20)
    run(stack, torch.cat([a, b[:67]]), [70, 67], cache=cache)
    before = cache.nbytes
    cache.select([1, 0, 1])
    assert cache.lengths == [67, 70, 67]
    assert cache.nbytes == before  # shared
    new = torch.randn(3, 20)
    y = run(stack, new, [1, 1, 1], cache=cache)
    assert cache.nbytes == before + before // 4  # the block that two write to
    for row, old, token in ((0, b[:67], new[:1]), (1, a, new[1:2]), (2, b[:67], new[2:])):
        expected = reference(config, layers, torch.cat([old, token]))[-1:]
        assert error_of(y[row : row + 1], expected) < 2e-5
    cache.crop([10, 0, 68])
    y = run(stack, new, [1, 1, 1], cache=cache)
    assert error_of(y[:1], reference(config, layers, torch.cat([b[:10], new[:1]]))[-1:]) < 2e-5
    assert error_of(y[1:2], reference(config, layers, new[1:2])) < 2e-5


def test_long_sequences_are_cut_into_passes() -> None:
    config = CONFIG | LLAMA
    layers, cache = make(config, 1, torch.float32), cache_of(config, 1, 2)
    x = torch.randn(300, 20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # 512 tokens a pass
        y = run(native(config, layers), torch.cat([x, x, x[:100]]), [300, 400], cache=cache)
    finally:
        torch.set_num_threads(before)
    assert error_of(y[:300], reference(config, layers, x)) < 2e-5
    assert error_of(y[300:], reference(config, layers, torch.cat([x, x[:100]]))) < 2e-5


def bad(change: dict[str, Any], layer: dict[str, Any] | None = None) -> None:
    config = CONFIG | change
    told = {k: v for k, v in config.items() if k not in OWN}
    told |= {"activation": config["activation"] if change.get("activation") else 2}
    told |= {"rotary": change.get("rotary"), "last": None}
    made = make(CONFIG, 1, torch.float32)[0]
    given: dict[str, Any] = {
        name: norm_of(CONFIG, pair)
        if "norm" in name
        else (weight_handle(Runs.from_dense(pair[0])), None, None)
        for name, pair in made.items()
        if name != "last"
    }
    given |= dict.fromkeys(CROSS)
    _core.Stack(told, [{**given, "gate": None, **(layer or {})}])


def test_bad_stacks_are_refused() -> None:
    bad({})
    weight = torch.randn(20, 20)
    runs, bits = (weight_handle(cls.from_dense(weight)) for cls in (Runs, Bits))
    table = np.zeros((4, 3), np.float32)
    for change in (
        {"hidden": 0},
        {"heads": 3},
        {"key_heads": 3},
        {"activation": 9},
        {"window": -1},
        {"rotary": (table, table)},  # wider than half a head
        {"rotary": (table[:, :2].copy(), table[:3, :2].copy())},
        {"more": 1},
    ):
        with pytest.raises((ValueError, RuntimeError)):
            bad(change)
    for layer in (
        {"up": (runs, None, None)},
        {"query": None},
        {"key": None},
        {"query": (bits, None, None)},
        {"query": (None, runs, None)},
        {"query": (None, bits, None)},  # the others have nothing for rows
        {"query": (runs, None, np.zeros(3, np.float32))},
        {"norm1": (np.zeros(3, np.float32), None, 1e-5, False)},
        {"norm2": None},
        {"key_norm": (np.zeros(3, np.float32), None, 1e-5, False)},
    ):
        with pytest.raises(ValueError, match="stack"):
            bad({}, layer)


def test_bad_inputs_are_refused() -> None:
    config = CONFIG | {"bias": True}
    stack = native(config, make(config, 1, torch.float32))
    x = np.zeros((5, 20), np.float32)
    for lengths, rows in (
        ([6], x),
        ([-1, 6], x),
        ([5], x[:, :19].copy()),
        ([300], np.zeros((300, 20), "f")),
    ):
        with pytest.raises(ValueError, match=r"length|longer|must be"):
            stack.run(rows, lengths, np.empty_like(rows))
    with pytest.raises(TypeError):
        stack.run(x.astype(np.float64), [5], x)


def test_bad_caches_and_positions_are_refused() -> None:
    config = CONFIG | LLAMA
    layers = make(config, 2, torch.float32)
    stack, x = native(config, layers), torch.randn(5, 20)
    for cache in (
        cache_of(config, 3, 1),
        cache_of(config, 2, 2),
        cache_of(config | {"head": 5}, 2, 1),
        cache_of(config | {"key_heads": 1}, 2, 1),
    ):
        with pytest.raises(ValueError, match="cache"):
            stack.run(x.numpy(), [5], x.numpy(), cache, np.arange(5))
        assert set(cache.lengths) == {0}
    for positions in (None, np.arange(4), np.arange(5) - 1, np.arange(5) + 396):
        with pytest.raises(ValueError, match="position"):
            stack.run(x.numpy(), [5], x.numpy(), None, positions)
    encoder = native(CONFIG, make(CONFIG, 1, torch.float32))
    with pytest.raises(ValueError, match="cache"):  # without a causal mask there is no use for one
        encoder.run(x.numpy(), [5], x.numpy(), cache_of(CONFIG, 1, 1))
    cache = cache_of(config, 2, 1)
    for call in (
        lambda: cache.crop([1]),
        lambda: cache.crop([]),
        lambda: cache.select([1]),
        lambda: cache.select([]),
        lambda: _core.KvCache(0, 1, 1, 1),
        lambda: _core.KvCache(1, 1, 1, -1),
    ):
        with pytest.raises(ValueError, match="cache"):
            call()
