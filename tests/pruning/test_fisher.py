"""Scores and updates of the Fisher criterion against explicit inverses in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning import NM, Block, Element, Granularity, Inputs
from sparse_engine.pruning.criteria import find_criterion, fisher
from sparse_engine.pruning.criteria.fisher import DAMPING, Fisher

GENERATOR = torch.Generator()


def example(width: int, out: int = 6, columns: int = 21) -> tuple[Tensor, Tensor]:
    """A weight, and the blocks of 40 gradients [out, blocks, width, width]."""
    generator = torch.Generator().manual_seed(width)
    weight = torch.randn(out, columns, generator=generator)
    blocks = -(-columns // width)
    scales = torch.logspace(-1, 0.5, columns).roll(3)
    gradients = torch.randn(40, out, columns, generator=generator) * scales
    gradients += 0.8 * gradients.roll(1, 2)
    padded = torch.nn.functional.pad(gradients, (0, blocks * width - columns))
    g = padded.view(40, out, blocks, width)
    return weight, torch.einsum("mobi,mobj->obij", g, g) / 40


def inverse_by_rank_one_updates(gradients: Tensor, damping: float) -> Tensor:
    """Of damping I + mean g g^T, as in the paper: Sherman-Morrison for one gradient at a time."""
    m, width = gradients.shape
    inverse = torch.eye(width, dtype=gradients.dtype) / damping
    for g in gradients:
        x = inverse @ g
        inverse -= torch.outer(x, x) / (m + g @ x)
    return inverse


def damped(weight: Tensor, blocks: Tensor, row: int, block: int, support: Tensor) -> Tensor:
    """F + lambda I of one block on a support, float64 [n, n]."""
    blocks = blocks.double()
    damping = DAMPING * blocks.diagonal(dim1=2, dim2=3).sum() / weight.numel()
    full = blocks[row, block] + damping * torch.eye(blocks.shape[-1])
    return full[support][:, support]


def naive_scores(weight: Tensor, blocks: Tensor, span: int) -> Tensor:
    """The loss of each part of `span` columns, divided by the span, on all of its weights."""
    width, w = blocks.shape[-1], weight.double()
    scores = torch.zeros_like(w)
    for i in range(weight.shape[0]):
        for start in range(0, weight.shape[1], span):
            columns = range(start, min(start + span, weight.shape[1]))
            block, first = start // width, start // width * width
            inside = range(first, min(first + width, weight.shape[1]))
            support = torch.tensor([j - first for j in inside if weight[i, j] != 0])
            chosen = [j for j in columns if weight[i, j] != 0]
            if not chosen:
                continue
            inverse = torch.linalg.inv(damped(weight, blocks, i, block, support))
            at = torch.tensor([support.tolist().index(j - first) for j in chosen])
            q = w[i, chosen]
            loss = q @ torch.linalg.inv(inverse[at][:, at]) @ q / 2
            scores[i, list(columns)] = loss / span
    return scores


def test_scores_are_those_of_the_rank_one_updates_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(30, 8, generator=generator).double()
    weight = torch.randn(1, 8, generator=generator)
    mean = gradients.T @ gradients / 30
    damping = DAMPING * float(mean.diagonal().mean())
    inverse = inverse_by_rank_one_updates(gradients, damping)
    found = Fisher(block=8).score(weight, Inputs(fisher=mean.float()[None, None]), GENERATOR)
    expected = weight.double().square() / inverse.diagonal() / 2
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("width", "span"), [(5, 1), (21, 1), (50, 1), (6, 2), (6, 3), (8, 8), (12, 4), (50, 50)]
)
@pytest.mark.parametrize("zeros", [False, True])
def test_scores_of_blocks(
    width: int, span: int, zeros: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "PART", 3 * width**2)  # blocks are factorised in several parts
    weight, blocks = example(width)
    if zeros:
        weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 0
        weight[2] = 0
    found = fisher._scores(weight, blocks, span).double()
    torch.testing.assert_close(found, naive_scores(weight, blocks, span), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("granularity", [Element(), Block(1, 4), Block(3, 2), Block(6, 1)])
def test_the_mean_score_of_a_group_is_its_loss_in_all_rows(granularity: Block) -> None:
    criterion = Fisher(block=10)
    width = criterion.fisher_width(granularity.cols)
    weight, blocks = example(width, columns=20)
    scores = criterion.element_scores(weight, Inputs(fisher=blocks), granularity, GENERATOR)
    groups = granularity.group_scores(scores).double()
    parts = naive_scores(weight, blocks, granularity.cols) * granularity.cols
    for r in range(groups.shape[0]):
        for c in range(groups.shape[1]):
            rows = slice(r * granularity.rows, (r + 1) * granularity.rows)
            loss = parts[rows, c * granularity.cols].sum()
            torch.testing.assert_close(
                groups[r, c] * granularity.rows * granularity.cols, loss, rtol=1e-4, atol=1e-6
            )


def test_a_pair_that_cancels_costs_little() -> None:
    """With g_1 = g_2 the loss depends on w_1 + w_2 alone: one of them can take over from both."""
    weight = torch.tensor([[1.0, -1.0, 0.2, 0.2]])
    blocks = torch.tensor([[[[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]])
    _, keep = Fisher(block=4).prune(weight, Inputs(fisher=blocks), Block(1, 2), 0.5, GENERATOR)
    assert keep.tolist() == [[False, False, True, True]]
    scores = Fisher(block=4).element_scores(weight, Inputs(fisher=blocks), Block(1, 2), GENERATOR)
    diagonal = Fisher().score(weight, Inputs(fisher=torch.ones(1, 4, 1, 1)), GENERATOR)
    assert diagonal[0, 0] > 20 * diagonal[0, 2]
    # Both together: 1/2 (1, -1) (F + lambda I) (1, -1)^T = lambda.
    assert float(scores[0, 0]) * 2 == pytest.approx(DAMPING, rel=1e-3)


@pytest.mark.parametrize("width", [5, 21, 50])
@pytest.mark.parametrize("granularity", [Element(), Block(1, 3), Block(2, 1), NM(2, 4)])
def test_kept_weights_adapt_within_their_block(
    width: int, granularity: Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "PART", 2 * width**2)
    weight, blocks = example(width)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.2] = 0
    pruned, keep = Fisher(block=width).prune(
        weight, Inputs(fisher=blocks), granularity, 0.5, GENERATOR
    )
    assert torch.equal(
        keep,
        granularity.mask(
            Fisher(block=width).element_scores(
                weight, Inputs(fisher=blocks), granularity, GENERATOR
            ),
            granularity.quota(*weight.shape, 0.5),
        ),
    )
    assert not pruned[~keep | (weight == 0)].any()
    w = weight.double()
    for i in range(weight.shape[0]):
        for block in range(blocks.shape[1]):
            first = block * width
            inside = slice(first, min(first + width, weight.shape[1]))
            n = inside.stop - first
            kept = (keep & (weight != 0))[i, inside]
            whole = damped(weight, blocks, i, block, torch.arange(n))
            move = torch.linalg.inv(whole[kept][:, kept]) @ whole[kept][:, ~kept]
            expected = w[i, inside][kept] + move @ w[i, inside][~kept]
            torch.testing.assert_close(
                pruned[i, inside][kept].double(), expected, rtol=1e-3, atol=1e-5
            )


def test_the_diagonal_moves_nothing() -> None:
    weight, blocks = example(1)
    pruned, keep = Fisher().prune(weight, Inputs(fisher=blocks), Element(), 0.5, GENERATOR)
    assert torch.equal(pruned, weight * keep)
    scores = weight.square() * blocks[:, :, 0, 0] / 2
    assert scores[~keep].max() <= scores[keep].min()


@pytest.mark.parametrize(
    ("block", "span", "width"),
    [(1, 1, 1), (1, 4, 1), (50, 1, 50), (50, 4, 48), (50, 32, 32), (50, 64, 32), (50, 768, 48)],
)
def test_a_group_lies_within_a_block(block: int, span: int, width: int) -> None:
    assert Fisher(block=block).fisher_width(span) == width


def test_options() -> None:
    assert str(find_criterion("fisher(block=50)")) == "fisher(block=50)"
    assert str(find_criterion("taylor(signed=True)")) == "taylor(signed=True)"
    assert find_criterion("taylor(signed=True)").needs == ("gradient",)
    assert find_criterion("taylor").needs == ("squared_gradient",)
    for block in (0, -1, 1025):
        with pytest.raises(UsageError, match="block"):
            find_criterion(f"fisher(block={block})")


def test_formulas_of_taylor_and_snip() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 5, generator=generator)
    gradients = torch.randn(6, 4, 5, generator=generator)
    inputs = Inputs(gradient=gradients.mean(0), squared_gradient=gradients.square().mean(0))
    for i in range(4):
        for j in range(5):
            changes = [float(weight[i, j] * g[i, j]) for g in gradients]
            mean = sum(changes) / 6
            expected = {
                "taylor": sum(x**2 for x in changes) / 6,
                "taylor(signed=True)": mean**2,
                "snip": abs(mean),
            }
            for name, value in expected.items():
                found = find_criterion(name).score(weight, inputs, generator)[i, j]
                assert float(found) == pytest.approx(value, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("plain", "by_row", "width"),
    [
        ("taylor", "taylor(per_row=True)", 1),
        ("snip", "snip(per_row=True)", 1),
        ("fisher", "fisher(per_row=True)", 1),
        ("fisher(block=7)", "fisher(block=7, per_row=True)", 7),
    ],
)
def test_weights_compete_within_the_layer_or_a_row(plain: str, by_row: str, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 21, generator=generator)
    weight[0] *= 100
    inputs = Inputs(
        gradient=torch.ones(6, 21),
        squared_gradient=torch.ones(6, 21),
        fisher=torch.eye(width).expand(6, 21 // width, width, width),
    )
    removed = []
    for criterion in (plain, by_row):
        _, keep = find_criterion(criterion).prune(weight, inputs, Element(), 1 / 3, generator)
        removed.append((~keep).sum(1).tolist())
    assert sum(removed[0]) == 42
    assert removed[0][0] < 3
    assert removed[1] == [7] * 6
