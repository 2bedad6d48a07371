"""Products in float16: numbers of any size, and no more rounding than bfloat16 brings."""

from __future__ import annotations

import pytest
import torch
from run_packed import normal, run

from sparse_engine import _core
from sparse_engine.packings import Columns8, HalfRuns

ISA = "avx512_fp16"
needs_fp16 = pytest.mark.skipif(
    "fp16" not in _core.capabilities(), reason="this processor does not multiply float16"
)


def sparse(out: int, inner: int, zeros: float) -> torch.Tensor:
    keep = torch.rand(out, inner, generator=torch.Generator().manual_seed(2)) >= zeros
    return (normal(out, inner) * keep).bfloat16()


@needs_fp16
@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("inner", [200, 1000, 4096])
def test_rounds_less_than_activations_in_bfloat16(inner: int, zeros: float) -> None:
    w, x = sparse(256, inner, zeros), normal(64, inner, seed=1)
    truth = x.double() @ w.double().T
    rounded = x.bfloat16().double() @ w.double().T
    error = (run(HalfRuns.from_dense(w), x, ISA) - truth).norm()
    assert error < 0.8 * (rounded - truth).norm()


@needs_fp16
@pytest.mark.parametrize("tokens", [1, 16, 20, 64, 150])
def test_rows_and_tokens_of_any_size(tokens: int) -> None:
    """Each row and token has its own power of two, so that only rounding is left."""
    w, x = sparse(70, 300, 0.7).float(), normal(tokens, 300, seed=1)
    rows = torch.logspace(-28, 28, 70, base=10)[torch.randperm(70)]
    scales = torch.logspace(-8, 8, tokens, base=10) if tokens > 1 else torch.ones(1)
    scaled = (w * rows[:, None]).bfloat16()
    y = run(HalfRuns.from_dense(scaled), x * scales[:, None], ISA).double()
    size = (x * scales[:, None]).double().norm(dim=1)[:, None] * scaled.double().norm(dim=1)
    truth = (x * scales[:, None]).double() @ scaled.double().T
    assert ((y - truth).abs() <= 4e-3 * size + 1e-37).all()


@needs_fp16
def test_extremes() -> None:
    w = torch.zeros(4, 8, dtype=torch.bfloat16)
    w[0, 0], w[1, 1], w[2, 2], w[2, 3] = 3e38, 1e-38, 1.0, 2**-20
    x = torch.ones(16, 8)
    x[2, 4], x[3, 2] = 3e38, float("inf")
    y = run(HalfRuns.from_dense(w), x, ISA)
    assert y[0].tolist() == pytest.approx([float(w[0, 0]), float(w[1, 1]), 1 + 2**-20, 0], rel=1e-3)
    assert y[2].isfinite().all()  # the others vanish beside the largest feature
    assert y[3, 2] == float("inf")
    assert y[3, :2].isfinite().all()


@needs_fp16
def test_no_inputs() -> None:
    run(Columns8.from_dense(-torch.ones(16, 64)), -torch.ones(64, 64), ISA)  # leaves bytes behind
    empty = HalfRuns.from_dense(torch.zeros(5, 0, dtype=torch.bfloat16))
    assert (run(empty, torch.zeros(40, 0), ISA) == 0).all()


def test_weights_stay_exact_and_powers_are_checked() -> None:
    w = sparse(33, 100, 0.5)
    packed = HalfRuns.from_dense(w)
    assert torch.equal(packed.to_dense(), w)
    packed.validate()
    packed.powers[3] *= 2
    with pytest.raises(ValueError, match="powers"):
        packed.validate()
