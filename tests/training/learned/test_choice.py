"""Choice: the best groups by score, and floors that guard layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sparse_engine.training.learned.choice import Choice, lowest_removed
from sparse_engine.training.learned.groups import WeightGroups


class Plain(WeightGroups):
    """Groups of given sizes without weights."""

    def __init__(self, name: str, sizes: list[int], least: int = 1) -> None:
        self.name, self.least = name, least
        self.count, self.sizes = len(sizes), torch.tensor(sizes)

    def sums(self, values: object) -> Tensor:
        raise NotImplementedError

    def factors(self, of_groups: Tensor) -> object:  # type: ignore[override]
        raise NotImplementedError


def test_a_share_of_the_weights_of_all_layers_goes_with_the_lowest_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(n, generator=generator) for n in (5, 9, 3)]
    sizes = [torch.full((n,), size) for n, size in ((5, 4), (9, 1), (3, 10))]
    for share in (0.0, 0.1, 0.35, 0.5, 0.93, 1.0):
        keeps = lowest_removed(scores, sizes, share)
        kept = torch.cat(keeps)
        flat, size = torch.cat(scores), torch.cat(sizes)
        if kept.any() and not kept.all():
            assert flat[kept].min() >= flat[~kept].max()
        order = flat.argsort().tolist()
        wanted = share * float(size.sum())
        missed = [abs(float(size[order[:n]].sum()) - wanted) for n in range(len(order) + 1)]
        assert abs(float(size[~kept].sum()) - wanted) == pytest.approx(min(missed))


@pytest.mark.parametrize("count", [1, 7, 10, 64])
def test_equal_sizes_round_to_the_nearest_number_of_groups(count: int) -> None:
    scores = torch.arange(float(count))
    for share in (0.0, 0.2, 0.45, 0.5, 0.9):
        for sizes in (torch.ones(count), torch.full((count,), 3)):
            [keep] = lowest_removed([scores], [sizes], share)
            removed = int((~keep).sum())
            assert removed == round(share * count)
            assert not keep[:removed].any()


def test_a_layer_keeps_its_floor_and_others_lose_more() -> None:
    groups = [Plain("a", [1] * 10), Plain("b", [1] * 10, least=4)]
    choice = Choice(groups, 0.8)
    assert choice.floors == [2, 4]
    scores = [torch.arange(10.0), 100 + torch.arange(10.0)]
    a, b = choice.best(scores, 0.5, together=True)
    assert a.tolist() == [False] * 8 + [True] * 2
    assert b.tolist() == [False] * 2 + [True] * 8
    assert choice.guarded == {0}
    [warning] = choice.warnings("movement")
    assert warning.startswith("guard: movement keeps 2 of the 10 groups of a")


def test_without_need_no_layer_is_guarded() -> None:
    choice = Choice([Plain("a", [1] * 10), Plain("b", [1] * 10)], None)
    scores = [torch.arange(10.0), torch.arange(10.0)]
    for together, share in itertools.product((True, False), (0.3, 0.9)):
        keeps = choice.best(scores, share, together)
        assert [int(keep.sum()) for keep in keeps] == [10 - round(10 * share)] * 2
    assert not choice.guarded


def test_one_group_is_kept_in_any_case() -> None:
    choice = Choice([Plain("a", [1] * 4)], 1.0)
    [keep] = choice.at_least([torch.tensor([3.0, 9.0, 1.0, 2.0])], [torch.zeros(4).bool()])
    assert keep.tolist() == [False, True, False, False]
    assert choice.guarded == {0}
    assert Choice([Plain("a", [1] * 1000)], None).floors == [20]
    assert Choice([Plain("a", [1] * 1000)], None, 0.99).floors == [10]
