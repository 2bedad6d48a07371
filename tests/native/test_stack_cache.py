"""Caches and cross attention of native stacks against whole sequences in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from stack_cases import (
    CONFIG,
    ISAS,
    LLAMA,
    PRE,
    UNEVEN,
    VARIANTS,
    bound_of,
    cache_of,
    error_of,
    make,
    memory_of,
    native,
    run,
)
from stack_reference import reference
from torch import Tensor

from sparse_engine import _core

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
        assert error_of(torch.cat(parts), reference(config, layers, x)) < bound_of(dtype, isa)


# One key that is rounded the other way, because its sum was taken in another order, is 2^-8 off.
ROUNDED = 2e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", ["llama", "bias", "post-norm"])
def test_a_cache_in_bfloat16_rounds_keys_and_values(variant: str, isa: str) -> None:
    config = CONFIG | (WITH_CACHE | {"llama": LLAMA})[variant]
    layers, cache = make(config, 2, torch.float32), cache_of(config, 2, 3, "bfloat16")
    assert cache.dtype == "bfloat16"
    stack = native(config, layers)
    whole = [torch.randn(sum(step[i] for step in STEPS), config["hidden"]) for i in range(3)]
    found: list[list[Tensor]] = [[], [], []]
    for lengths in STEPS:
        new = [x[b : b + n] for x, b, n in zip(whole, cache.lengths, lengths, strict=True)]
        for i, part in enumerate(run(stack, torch.cat(new), lengths, isa, cache).split(lengths)):
            found[i].append(part)
    for x, parts in zip(whole, found, strict=True):
        y = torch.cat(parts)
        rounded = error_of(y, reference(config, layers, x, kept=torch.bfloat16))
        assert rounded < ROUNDED
        assert rounded < error_of(y, reference(config, layers, x)) / 2  # nearer than without
    twin = cache_of(config, 2, 3)
    run(stack, torch.cat(whole), [len(x) for x in whole], isa, twin)
    assert cache.nbytes == twin.nbytes / 2


@pytest.mark.parametrize("isa", ISAS)
def test_a_memory_in_bfloat16(isa: str) -> None:
    config = CONFIG | {"causal": True, "cross": True, "norms": ("input",)}
    layers = make(config, 2, torch.float32)
    stack, memory = native(config, layers), cache_of(config, 2, 1, "bfloat16")
    source, x = torch.randn(70, 20), torch.randn(9, 20)
    stack.encode_memory(source.numpy(), [70], memory, isa)
    y, cache = torch.empty_like(x), cache_of(config, 2, 1, "bfloat16")
    for begin, end in ((0, 8), (8, 9)):
        part = y[begin:end].numpy()
        stack.run(x[begin:end].numpy(), [end - begin], part, cache, None, memory, isa)
    expected = reference(config, layers, x, memory=source, kept=torch.bfloat16)
    assert error_of(y, expected) < ROUNDED


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


CROSS_SIZES: list[dict[str, Any]] = [
    {},
    {"heads": 6, "key_heads": 2, "head": 17},
    UNEVEN,
    {"cross sizes": {"heads": 6, "key_heads": 3, "head": 9}},  # more than in self-attention
    {"heads": 8, "cross sizes": {"heads": 1, "key_heads": 1, "head": 3}},
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("norms", [("sum",), ("input",), ("input", "output")], ids=str)
@pytest.mark.parametrize("sizes", CROSS_SIZES, ids=str)
def test_cross_attention(norms: tuple[str, ...], sizes: dict[str, Any], isa: str) -> None:
    config = CONFIG | {"causal": True, "cross": True, "norms": norms} | sizes
    layers = make(config, 3, torch.float32)
    stack, cache, memory = native(config, layers), cache_of(config, 3, 3), memory_of(config, 3, 3)
    sources = [torch.randn(n, 20) for n in (1, 130, 64)]
    stack.encode_memory(torch.cat(sources).numpy(), [1, 130, 64], memory, isa)
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
        (lambda: stack.encode_memory(x, [4], memory), "must be"),
        (lambda: stack.encode_memory(x, [5, 0], cache_of(config, 2, 2)), "1 or more"),
        (lambda: stack.encode_memory(x, [5], cache_of(config, 3, 1)), "another model"),
        (lambda: other.encode_memory(x, [5], cache_of(CONFIG, 2, 1)), "no cross attention"),
    ):
        with pytest.raises(ValueError, match=why):
            call()
    stack.encode_memory(x, [5], memory)
    with pytest.raises(ValueError, match="not empty"):
        stack.encode_memory(x, [5], memory)
    with pytest.raises(ValueError, match="nothing else"):
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
    assert cache.nbytes == before + before // 4  # the page that two write to
    for row, old, token in ((0, b[:67], new[:1]), (1, a, new[1:2]), (2, b[:67], new[2:])):
        expected = reference(config, layers, torch.cat([old, token]))[-1:]
        assert error_of(y[row : row + 1], expected) < 2e-5
    cache.crop([10, 0, 68])
    y = run(stack, new, [1, 1, 1], cache=cache)
    assert error_of(y[:1], reference(config, layers, torch.cat([b[:10], new[:1]]))[-1:]) < 2e-5
    assert error_of(y[1:2], reference(config, layers, new[1:2])) < 2e-5


def test_sequences_of_uneven_layers_are_copied_cropped_and_selected() -> None:
    """Two pages a sequence, for layers of 2, 1 and 4 key heads of 7, 18 and 5 features."""
    config = CONFIG | PRE | UNEVEN | {"causal": True}
    layers, cache = make(config, 3, torch.float32), cache_of(config, 3, 2)
    stack = native(config, layers)
    a, b = torch.randn(2, 70, 20)
    run(stack, torch.cat([a, b[:67]]), [70, 67], cache=cache)
    elements = 2 * (7 + 16) + 1 * (18 + 32) + 4 * (5 + 16)
    assert cache.nbytes == 4 * 64 * elements * 4  # four pages
    twin = cache.copy()
    assert twin.nbytes == cache.nbytes
    cache.select([1, 0, 1])
    new = torch.randn(3, 20)
    y = run(stack, new, [1, 1, 1], cache=cache)
    for row, old in ((0, b[:67]), (1, a), (2, b[:67])):
        expected = reference(config, layers, torch.cat([old, new[row : row + 1]]))[-1:]
        assert error_of(y[row : row + 1], expected) < 2e-5
    assert twin.lengths == [70, 67]  # what was written to the other one is not in it
    twin.crop([65, 3])
    y = run(stack, new[:2], [1, 1], cache=twin)
    for row, old in ((0, a[:65]), (1, b[:3])):
        expected = reference(config, layers, torch.cat([old, new[row : row + 1]]))[-1:]
        assert error_of(y[row : row + 1], expected) < 2e-5


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_share_uneven_layers(threads: int) -> None:
    """Panels of one thread each, and of all threads; buffers are those of the largest layer."""
    config = CONFIG | UNEVEN | {"causal": True, "cross": True}
    config |= {"cross sizes": {"heads": 6, "key_heads": 3, "head": 9}}
    layers, before = make(config, 3, torch.float32), torch.get_num_threads()
    stack, source = native(config, layers), torch.randn(5, 20)
    for tokens in (64 * threads, 64 * threads + 3, 5):
        memory, x = memory_of(config, 3, 1), torch.randn(tokens, 20)
        y = torch.full_like(x, math.nan)
        try:
            torch.set_num_threads(threads)
            stack.encode_memory(source.numpy(), [5], memory)
            stack.run(x.numpy(), [tokens], y.numpy(), None, None, memory)
        finally:
            torch.set_num_threads(before)
        assert error_of(y, reference(config, layers, x, memory=source)) < 2e-5


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
        lambda: _core.KvCache([], 1),
        lambda: _core.KvCache([(0, 1)], 1),
        lambda: _core.KvCache([(1, 1 << 40)], 1),
        lambda: _core.KvCache([(1, 1)], -1),
        lambda: _core.KvCache([(1, 1)], 1, "int8"),
    ):
        with pytest.raises(ValueError, match="cache"):
            call()
