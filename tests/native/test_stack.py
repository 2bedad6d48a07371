"""Stacks of layers against float64: every ISA, ragged batches, and all that a layer may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from stack_cases import (
    CONFIG,
    CROSS,
    ISAS,
    OWN,
    VARIANTS,
    cache_of,
    error_of,
    make,
    native,
    norm_of,
    reference,
    run,
)
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
