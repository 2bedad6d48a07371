"""Scores of groups, against loops over their weights, and against removing them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria import Criterion, Groups, Inputs, Reader, find_criterion

COUNT, TOKENS = 5, 30
# Groups of two columns each in any order, and columns that belong to no group.
READ = (torch.tensor([3, 0, -1, 1, 4, 0, 2, 3, 1, 4, 2, -1]), torch.arange(5))
WRITTEN = torch.tensor([1, 1, -1, 0, 3, 4, 2, 0, 2, 3, 4])
RIDGE = 0.5


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = tuple(draw(len(of), TOKENS, seed=10 + i) for i, of in enumerate(READ))
SLOPES = draw(7, COUNT, seed=5)


def groups() -> Groups:
    """Two layers that read five groups, and one that computes them."""
    readers = []
    for i, (of, x) in enumerate(zip(READ, X, strict=True)):
        hessian = x @ x.T + RIDGE * torch.eye(len(of))
        norms = x.square().sum(1).sqrt()
        inputs = Inputs(norms=norms, hessian=hessian, ridge=RIDGE)
        readers.append(Reader(draw(4 + i, len(of), seed=i), inputs, of))
    return Groups(COUNT, readers, [(draw(len(WRITTEN), 6, seed=3), WRITTEN)], SLOPES)


def scores(criterion: str | Criterion) -> Tensor:
    return find_criterion(criterion).group_scores(groups(), torch.Generator().manual_seed(0))


def weights_of(group: int) -> list[float]:
    """All weights of a group: the columns that read it and the rows that compute it."""
    found: list[float] = []
    for reader in groups().readers:
        found += reader.weight[:, reader.groups == group].flatten().tolist()
    ((weight, of),) = groups().writers
    return found + weight[of == group].flatten().tolist()


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude(p: int) -> None:
    for group, score in enumerate(scores(f"magnitude(p={p})").tolist()):
        weights = weights_of(group)
        assert score == pytest.approx(sum(abs(w) ** p for w in weights) / len(weights), rel=1e-5)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("option", ["threshold", "sigma"])
def test_a_threshold_removes_all_groups_of_less_norm(option: str, p: int) -> None:
    all_weights = [weights_of(group) for group in range(COUNT)]
    norms = [(sum(abs(w) ** p for w in ws) / len(ws)) ** (1 / p) for ws in all_weights]
    deviation = float(torch.tensor(list(itertools.chain(*all_weights))).std(correction=0))
    for threshold in (0.5, 0.8, 0.9, 1.0, 1.2, 5.0):
        criterion = find_criterion(f"magnitude(p={p}, {option}={threshold})")
        limit = threshold * (deviation if option == "sigma" else 1)
        removals = criterion.removals(groups(), torch.Generator())
        quota = criterion.group_quota(groups(), removals)
        removed = set(removals.order[:quota].tolist())
        assert removed == {group for group, norm in enumerate(norms) if norm < limit}


def test_coupled_is_the_magnitude_of_all_paths() -> None:
    ((writer, of_rows),) = groups().writers
    for group, score in enumerate(scores("coupled").tolist()):
        paths = 0.0
        for reader in groups().readers:
            for column in (reader.groups == group).nonzero()[:, 0]:
                for row in (of_rows == group).nonzero()[:, 0]:
                    pairs = itertools.product(reader.weight[:, column], writer[row])
                    paths += sum(float(out) ** 2 * float(into) ** 2 for out, into in pairs)
        assert score == pytest.approx(paths, rel=1e-5)
    product = scores("coupled(look='forward')") * scores("coupled(look='backward')")
    torch.testing.assert_close(product, scores("coupled"))


def test_wanda() -> None:
    for group, score in enumerate(scores("wanda").tolist()):
        expected = 0.0
        for reader, x in zip(groups().readers, X, strict=True):
            for column in (reader.groups == group).nonzero()[:, 0]:
                norm = float(x[column].norm())
                expected += sum((float(w) * norm) ** 2 for w in reader.weight[:, column])
        assert score == pytest.approx(expected, rel=1e-5)


def output_energy(reader: Reader, x: Tensor, keep: Tensor) -> float:
    return float((reader.weight[:, keep].double() @ x[keep].double()).square().sum())


def test_activation_is_the_energy_of_the_outputs() -> None:
    read = list(zip(groups().readers, X, strict=True))
    energies = [
        sum(output_energy(r, x, r.groups == group) for r, x in read) for group in range(COUNT)
    ]
    torch.testing.assert_close(scores("activation").tolist(), energies, rtol=1e-5, atol=1e-5)
    everything = sum(output_energy(r, x, torch.ones(len(x), dtype=torch.bool)) for r, x in read)
    for threshold in (0.01, 0.1, 0.2, 0.4):
        criterion = find_criterion(f"activation(threshold={threshold})")
        removals = criterion.removals(groups(), torch.Generator())
        below = [group for group, e in enumerate(energies) if e < threshold * everything]
        quota = criterion.group_quota(groups(), removals)
        assert sorted(removals.order[:quota].tolist()) == below


def test_random_is_an_order_of_groups_whatever_their_size() -> None:
    firsts = []
    for seed in range(400):
        removals = find_criterion("random").removals(groups(), torch.Generator().manual_seed(seed))
        assert sorted(removals.order.tolist()) == list(range(COUNT))
        firsts.append(int(removals.order[0]))
    counts = torch.bincount(torch.tensor(firsts), minlength=COUNT)
    assert (counts > 50).all()
    assert (counts < 110).all()
    equal = groups()
    wide = Reader(draw(40, 14, seed=1), Inputs(), torch.tensor([0] * 10 + [1, 2, 3, 4]))
    other = Groups(COUNT, [wide], equal.writers)
    for seed in range(20):
        same = [
            find_criterion("random").removals(of, torch.Generator().manual_seed(seed)).order
            for of in (equal, other)
        ]
        assert torch.equal(*same)
    dead = Reader(wide.weight * (wide.groups != 3), Inputs(), wide.groups)
    for seed in range(20):
        found = find_criterion("random").removals(
            Groups(COUNT, [dead]), torch.Generator().manual_seed(seed)
        )
        assert int(found.order[0]) == 3


def test_gradients() -> None:
    slopes = SLOPES.double()
    torch.testing.assert_close(scores("taylor"), (slopes**2).sum(0) / 7)
    torch.testing.assert_close(scores("taylor(signed=True)"), (slopes.sum(0) / 7) ** 2)
    torch.testing.assert_close(scores("snip"), (slopes.sum(0) / 7).abs())


def test_fisher_removes_the_group_that_adds_least_each_time() -> None:
    removals = find_criterion("fisher").removals(groups(), torch.Generator())

    def growth(removed: list[int]) -> float:
        """1/2 E[(sum of dL/dm)^2] over the removed groups."""
        return float(SLOPES.double()[:, removed].sum(1).square().mean()) / 2

    removed: list[int] = []
    for chosen, cost in zip(removals.order.tolist(), removals.costs.tolist(), strict=True):
        left = [group for group in range(COUNT) if group not in removed]
        growths = {group: growth([*removed, group]) for group in left}
        assert chosen == min(growths, key=lambda group: growths[group])
        assert cost == pytest.approx(growths[chosen] - growth(removed), rel=1e-9, abs=1e-12)
        removed.append(chosen)


class NotANumber(Criterion):
    name = "not_a_number"

    def score(self, weight: Tensor, inputs: Any, generator: torch.Generator) -> Tensor:
        return weight * torch.nan


def test_nan_is_refused() -> None:
    with pytest.raises(UsageError, match="NaN as a score"):
        NotANumber().removals(groups(), torch.Generator())
