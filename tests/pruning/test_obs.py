"""Staged optimal brain surgeon against least squares in float64 that removes one tile at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import NM, Block, Criterion, Element, Granularity, Inputs
from sparse_engine.pruning import prune as prune_model
from sparse_engine.pruning.criteria import find_criterion
from sparse_engine.pruning.criteria.obs import OBS
from sparse_engine.pruning.recovery import cholesky, least_squares, supports
from sparse_engine.pruning.recovery.cholesky import inverse_of_lower
from sparse_engine.pruning.recovery.least_squares import refit
from sparse_engine.pruning.recovery.removal import RemovalCosts
from sparse_engine.pruning.recovery.supports import SupportBatch, for_each_support

TILES = [Element(), *(Block(*shape) for shape in ((4, 1), (1, 4), (4, 4), (16, 1), (3, 5)))]


def example(out: int = 10, features: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and the Hessian of correlated inputs of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features, generator=generator)
    x = torch.randn(features, 3 * features, generator=generator)
    x *= torch.linspace(0.2, 3, features)[:, None]
    x += 0.7 * x.roll(1, 0)
    return weight, x @ x.T + torch.eye(features)


def random_mask(granularity: Granularity, weight: Tensor, density: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    score = torch.rand(weight.shape, generator=generator)
    return granularity.mask(score, granularity.quota(*weight.shape, 1 - density))


def best_loss(target: Tensor, hessian: Tensor, support: Tensor) -> float:
    """min |(v - t) H^(1/2)|^2 over v on a support [in], for one row t [in], in float64."""
    target, hessian = target.double(), hessian.double()
    fitted = torch.zeros_like(target)
    at = support.nonzero()[:, 0]
    fitted[at] = torch.linalg.solve(hessian[at][:, at], hessian[at] @ target)
    return float((fitted - target) @ hessian @ (fitted - target))


def loss(fitted: Tensor, target: Tensor, hessian: Tensor) -> float:
    change = (fitted - target).double()
    return float(((change @ hessian.double()) * change).sum())


@pytest.mark.parametrize("density", [0.15, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("granularity", TILES, ids=str)
def test_a_score_is_what_the_removal_of_a_tile_costs(
    granularity: Block, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supports, "BATCH_ELEMENTS", 300)  # several batches
    monkeypatch.setattr(cholesky, "_factorise_float64", None)  # none needs the fallback
    weight, hessian = example()
    keep = random_mask(granularity, weight, density)
    keep[:, 7] = False  # some tiles are partly removed
    keep[0] = False
    fitted, score = RemovalCosts(weight, hessian, granularity.cols).of(keep)
    assert not fitted[~keep].any()
    assert not score[~keep].any()
    for i, row in enumerate(keep):
        least = best_loss(weight[i], hessian, row)
        assert loss(fitted[i : i + 1], weight[i : i + 1], hessian) == pytest.approx(least, 1e-3)
        for start in range(0, weight.shape[1], granularity.cols):
            without = row.clone()
            without[start : start + granularity.cols] = False
            increase = best_loss(weight[i], hessian, without) - least
            got = float(score[i, start : start + granularity.cols].sum())
            assert got == pytest.approx(increase, rel=1e-3, abs=1e-3 * max(least, 1))


def naive_obs(weight: Tensor, hessian: Tensor, granularity: Block, counts: list[int]) -> Tensor:
    """The keep mask after cuts to so many tiles, each one by brute force."""
    out, features = weight.shape
    rows, cols = granularity.rows, granularity.cols
    tiles = [
        (slice(i, min(i + rows, out)), slice(j, min(j + cols, features)))
        for i in range(0, out, rows)
        for j in range(0, features, cols)
    ]
    keep = weight != 0
    alive = [tile for tile in tiles if keep[tile].any()]
    for count in counts:
        least = [best_loss(weight[i], hessian, keep[i]) for i in range(out)]
        costs = []
        for down, across in alive:
            without = keep.clone()
            without[down, across] = False
            cost = sum(
                best_loss(weight[i], hessian, without[i]) - least[i] for i in range(out)[down]
            )
            costs.append(cost / keep[down, across].numel())
        best = sorted(range(len(alive)), key=lambda k: -costs[k])
        for k in best[count:]:
            keep[alive[k]] = False
        alive = [alive[k] for k in best[:count]]
    return keep


def prune(
    criterion: Criterion, weight: Tensor, hessian: Tensor, granularity: Granularity, sparsity: float
) -> tuple[Tensor, Tensor]:
    inputs = Inputs(hessian=hessian)
    return criterion.prune(weight, inputs, granularity, sparsity, torch.Generator())


@pytest.mark.parametrize("ratio", [0.1, 0.8])  # one cut, several cuts
@pytest.mark.parametrize("granularity", TILES, ids=str)
def test_masks_equal_those_of_a_naive_run(granularity: Block, ratio: float) -> None:
    weight, hessian = example(out=18, features=9)
    weight[3:5] = 0
    weight[:16, 8] = 0
    groups = granularity.groups(18, 9)
    last = groups - granularity.quota(18, 9, 0.72)
    gaps = [sum(1.5**k for k in range(cut)) for cut in range(4)]  # cuts become smaller
    densities = [last / ratio**gap / groups for gap in gaps]
    nonzero = int(granularity.group_scores(weight.abs()).count_nonzero())
    counts = [-int(-density * groups // 1) for density in densities]
    counts = [last, *(count for count in counts[1:] if count < ratio * nonzero)]
    pruned, keep = prune(OBS(ratio), weight, hessian, granularity, 0.72)
    assert (len(counts) > 1) == (ratio > 0.1)
    assert torch.equal(keep, naive_obs(weight, hessian, granularity, counts[::-1]))
    expected = refit((weight @ hessian).double(), hessian.double(), keep)
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-3, atol=1e-3)
    assert not pruned[~keep].any()


@pytest.mark.parametrize("granularity", [*TILES, NM(2, 4)], ids=str)
def test_error_is_below_that_of_sparsegpt_with_a_refit(granularity: Granularity) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator)
    x = torch.randn(64, 16, generator=generator) @ torch.randn(16, 256, generator=generator)
    x += 6 * torch.randn(64, 256, generator=generator)
    x *= torch.randn(64, 1, generator=generator).exp()
    hessian = x @ x.T
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    sparsity = granularity.fixed_sparsity or 0.7
    fitted, keep = prune(OBS(), weight, hessian, granularity, sparsity)
    _, other = prune(find_criterion("sparsegpt"), weight, hessian, granularity, sparsity)
    assert keep.sum() <= other.sum() + 16  # partial tiles
    reference = refit(weight @ hessian, hessian, other)
    assert loss(fitted, weight, hessian) < loss(reference, weight, hessian)


@pytest.mark.parametrize("granularity", TILES, ids=str)
def test_a_trace_passes_through_every_sparsity(granularity: Block) -> None:
    weight, hessian = example(out=19, features=33)
    sparsities = [0.0, 0.05, 0.5, 0.5, 0.8, 0.97]
    found = list(
        OBS().trace(weight, Inputs(hessian=hessian), granularity, sparsities, torch.Generator())
    )
    assert len(found) == len(sparsities)
    before = torch.ones_like(found[0][1])
    for sparsity, (fitted, keep) in zip(sparsities, found, strict=True):
        kept = int(granularity.group_scores(keep.float()).count_nonzero())
        assert kept == granularity.groups(19, 33) - granularity.quota(19, 33, sparsity)
        assert not (keep & ~before).any()
        expected = refit((weight @ hessian).double(), hessian.double(), keep)
        torch.testing.assert_close(fitted.double(), expected, rtol=2e-3, atol=2e-3)
        before = keep
    single, keep = prune(OBS(), weight, hessian, granularity, 0.05)
    (first, traced), *_ = OBS().trace(
        weight, Inputs(hessian=hessian), granularity, [0.05], torch.Generator()
    )
    assert torch.equal(keep, traced)
    torch.testing.assert_close(single, first)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 8)], ids=str)
def test_patterns_are_exact_and_reached_in_stages(pattern: NM) -> None:
    weight, hessian = example(out=24, features=42)  # the last group is shorter
    weight[1] = 0
    weight[2, :3] = 0
    sparsity = pattern.fixed_sparsity
    fitted, keep = prune(OBS(), weight, hessian, pattern, sparsity)
    once, keep_once = prune(OBS(0.1), weight, hessian, pattern, sparsity)
    _, score = RemovalCosts(weight, hessian).of(weight != 0)
    assert torch.equal(keep_once, pattern.mask(score) & (weight != 0))
    assert not keep[1].any()
    assert int(keep[2, : pattern.of].sum()) <= pattern.keep
    groups = keep[3:, :40].unflatten(1, (-1, pattern.of)).sum(2)
    assert (groups == pattern.keep).all()
    assert (keep[3:, 40:].sum(1) == min(2, pattern.keep)).all()
    assert loss(fitted, weight, hessian) < 0.99 * loss(once, weight, hessian)


@pytest.mark.parametrize("granularity", [Element(), Block(4, 1), Block(3, 5)], ids=str)
def test_zeros_stay_and_count_first(granularity: Block) -> None:
    weight, hessian = example(out=12, features=30)
    zero = ~random_mask(granularity, weight, 0.4)
    weight[zero] = 0
    groups = granularity.groups(12, 30)
    pruned, keep = prune(OBS(), weight, hessian, granularity, 0.3)  # less than there is
    assert torch.equal(keep, ~zero)
    torch.testing.assert_close(pruned, weight, rtol=1e-3, atol=1e-3)
    _, keep = prune(OBS(), weight, hessian, granularity, 0.8)
    assert not keep[zero].any()
    kept = int(granularity.group_scores(keep.float()).count_nonzero())
    assert kept == groups - granularity.quota(12, 30, 0.8)
    pruned, keep = prune(OBS(), torch.zeros(12, 30), hessian, granularity, 0.8)
    assert not pruned.any()
    assert not keep.any()


def test_many_supports_make_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supports, "BATCH_ELEMENTS", 1)
    weight, _ = example()
    keep = random_mask(Element(), weight, 0.5)
    keep[2] = keep[3]
    batches: list[SupportBatch] = []
    for_each_support(keep, batches.append)
    assert sorted(len(batch.rows) for batch in batches) == [1] * 9
    copy = torch.zeros_like(weight)
    rest = torch.zeros_like(weight)
    for batch in batches:
        batch.write(batch.read(weight), copy)
        others = batch.complement(weight.shape[1])
        others.write(others.read(weight), rest)
    assert torch.equal(copy, weight * keep)
    assert torch.equal(rest, weight * ~keep)


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 300])
def test_inverse_of_lower(n: int) -> None:
    factor = torch.randn(2, n, n, generator=torch.Generator().manual_seed(0)).tril() / n
    factor.diagonal(dim1=1, dim2=2).add_(1)
    inverse = inverse_of_lower(factor)
    assert torch.equal(inverse, inverse.tril())
    torch.testing.assert_close(inverse @ factor, torch.eye(n).expand(2, n, n))


@pytest.mark.parametrize("granularity", [Element(), Block(2, 3), NM(2, 4)], ids=str)
def test_a_hessian_of_low_rank_is_survived(granularity: Granularity) -> None:
    torch.manual_seed(0)
    weight, thin = torch.randn(6, 40), torch.randn(40, 3)
    hessian = 1e6 * thin @ thin.T - 1e-2 * torch.eye(40)  # indefinite by rounding
    sparsity = granularity.fixed_sparsity or 0.6
    pruned, keep = prune(OBS(), weight, hessian, granularity, sparsity)
    assert pruned.isfinite().all()
    assert abs(float(keep.float().mean()) - 1 + sparsity) < 0.05


def test_bad_input_is_refused() -> None:
    weight, hessian = example()
    hessian[2, 2] = torch.nan
    with pytest.raises(UsageError, match="NaN"):
        prune(OBS(), weight, hessian, Element(), 0.5)
    for ratio in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="ratio"):
            OBS(ratio)


def test_score_is_the_loss_of_removing_one_weight_of_the_dense_layer() -> None:
    weight, hessian = example()
    score = OBS().score(weight, Inputs(hessian=hessian), torch.Generator())
    _, expected = RemovalCosts(weight, hessian).of(torch.ones_like(weight, dtype=torch.bool))
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=0)


def test_least_squares_does_not_repeat_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same seed the model is that of a criterion whose fit is repeated."""

    class Refitted(OBS):
        fits = False

    models = []
    for criterion in (OBS(), Refitted()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        batches = [(torch.randn(40, 12),)]
        with monkeypatch.context() as patch:
            if criterion.fits:
                patch.setattr(least_squares, "refit", None)
            prune_model(model, 0.6, "2x1", criterion, "least_squares", batches)
        models.append(model)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_pruned_model_is_pruned_further() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    batches = [(torch.randn(40, 12),)]
    prune_model(model, 0.5, "element", "magnitude")
    before = model[0].weight != 0
    prune_model(model, 0.8, "element", "obs", "least_squares", batches)
    after = model[0].weight != 0
    assert not (after & ~before).any()
    assert int(after.sum()) == 96 - round(0.8 * 96)
