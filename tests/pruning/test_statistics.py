"""Statistics of unusual inputs: huge, tiny, constant, zero, few, or refused in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import Criterion, Inputs, prune
from sparse_engine.pruning.recovery import cholesky
from sparse_engine.pruning.recovery.cholesky import factorise
from sparse_engine.pruning.recovery.least_squares import compensate, refit
from sparse_engine.pruning.statistics.moments import InputNorms, Moments, power_of_two
from sparse_engine.pruning.statistics.system import System

METHODS: list[dict[str, Any]] = [
    {"criterion": "wanda"},
    {"criterion": "sparsegpt"},
    {"criterion": "magnitude", "recovery": "least_squares"},
    {"criterion": "sparsegpt", "recovery": "least_squares"},
]
IDS = [" ".join(method.values()) for method in METHODS]


def mlp(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 20, bias=bias), nn.ReLU(), nn.Linear(20, 7, bias=bias)
    ).requires_grad_(False)


def batches(count: int = 10, tokens: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator)
    return [torch.randn(tokens, 12, generator=generator) @ mix for _ in range(count)]


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_token_is_named_and_changes_nothing(bad: float, method: dict[str, Any]) -> None:
    model, inputs = mlp(), batches()
    inputs[7][5, 3] = bad
    before = weights(model)
    with pytest.raises(UsageError) as caught:
        prune(model, 0.5, calibration=inputs, **method)
    message = str(caught.value)
    assert message.startswith("0 gets NaN or infinity from calibration batch 7, in float32; ")
    assert "\n" not in message
    assert all(map(torch.equal, before, weights(model)))


def test_a_bad_token_that_a_layer_makes_is_named_there() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), Root(), nn.Linear(20, 7))
    model[1] = nn.Identity()
    with pytest.raises(UsageError, match=r"^3 gets NaN or infinity from calibration batch 0, "):
        prune(model, 0.5, criterion="wanda", calibration=batches(2))


def test_padding_may_hold_anything() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            found: Tensor = self.body(x)
            return found

    x = torch.stack(batches(4, tokens=8))
    mask = torch.ones(4, 8)
    clean = Masked()
    prune(clean, 0.5, criterion="wanda", calibration=[(x[:, :6], mask[:, :6])])
    x[:, 6:], mask[:, 6:] = float("nan"), 0
    model = Masked()
    prune(model, 0.5, criterion="wanda", calibration=[(x, mask)])
    assert all(map(torch.equal, weights(model), weights(clean)))


@pytest.mark.parametrize("power", [-70, 60, 100])
@pytest.mark.parametrize("allocator", ["uniform", "lamp"])
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_the_unit_of_inputs_does_not_matter(
    method: dict[str, Any], allocator: str, power: int
) -> None:
    """Squares of 2^60 overflow float32, those of 2^-70 underflow; masks and fits are the same."""
    expected, model = mlp(bias=False), mlp(bias=False)
    for net, unit in ((expected, 1.0), (model, 2.0**power)):
        prune(net, 0.5, calibration=[x * unit for x in batches()], allocator=allocator, **method)
    assert int((expected[0].weight == 0).sum()) + int((expected[2].weight == 0).sum()) == 190
    for got, wanted in zip(weights(model), weights(expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS[1:], ids=IDS[1:])
def test_inputs_of_1e18_give_finite_weights_and_biases(method: dict[str, Any]) -> None:
    model = mlp()
    prune(model, 0.5, calibration=[x * 1e18 for x in batches()], **method)
    assert all(bool(w.isfinite().all()) for w in weights(model))
    assert int((model[0].weight == 0).sum()) == 120


def test_sums_follow_inputs_that_grow() -> None:
    parts = [x * 2.0**power for x, power in zip(batches(4), (0, -50, 45, 44), strict=True)]
    moments, norms = Moments(), InputNorms()
    for part in parts:
        moments.add(part, part * 1.5, part[:, :5])
        norms.add(part)
    x = torch.cat(parts).double()
    centre = x - x.mean(0)
    assert moments.scale == power_of_two(float(x.abs().max())) > 1
    squared = moments.scale**2
    for got, left in (
        (moments.hessian(True), centre),
        (moments.drift(True), centre * 0.5),
        (moments.residual(True), centre[:, :5]),
    ):
        assert got is not None
        expected = left.T @ centre
        error = (got.double() * squared - expected).abs().max() / expected.abs().max()
        assert error < 1e-5
    torch.testing.assert_close(moments.mean().double(), x.mean(0), rtol=1e-4, atol=0)
    drift, residual = moments.drift_mean(), moments.residual_mean()
    assert drift is not None
    assert residual is not None
    torch.testing.assert_close(drift.double(), 0.5 * x.mean(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(residual.double(), x.mean(0)[:5], rtol=1e-4, atol=0)
    found = norms.norms().double()
    torch.testing.assert_close(found / found[0], x.norm(dim=0) / x.norm(dim=0)[0])


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["dead", "constant", "duplicated", "one token", "all dead"])
def test_inputs_of_low_rank(kind: str, bias: bool, method: dict[str, Any]) -> None:
    """Half of the weights are removed; the rest is finite, and the outputs stay close to dense."""
    model, dense, inputs = mlp(bias), mlp(bias), batches()
    for x in inputs:
        if kind == "dead":
            x[:, 3:6] = 0
        elif kind == "constant":
            x[:, 3:6] = 300
        elif kind == "duplicated":
            x[:, 3:6] = x[:, :1]
        elif kind == "all dead":
            x.zero_()
    if kind == "one token":
        inputs = [inputs[0][:1]]
    prune(model, 0.5, calibration=inputs, **method)
    assert int((model[0].weight == 0).sum()) == 120
    assert all(bool(w.isfinite().all()) for w in weights(model))
    biggest = max(float(w.abs().max()) for w in weights(dense) if w.ndim == 2)
    assert max(float(w.abs().max()) for w in weights(model) if w.ndim == 2) < 20 * biggest
    if "recovery" in method:
        x = torch.cat(inputs)
        wanted = dense(x)
        assert float((model(x) - wanted).norm() / wanted.norm().clamp_min(1e-6)) < 0.6


def test_nothing_is_fitted_to_the_rounding_of_constant_inputs() -> None:
    """Inputs that differ by rounding alone: the ridge is larger, so weights stay as they are."""
    torch.manual_seed(0)
    moments = Moments()
    value = torch.rand(9) * 300 + 0.1
    for _ in range(20):
        x = value * (1 + torch.finfo(torch.float32).eps * torch.randint(-1, 2, (50, 9)))
        moments.add(x, x + 1e-3 * torch.randn(50, 9))
    weight = torch.randn(4, 9)
    system = System(moments, centred=True)
    keep = torch.rand(4, 9) < 0.5
    problem = compensate(weight, system)
    fitted = refit(problem.rhs, system.hessian, keep)
    torch.testing.assert_close(fitted, weight * keep, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_half_precision_activations(method: dict[str, Any], dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    prune(model, 0.5, calibration=[x.to(dtype) for x in batches()], **method)
    assert int((model[0].weight == 0).sum()) == 120
    assert all(bool(w.isfinite().all()) and w.dtype == dtype for w in weights(model))


def test_activations_that_overflow_float16_are_named_with_their_type() -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 7)).half().requires_grad_(False)
    model[0].weight.fill_(900.0)
    inputs = [x.half() for x in batches(3)]
    inputs[2][:] = 60.0
    with pytest.raises(UsageError, match=r"^1 gets .* calibration batch 2, in float16"):
        prune(model, 0.5, criterion="wanda", calibration=inputs)


def test_weights_that_do_not_fit_their_type_are_refused() -> None:
    """The refitted weights reach 1e5; the largest float16 is 65504."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).half().requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[60000.0, 50000.0], [50000.0, 60000.0]]))
    before = weights(model)
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 2).half() / 1e4
    with pytest.raises(UsageError, match=r"^0: pruning makes NaN or infinity in float16"):
        prune(model, 0.5, recovery="least_squares", calibration=[x])
    assert all(map(torch.equal, before, weights(model)))


def test_damping_grows_until_a_matrix_can_be_factorised(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    values = torch.tensor([-0.04, *[1.0] * 7], dtype=torch.float64)
    indefinite = q @ torch.diag(values) @ q.T
    factor = factorise(indefinite.float()).double()
    # The mean of the diagonal is 0.87: 1 % of it is too little damping, and 10 % is enough.
    expected = indefinite + 0.1 * indefinite.diagonal().mean() * torch.eye(8)
    torch.testing.assert_close(factor @ factor.T, expected, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(cholesky, "DAMPING", (0.0, 1e-2))
    with pytest.raises(UsageError, match="not positive semidefinite"):
        factorise(indefinite.float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_is_refused(bad: float) -> None:
    matrix = torch.eye(4)
    matrix[2, 1] = matrix[1, 2] = bad
    for given in (matrix, torch.stack([torch.eye(4), matrix])):
        with pytest.raises(UsageError, match="hold NaN or infinity"):
            factorise(given)


def test_equal_inputs_share_their_weights_evenly() -> None:
    """Two inputs that are always equal: the weight that is kept receives the removed one."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[1.0, 3.0]]))
    x = batches()[0][:, :1].repeat(1, 2)
    dense = copy.deepcopy(model)
    prune(model, 0.5, recovery="least_squares", calibration=[x])
    assert model[0].weight[0, 0] == 0
    torch.testing.assert_close(model(x), dense(x), rtol=0.02, atol=0.02)


def test_scores_that_are_nan_make_no_mask() -> None:
    class Odd(Criterion):
        name = "odd"

        def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
            return weight.log()

    model = mlp()
    before = weights(model)
    with pytest.raises(UsageError, match="criterion odd gives NaN as a score"):
        prune(model, 0.5, criterion=Odd())
    assert all(map(torch.equal, before, weights(model)))


@pytest.mark.parametrize("centred", [True, False])
def test_a_hessian_in_the_memory_of_the_sum(centred: bool) -> None:
    kept, taken = Moments(), Moments()
    for batch in batches():
        kept.add(batch)
        taken.add(batch)
    expected = System(kept, centred)
    assert torch.equal(System(taken, centred, is_only_one=True).hessian, expected.hessian)
    x = torch.cat(batches()).double()
    x = x - x.mean(0) if centred else x
    torch.testing.assert_close(kept.hessian(centred).double(), x.T @ x, rtol=1e-4, atol=1e-2)
