"""Criteria against naive implementations in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import (
    CRITERIA,
    NM,
    Block,
    Criterion,
    Element,
    Granularity,
    Inputs,
    prune,
)
from sparse_engine.pruning.criteria import find_criterion
from sparse_engine.pruning.plan import make_plan, with_couplings
from sparse_engine.pruning.recovery.cholesky import factorise, upper_factor_of_inverse


def example(out: int = 9, features: int = 13, seed: int = 0) -> tuple[Tensor, Inputs]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features, generator=generator)
    x = torch.randn(features, 200, generator=generator) * torch.linspace(0.2, 3, features)[:, None]
    x += 0.7 * x.roll(1, 0)
    hessian = x @ x.T + 2.0 * torch.eye(features)
    return weight, Inputs(norms=x.norm(dim=1), hessian=hessian)


def test_names_find_every_criterion() -> None:
    names = [known.name for known in CRITERIA]
    assert {"random", "magnitude", "wanda", "sparsegpt"} <= set(names)
    assert len(set(names)) == len(names)
    for known in CRITERIA:
        assert isinstance(find_criterion(known.name), known)
        own = known()
        assert find_criterion(own) is own
    with pytest.raises(UsageError, match=", ".join(names)):
        find_criterion("obd")


def test_magnitude_and_wanda_scores() -> None:
    weight, inputs = example()
    assert inputs.norms is not None
    magnitude = find_criterion("magnitude").score(weight, inputs, torch.Generator())
    wanda = find_criterion("wanda").score(weight, inputs, torch.Generator())
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            torch.testing.assert_close(magnitude[i, j], weight[i, j] ** 2)
            torch.testing.assert_close(wanda[i, j], (weight[i, j].abs() * inputs.norms[j]) ** 2)


def test_wanda_compares_within_a_row() -> None:
    weight, inputs = example()
    weight[0] *= 1000
    _, keep = find_criterion("wanda").prune(weight, inputs, Element(), 6 / 13, torch.Generator())
    assert (~keep).sum(1).tolist() == [6] * 9


def test_random_depends_on_the_seed_only() -> None:
    weight, inputs = example()
    random = find_criterion("random")
    masks = [
        random.prune(weight, inputs, Element(), 0.5, torch.Generator().manual_seed(seed))[1]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def naive_sparsegpt(
    weight: Tensor, hessian: Tensor, granularity: Granularity, sparsity: float, width: int
) -> tuple[Tensor, Tensor]:
    """Column by column with an explicit inverse that shrinks: no Cholesky factor anywhere."""
    pruned, inverse = weight.double().clone(), hessian.double().inverse()
    out, features = weight.shape
    keep = torch.ones(out, features, dtype=torch.bool)
    # With columns < j fixed, the inverse Hessian of the others has (U_jj)^2 at its corner j.
    corners = torch.empty(features, dtype=torch.float64)
    inverses = []
    for j in range(features):
        inverses.append(inverse.clone())
        corners[j] = inverse[j, j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    dropped = 0
    for start in range(0, features, width):
        stop = min(start + width, features)
        score = pruned[:, start:stop] ** 2 / corners[start:stop]
        due = granularity.quota(out, stop, sparsity)
        keep[:, start:stop] = granularity.mask(score, due - dropped)
        dropped = due
        for j in range(start, stop):
            for i in range(out):
                if not keep[i, j]:
                    step = pruned[i, j] / inverses[j][j, j]
                    pruned[i, j:] -= step * inverses[j][j, j:]
                    pruned[i, j] = 0
    return pruned, keep


@pytest.mark.parametrize(
    ("granularity", "sparsity", "width"),
    [(Element(), 0.6, 128), (Block(4, 1), 0.5, 128), (Block(2, 5), 0.5, 125), (NM(2, 4), 0.5, 4)],
    ids=str,
)
def test_sparsegpt_equals_a_naive_one(
    granularity: Granularity, sparsity: float, width: int
) -> None:
    weight, inputs = example(out=9, features=150)
    assert inputs.hessian is not None
    pruned, keep = find_criterion("sparsegpt").prune(
        weight, inputs, granularity, sparsity, torch.Generator()
    )
    expected, expected_keep = naive_sparsegpt(weight, inputs.hessian, granularity, sparsity, width)
    assert torch.equal(keep, expected_keep)
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-3, atol=1e-3)
    assert not pruned[~keep].any()


def test_sparsegpt_counts_are_exact_over_slices() -> None:
    weight, inputs = example(out=3, features=300)
    _, keep = find_criterion("sparsegpt").prune(weight, inputs, Element(), 0.77, torch.Generator())
    assert int((~keep).sum()) == round(0.77 * 900)


def test_sparsegpt_score_is_the_loss_of_removing_one_weight() -> None:
    weight, inputs = example()
    assert inputs.hessian is not None
    score = find_criterion("sparsegpt").score(weight, inputs, torch.Generator())
    hessian = inputs.hessian.double()
    for j in (0, 5, 12):
        others = [k for k in range(13) if k != j]
        # Least squares over the others for what column j gave: the Schur complement.
        left = hessian[j, j] - hessian[j, others] @ torch.linalg.solve(
            hessian[others][:, others], hessian[others, j]
        )
        expected = weight[:, j].double() ** 2 * left
        torch.testing.assert_close(score[:, j].double(), expected, rtol=1e-4, atol=0)


def test_sparsegpt_loses_less_than_magnitude() -> None:
    weight, inputs = example(out=16, features=64)
    assert inputs.hessian is not None
    losses: dict[str, float] = {}
    for name in ("magnitude", "sparsegpt"):
        pruned, _ = find_criterion(name).prune(weight, inputs, Element(), 0.7, torch.Generator())
        change = pruned - weight
        losses[name] = float(((change @ inputs.hessian) * change).sum())
    assert losses["sparsegpt"] < 0.7 * losses["magnitude"]


def test_upper_factor_of_inverse() -> None:
    _, inputs = example()
    assert inputs.hessian is not None
    upper = upper_factor_of_inverse(inputs.hessian)
    assert torch.equal(upper, upper.triu())
    expected = inputs.hessian.double().inverse()
    torch.testing.assert_close(upper.T.double() @ upper.double(), expected, rtol=1e-4, atol=1e-6)


def test_factorise_survives_a_matrix_that_rounding_made_indefinite() -> None:
    torch.manual_seed(0)
    thin = torch.randn(40, 3)
    singular = thin @ thin.T - 1e-6 * torch.eye(40)
    good = torch.eye(40) * 2
    assert torch.linalg.cholesky_ex(singular)[1] > 0
    for factor in (factorise(singular), factorise(torch.stack([good, singular]))[1]):
        torch.testing.assert_close(factor @ factor.T, singular, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(factorise(torch.stack([good, singular]))[0], good.sqrt())


def test_factorise_refuses_a_negative_matrix() -> None:
    with pytest.raises(UsageError, match="not positive semidefinite"):
        factorise(-torch.eye(3))


def test_own_criterion_is_accepted() -> None:
    class Last(Criterion):
        name = "last"

        def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
            return -torch.arange(weight.numel(), dtype=torch.float32).view_as(weight)

    _, keep = find_criterion(Last()).prune(
        torch.ones(2, 4), Inputs(), Element(), 0.5, torch.Generator()
    )
    assert keep.tolist() == [[True] * 4, [False] * 4]


@pytest.mark.parametrize("look", ["both", "forward", "backward"])
def test_coupled_against_sums_over_paths(look: str) -> None:
    """Three layers: each weight has the squared magnitudes of all paths through it."""
    torch.manual_seed(0)
    a, b, c = (torch.randn(shape).double() for shape in ((6, 4), (5, 6), (3, 5)))
    model = nn.Sequential(*(nn.Linear(w.shape[1], w.shape[0]) for w in (a, b, c)))
    with torch.no_grad():
        for layer, weight in zip(model, (a, b, c), strict=True):
            layer.weight.copy_(weight)
    plan = with_couplings(make_plan(model, lambda module, name: True), model)
    criterion = find_criterion(f"coupled(look={look!r})")
    inputs = Inputs(coupling=plan.layers[1].coupling)
    score = criterion.score(plan.layers[1].weight.detach(), inputs, torch.Generator())
    for i in range(5):
        for j in range(6):
            expected = sum(
                float((c[k, i] * b[i, j] * a[j, n]) ** 2) for k in range(3) for n in range(4)
            )
            if look == "forward":
                expected /= float(a[j].square().sum())
            elif look == "backward":
                expected /= float(c[:, i].square().sum())
            assert float(score[i, j]) == pytest.approx(expected, rel=1e-5)


def test_coupled_without_a_neighbour_is_magnitude_and_says_so() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    report = prune(models[0], 0.5, criterion="coupled", filter_fn=lambda module, name: True)
    prune(models[1], 0.5, criterion="magnitude", filter_fn=lambda module, name: True)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    message = "0 and 1 more: no adjacent layer was found: scored by its own magnitude"
    assert message in report.warnings


def test_coupled_refuses_another_look() -> None:
    with pytest.raises(UsageError, match="look='around'"):
        find_criterion("coupled(look='around')")


@pytest.mark.parametrize("granularity", [Element(), Block(3, 1)])
def test_sparsegpt_may_remove_nothing(granularity: Granularity) -> None:
    weight, inputs = example()
    pruned, keep = find_criterion("sparsegpt").prune(
        weight, inputs, granularity, 0.0, torch.Generator()
    )
    assert keep.all()
    assert torch.equal(pruned, weight)
