"""Moments, refit and compensation against float64 least squares on the data itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_engine.pruning.recovery import cholesky, supports
from sparse_engine.pruning.recovery.least_squares import compensate, refit, refit_bias
from sparse_engine.pruning.statistics.moments import InputNorms, Moments
from sparse_engine.pruning.statistics.system import System


def data(tokens: int = 300, features: int = 11, out: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, features, generator=generator) + 3
    x = x + 0.6 * x.roll(1, 1)
    return {
        "x": x,
        "dense": x + 0.3 * torch.randn(tokens, features, generator=generator) + 0.2,
        "drift": 0.5 * torch.randn(tokens, out, generator=generator) - 0.4,
        "weight": torch.randn(out, features, generator=generator),
        "bias": torch.randn(out, generator=generator),
    }


def collect(d: dict[str, Tensor], batches: int = 4) -> Moments:
    moments = Moments()
    for parts in zip(*(d[k].chunk(batches) for k in ("x", "dense", "drift")), strict=True):
        moments.add(*parts)
    return moments


def centre(x: Tensor, centred: bool) -> Tensor:
    return x - x.mean(0) if centred else x


@pytest.mark.parametrize("centred", [True, False])
def test_moments_are_those_of_all_tokens(centred: bool) -> None:
    d = data()
    moments = collect(d)
    x = centre(d["x"].double(), centred)
    for got, left in (
        (moments.hessian(centred), d["x"]),
        (moments.drift(centred), d["dense"] - d["x"]),
        (moments.residual(centred), d["drift"]),
    ):
        assert got is not None
        expected = centre(left.double(), centred).T @ x
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(moments.mean(), d["x"].mean(0))


def test_large_means_do_not_cancel_the_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 4) * 0.1 + 300
    moments = Moments()
    for part in x.split(50):
        moments.add(part)
    exact = (x.double() - x.double().mean(0)).T @ (x.double() - x.double().mean(0))
    torch.testing.assert_close(moments.hessian(True).double(), exact, rtol=1e-3, atol=1e-2)


def test_norms() -> None:
    d = data()
    norms = InputNorms()
    for part in d["x"].split(70):
        norms.add(part)
    torch.testing.assert_close(norms.norms(), d["x"].norm(dim=0))
    assert norms.count == 300


def ridge_fit(
    d: dict[str, Tensor], keep: Tensor, centred: bool, ridge: float
) -> tuple[Tensor, Tensor]:
    """Row by row: min |v X - Y|^2 + ridge |v - w|^2 on the support, in float64."""
    d = {name: value.double() for name, value in d.items()}
    target = d["dense"] @ d["weight"].T + d["drift"]  # [tokens, out], without the bias
    x, y = centre(d["x"], centred), centre(target, centred)
    fitted = torch.zeros_like(d["weight"])
    root = ridge**0.5
    for row, support in enumerate(keep):
        left = torch.cat([x[:, support], root * torch.eye(int(support.sum())).double()])
        right = torch.cat([y[:, row], root * d["weight"][row, support]])
        fitted[row, support] = torch.linalg.lstsq(left, right[:, None]).solution[:, 0]
    return fitted, (target + d["bias"]).mean(0) - fitted @ d["x"].mean(0)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("pattern", ["ragged", "tiles", "empty row", "full", "nothing"])
def test_refit_is_the_ridge_fit_on_each_support(
    pattern: str, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small that the rows fall into several batches.
    monkeypatch.setattr(supports, "BATCH_ELEMENTS", 100)
    # Well-conditioned as it is, no padded matrix may need the fallback.
    monkeypatch.setattr(cholesky, "_factorise_float64", None)
    d = data()
    keep = torch.rand(6, 11, generator=torch.Generator().manual_seed(1)) < 0.5
    if pattern == "tiles":
        keep = keep[[0, 0, 0, 0, 1, 1]]
    elif pattern == "empty row":
        keep[2] = False
    elif pattern != "ragged":
        keep[:] = pattern == "full"
    system = System(collect(d), centred)
    assert system.ridge == pytest.approx(
        0.01 * float(centre(d["x"], centred).square().sum(0).mean()), rel=1e-4
    )
    problem = compensate(d["weight"], system)
    fitted = refit(problem.rhs, system.hessian, keep)
    expected, expected_bias = ridge_fit(d, keep, centred, system.ridge)
    torch.testing.assert_close(fitted.double(), expected, rtol=1e-3, atol=1e-3)
    assert not fitted[~keep].any()
    if centred:
        bias = refit_bias(d["weight"], d["bias"], fitted, system.moments)
        torch.testing.assert_close(bias.double(), expected_bias, rtol=1e-3, atol=1e-2)
    if pattern == "full":
        torch.testing.assert_close(problem.target.double(), expected, rtol=1e-3, atol=1e-3)


def test_nothing_to_repair_keeps_the_weight() -> None:
    d = data()
    moments = Moments()
    moments.add(d["x"], d["x"])
    assert torch.equal(compensate(d["weight"], System(moments, True)).target, d["weight"])


def test_error_is_that_of_the_outputs() -> None:
    d = data()
    system = System(collect(d), centred=True)
    pruned = d["weight"] * (d["weight"].abs() > 0.5)
    x = centre(d["x"].double(), True)
    wrong, right = x @ (pruned - d["weight"]).double().T, x @ d["weight"].double().T
    expected = float(wrong.norm() / right.norm())
    assert system.error(pruned, d["weight"]) == pytest.approx(expected, rel=1e-3)
    assert system.error(d["weight"], d["weight"]) == 0


def test_dead_inputs_do_not_break_the_system() -> None:
    moments = Moments()
    moments.add(torch.zeros(20, 5))
    system = System(moments, centred=True)
    keep = torch.tensor([[True, False, True, True, False]])
    weight = torch.arange(1.0, 6.0)[None]
    fitted = refit(compensate(weight, system).rhs, system.hessian, keep)
    torch.testing.assert_close(fitted, weight * keep)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    refit(torch.ones(3, 4), torch.eye(4), torch.ones(3, 4, dtype=torch.bool))
    assert torch.get_num_threads() == before
