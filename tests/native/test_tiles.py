"""Tile products: float32 as sums of bfloat16, blocks of columns, other users of the registers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from run_packed import normal, run
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.formats import Format
from sparse_engine.packings import Columns, PackedTiles, PackedTiles8

ISAS = [isa for isa in ("scalar", "avx512_amx") if isa in _core.presets()]


def sequential(x: Tensor, w: Tensor) -> Tensor:
    """x Wᵀ as a plain float32 loop over the columns sums it."""
    products = x.numpy()[:, None] * w.numpy()[None]
    return torch.from_numpy(np.add.accumulate(products, 2, dtype=np.float32)[..., -1])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inner", [64, 768, 3001])
def test_float32_errs_less_than_a_plain_loop(inner: int, isa: str) -> None:
    x, w = normal(33, inner), normal(48, inner, seed=1)
    truth = x.double() @ w.double().T
    error = (run(PackedTiles.from_dense(w), x, isa) - truth).abs().max()
    assert error < (sequential(x, w) - truth).abs().max()
    assert error < 2e-6 * truth.abs().max()


@pytest.mark.parametrize("isa", ISAS)
def test_float32_of_all_magnitudes(isa: str) -> None:
    """The error is small beside the products, whatever cancels; those below 1e-32 may vanish."""
    generator = torch.Generator().manual_seed(2)
    powers = torch.randint(-15, 15, (70, 200), generator=generator)
    x = normal(70, 200) * 10.0**powers
    w = normal(40, 200, seed=1) * 10.0 ** torch.randint(-15, 15, (40, 200), generator=generator)
    w[:, 1::2] = w[:, ::2]
    x[:, 1::2] = -x[:, ::2]  # everything cancels
    truth, size = x.double() @ w.double().T, x.double().abs() @ w.double().abs().T
    y = run(PackedTiles.from_dense(w), x, isa)
    assert ((y - truth).abs() <= 2e-6 * size + 1e-32).all()
    tiny = run(PackedTiles.from_dense(w * 1e-20), x * 1e-20, isa)  # many products are denormal
    assert ((tiny.double() - truth * 1e-40).abs() <= 2e-6 * 1e-40 * size + 1e-36).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 3.4e38, -3.4e38])
@pytest.mark.parametrize("inner", [40, 3001])
def test_float32_without_a_sum_of_bfloat16(inner: int, bad: float, isa: str) -> None:
    """Such numbers, in a token or in the weight, are multiplied as floats."""
    for whole in (True, False):  # tiles without masks, and with
        x, w = normal(70, inner), normal(70, inner, seed=1)
        if not whole:
            w[torch.rand(w.shape, generator=torch.Generator().manual_seed(3)) < 0.5] = 0
        w[:, 7] = 1e-3
        x[3, 7] = bad
        check(PackedTiles.from_dense(w), x, w, isa)
        x[3, 7] = 0.25
        x[:, 7] = 1e-3
        w[60, 7] = bad  # in another band than the first
        check(PackedTiles.from_dense(w), x, w, isa)


def check(packed: Format, x: Tensor, w: Tensor, isa: str) -> None:
    """Finite where the truth is finite, and near it."""
    y, truth = run(packed, x, isa), x.double() @ w.double().T
    size = x.double().abs() @ w.double().abs().T
    finite = truth.abs() < 3.4e38
    assert finite.sum() >= 69 * 69
    assert (~(y - truth).abs()[finite].gt(2e-6 * size[finite])).all()
    assert y[finite].isfinite().all()
    assert not y[~finite].isfinite().any()


@pytest.mark.parametrize("height", [4, 8, 16, 32])
@pytest.mark.parametrize("isa", ISAS)
def test_blocks_of_any_height_are_columns_of_16_or_32_rows(height: int, isa: str) -> None:
    w = normal(100, 300).bfloat16()
    w *= (torch.rand(-(-100 // height), 300) < 0.2).repeat_interleave(height, 0)[:100]
    x = normal(70, 300, seed=1).bfloat16()
    truth = x.double() @ w.double().T
    for rows in (16, 32):
        packed = Columns.from_dense(w, height=rows)
        assert torch.equal(packed.to_dense(), w)
        y = run(packed, x, isa)
        assert (y - truth).abs().max() < 1e-2 * truth.abs().max()


@pytest.mark.parametrize("packing", [PackedTiles, PackedTiles8, Columns])
def test_torch_uses_the_registers_in_turn(packing: type[Format]) -> None:
    """In one thread and in several: dense bfloat16 and int8 engines configure them, too."""
    dense = normal(128, 256).bfloat16()
    packed = packing.from_dense(dense, torch.int8 if packing is PackedTiles8 else None)
    x = normal(64, 256, seed=1).bfloat16()
    isa = _core.active_isa()
    ours, theirs, wrong = run(packed, x, isa), F.linear(x, dense), []

    def alternate() -> None:
        for _ in range(20):
            if not torch.equal(F.linear(x, dense), theirs):
                wrong.append("torch")
            if not torch.equal(run(packed, x, isa), ours):
                wrong.append("ours")

    alternate()
    threads = [threading.Thread(target=alternate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
