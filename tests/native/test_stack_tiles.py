"""Stacks whose weights are in tiles or lists of columns: bfloat16 and int8, panels and rows."""

from __future__ import annotations

import pytest
import torch
from stack_cases import CONFIG, ISAS, VARIANTS, cache_of, error_of, make, native, run
from stack_reference import reference

TILE_ISAS = [isa for isa in ISAS if isa in ("scalar", "avx512_amx")]
# Where panels of quads are as wide as those of tiles, attention sums in the same order.
WIDE_ISAS = [isa for isa in ISAS if isa != "avx512"]
LAYOUTS = ["tiles", "columns"]
LENGTHS = [17, 1, 70, 64]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_follows_the_formulas(variant: str, isa: str, layout: str) -> None:
    """Products round activations to bfloat16, as a dense model in bfloat16 does."""
    config = CONFIG | VARIANTS[variant]
    layers = make(config, 3, torch.bfloat16)
    x = torch.randn(sum(LENGTHS), config["hidden"], generator=torch.Generator().manual_seed(5))
    y = run(native(config, layers, layout=layout), x, LENGTHS, isa)
    expected = torch.cat([reference(config, layers, part) for part in x.split(LENGTHS)])
    assert error_of(y, expected) < 5e-2
    far = (y.double() - expected).abs() / expected.abs().max()
    assert far.median() < 5e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("isa", WIDE_ISAS)
@pytest.mark.parametrize("lengths", [[17, 1, 70, 64], [16], [290, 0, 33], [5] * 40], ids=str)
def test_int8_computes_what_quads_do(lengths: list[int], isa: str, layout: str) -> None:
    """Bit for bit: the sums are exact, and scales and epilogues are the same."""
    for variant in ("post-norm", "gated rms", "odd sizes", "stacked", "fused gate"):
        config = CONFIG | VARIANTS[variant]
        layers = make(config, 3, torch.float32)
        x = torch.randn(sum(lengths), config["hidden"], generator=torch.Generator().manual_seed(5))
        quads = run(native(config, layers, int8=True), x, lengths, isa)
        found = run(native(config, layers, int8=True, layout=layout), x, lengths, isa)
        assert torch.equal(found, quads)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_do_not_change_a_bit(threads: int, int8: bool, layout: str) -> None:
    config, before = CONFIG | VARIANTS["llama"], torch.get_num_threads()
    dtype = torch.float32 if int8 else torch.bfloat16
    stack = native(config, make(config, 2, dtype), int8=int8, layout=layout)
    x = torch.randn(405, 20, generator=torch.Generator().manual_seed(6))

    def both() -> torch.Tensor:
        cache = cache_of(config, 2, 2)
        prompts = run(stack, x[:400], [300, 100], cache=cache)
        return torch.cat([prompts, run(stack, x[400:], [1, 4], cache=cache)])

    try:
        torch.set_num_threads(1)
        one = both()
        torch.set_num_threads(threads)
        assert torch.equal(both(), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("isa", TILE_ISAS)
def test_steps_follow_a_prompt(isa: str, layout: str) -> None:
    """Single tokens read the same tiles; they round no activations."""
    config = CONFIG | VARIANTS["llama"]
    layers = make(config, 3, torch.bfloat16)
    stack = native(config, layers, layout=layout)
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(7))
    cache = cache_of(config, 3, 1)
    found = [run(stack, x[:50], [50], isa, cache)]
    found += [run(stack, x[i : i + 1], [1], isa, cache) for i in range(50, 60)]
    assert error_of(torch.cat(found), reference(config, layers, x)) < 5e-2
