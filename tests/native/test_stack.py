"""Stacks of layers against float64: every ISA, ragged batches, and all that a layer may be."""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import pytest
import torch
from stack_cases import (
    CONFIG,
    ISAS,
    VARIANTS,
    Builder,
    bound_of,
    cache_of,
    error_of,
    make,
    native,
    run,
)
from stack_reference import reference
from torch import Tensor

from sparse_engine import _core
from sparse_engine.ops import weight_handle
from sparse_engine.packings import Bits, Runs

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


def check(variant: str, isa: str, lengths: list[int], dtype: torch.dtype = torch.float32) -> None:
    config = CONFIG | VARIANTS[variant]
    layers = make(config, 3, dtype)
    x = torch.randn(sum(lengths), config["hidden"], generator=torch.Generator().manual_seed(5))
    y = run(native(config, layers), x, lengths, isa)
    expected = torch.cat(
        [reference(config, layers, part) for part in x.split(lengths) if len(part)]
    )
    assert error_of(y, expected) < bound_of(dtype, isa), (variant, lengths)  # NaN fails too


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_follow_their_formulas(variant: str, isa: str) -> None:
    check(variant, isa, [17, 1, 70, 64])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_sequences_of_any_length(lengths: list[int], isa: str) -> None:
    check("post-norm", isa, lengths)
    check("window", isa, lengths)
    check("wide window both ways", isa, lengths)


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_weights(isa: str) -> None:
    check("pre-norm", isa, [33, 60], torch.bfloat16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_in_bfloat16(variant: str) -> None:
    check(variant, ISAS[-1], [200, 1, 63, 70, 16, 31], torch.bfloat16)


@pytest.mark.parametrize("head", [1, 16, 31, 33, 64, 100])
def test_heads_of_any_size_in_bfloat16(head: int) -> None:
    config = CONFIG | {"heads": 2, "key_heads": 1, "head": head, "scale": head**-0.5}
    layers, isa = make(config, 2, torch.bfloat16), ISAS[-1]
    x = torch.randn(100, config["hidden"], generator=torch.Generator().manual_seed(5))
    y = run(native(config, layers), x, [80, 20], isa)
    expected = torch.cat([reference(config, layers, part) for part in x.split([80, 20])])
    assert error_of(y, expected) < bound_of(torch.bfloat16, isa)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_in_its_sequence(isa: str, dtype: torch.dtype) -> None:
    layers = make(CONFIG, 2, dtype)
    lengths = [5, 20, 7, 40, 3]
    x = torch.randn(75, CONFIG["hidden"], generator=torch.Generator().manual_seed(5))
    stack = native(CONFIG, layers)
    clean = run(stack, x, lengths, isa)
    x[5:25], x[32:72] = float("nan"), float("inf")
    y = run(stack, x, lengths, isa)
    for part, same in zip(y.split(lengths), clean.split(lengths), strict=True):
        assert part.isnan().all() or torch.equal(part, same)
    assert y[:5].isfinite().all()
    assert y[72:].isfinite().all()


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
    config = CONFIG | {"norms": ("input",)}
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


def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of an attention and of a feed-forward that fit each other."""
    layer, builder = make(CONFIG, 1, torch.float32)[0], Builder(CONFIG)
    linears = {
        name: builder.linear(0, layer[name])
        for name in ("query", "key", "value", "output", "up", "down")
    }
    feed_forward = {name: linears.pop(name) for name in ("up", "down")}
    sizes = {"heads": 4, "key_heads": 4, "head_size": 5}
    return sizes | linears, feed_forward | {"activation": "gelu"}


def pair(out: int, features: int, rows: bool = True) -> _core.LinearPair:
    weight = torch.randn(out, features)
    return _core.LinearPair(
        panels=weight_handle(Runs.from_dense(weight)),
        rows=weight_handle(Bits.from_dense(weight)) if rows else None,
    )


def test_bad_weights_norms_and_tables_are_refused() -> None:
    runs, bits = (weight_handle(cls.from_dense(torch.randn(6, 5))) for cls in (Runs, Bits))
    other = weight_handle(Bits.from_dense(torch.randn(5, 6)))
    _core.LinearPair(panels=runs, rows=bits, bias=np.zeros(6, "f"))
    for arguments in (
        {},
        {"panels": bits},
        {"rows": runs},
        {"panels": runs, "rows": other},
        {"panels": runs, "bias": np.zeros(5, "f")},
    ):
        with pytest.raises(ValueError, match="linear"):
            _core.LinearPair(**arguments)
    for arguments in (
        {"gamma": np.ones(3, "f"), "beta": np.zeros(4, "f"), "epsilon": 1e-5},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
    ):
        with pytest.raises(ValueError, match="norm"):
            _core.Norm(**arguments)
    with pytest.raises(ValueError, match="rotary"):
        _core.RotaryTable(np.zeros((4, 2), "f"), np.zeros((3, 2), "f"))
    with pytest.raises(ValueError, match="position bias"):
        _core.PositionBias(np.zeros((4, 2), "f"))


def test_bad_attention_is_refused() -> None:
    attention, _ = parts()
    table, wide = (np.zeros((4, n), "f") for n in (2, 3))
    _core.Attention(**attention, rotary=_core.RotaryTable(table, table))
    for change in (
        {"heads": 0},
        {"heads": 3},
        {"heads": 1 << 40},
        {"key_heads": 3},
        {"head_size": 4},
        {"window": -1, "causal": True},
        {"soft_cap": -1.0},
        {"soft_cap": math.nan},
        {"interleaved": True},  # of a weight for queries alone
        {"scale": math.inf},
        {"query": None},
        {"key": None},
        {"output": None},
        {"value": pair(20, 19)},
        {"query": pair(19, 20)},
        {"output": pair(20, 19)},
        {"rotary": _core.RotaryTable(wide, wide)},
        {"position_bias": _core.PositionBias(np.zeros((3, 9), "f"))},
    ):
        with pytest.raises(ValueError, match="attention"):
            _core.Attention(**attention | change)
    for place in ("input_norm", "output_norm", "sum_norm", "query_norm", "key_norm"):
        with pytest.raises(ValueError, match="norm"):
            _core.Attention(**attention, **{place: _core.Norm(gamma=np.ones(3, "f"), epsilon=0.0)})
    with pytest.raises(TypeError):
        _core.Attention(**attention, windows=3)


def test_bad_feed_forwards_are_refused() -> None:
    _, feed_forward = parts()
    _core.FeedForward(**feed_forward, gate=pair(33, 20))
    for change, why in (
        ({"up": None}, "needed"),
        ({"down": pair(20, 32)}, "shape"),
        ({"gate": pair(32, 20)}, "shape"),
        ({"activation": "tanh"}, "unknown activation tanh"),
        ({"sum_norm": _core.Norm(beta=np.ones(3, "f"), epsilon=0.0)}, "norm"),
    ):
        with pytest.raises(ValueError, match=why):
            _core.FeedForward(**feed_forward | change)


def test_bad_layers_and_stacks_are_refused() -> None:
    sizes, linears = parts()
    attention, feed_forward = _core.Attention(**sizes), _core.FeedForward(**linears)
    layer = _core.Layer(attention=attention, feed_forward=feed_forward)
    narrow = _core.FeedForward(up=pair(7, 19), down=pair(19, 7), activation="relu")
    stacked = _core.Attention(
        heads=4, key_heads=4, head_size=5, query=pair(60, 20), output=pair(20, 20)
    )
    for arguments in (
        {"attention": attention, "feed_forward": narrow},
        {"attention": None, "feed_forward": feed_forward},
        {"attention": attention, "feed_forward": feed_forward, "cross_attention": stacked},
        {
            "attention": attention,
            "feed_forward": feed_forward,
            "cross_attention": _core.Attention(**sizes, causal=True),
        },
    ):
        with pytest.raises(ValueError, match="layer"):
            _core.Layer(**arguments)
    crossing = _core.Layer(
        attention=attention, feed_forward=feed_forward, cross_attention=attention
    )
    panels = {name: pair(20, 20, rows=False) for name in ("query", "key", "value", "output")}
    rows = _core.LinearPair(rows=weight_handle(Bits.from_dense(torch.randn(33, 20))))
    mixed = _core.Layer(
        attention=_core.Attention(**sizes | panels),
        feed_forward=_core.FeedForward(**linears | {"up": rows}),
    )
    for hidden, layers, norm in (
        (0, [], None),
        (19, [layer], None),
        (20, [None], None),
        (20, [layer, crossing], None),
        (20, [mixed], None),  # some weights for panels alone, some for rows alone
        (20, [layer], _core.Norm(gamma=np.ones(3, "f"), epsilon=0.0)),
    ):
        with pytest.raises(ValueError, match="stack"):
            _core.Stack(hidden, layers, norm)


def test_a_stack_keeps_alive_what_it_reads() -> None:
    config = CONFIG | VARIANTS["two rotary bases"]
    layers, x = make(config, 3, torch.float32), torch.randn(9, 20)
    stack = native(config, layers)  # nothing else refers to the parts any more
    gc.collect()
    torch.randn(1000, 1000)
    assert error_of(run(stack, x, [9]), reference(config, layers, x)) < 2e-5
    assert stack.kv_heads == [(2, 6)] * 3
    assert stack.memory_heads == []


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
