"""Allocators against their definitions: uniform, ERK, LAMP and OWL."""

from __future__ import annotations

import pytest
import torch
from calibration_models import bert
from dense_models import FakeDense, counts, layers_of
from driver_models import bert_batches
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import Block, Inputs, prune
from sparse_engine.pruning.allocators import ALLOCATORS, find_allocator
from sparse_engine.pruning.allocators.bounds import MAX_SPARSITY
from sparse_engine.pruning.allocators.lamp import lamp


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.9])
def test_raw_is_one_threshold_for_the_scores_of_all_layers(sparsity: float) -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(20, 50), "b": 3 * torch.rand(7, 11), "c": torch.rand(30, 30) / 2}
    for score in scores.values():
        score[0, 0] = 4  # one group of every layer is kept in any case
    removed = counts(find_allocator("raw(max_sparsity=1.0)"), of_scores(**scores), sparsity)
    everything = torch.cat([score.flatten() for score in scores.values()]).sort().values
    threshold = everything[round(sparsity * len(everything))]
    for name, score in scores.items():
        assert removed[name] == int((score < threshold).sum())


def test_lamp_against_its_definition() -> None:
    torch.manual_seed(0)
    score = torch.rand(3, 5)
    values = score.flatten().tolist()
    expected = [s / sum(t for t in values if t >= s) for s in values]
    torch.testing.assert_close(lamp(score), torch.tensor(expected))


def test_all_zero_layer_gives_finite_scores() -> None:
    assert lamp(torch.zeros(2, 3)).isfinite().all()


def of_scores(**scores: torch.Tensor) -> FakeDense:
    shapes = {name: (len(score), score.shape[1]) for name, score in scores.items()}
    return FakeDense(layers_of(**shapes), scores)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.97])
def test_lamp_is_one_threshold_for_all_layers(sparsity: float) -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(20, 50), "b": torch.rand(7, 11).square(), "c": torch.rand(30, 30)}
    removed = counts(find_allocator("lamp(max_sparsity=1.0)"), of_scores(**scores), sparsity)
    total = sum(score.numel() for score in scores.values())
    assert sum(removed.values()) == round(sparsity * total)
    everything = torch.cat([lamp(score) for score in scores.values()]).sort().values
    threshold = everything[round(sparsity * total)]
    for name, score in scores.items():
        assert removed[name] == int((lamp(score) < threshold).sum())


def test_layers_with_a_heavy_tail_lose_more() -> None:
    torch.manual_seed(0)
    flat, tailed = torch.rand(100, 10) + 1, torch.rand(100, 10) ** 8
    removed = counts(find_allocator("lamp"), of_scores(flat=flat, tailed=tailed), 0.5)
    assert removed["tailed"] > removed["flat"] + 100
    scaled = counts(find_allocator("lamp"), of_scores(flat=1000 * flat, tailed=tailed), 0.5)
    assert removed == scaled


def test_no_layer_is_emptied() -> None:
    spike = torch.full((100, 10), 1e-12)
    spike[0, 0] = 1
    removed = counts(find_allocator("lamp"), of_scores(spike=spike, flat=torch.ones(100, 10)), 0.6)
    assert removed["spike"] == MAX_SPARSITY * 1000
    beyond = of_scores(a=torch.rand(10, 10), b=torch.rand(1, 2))
    assert counts(find_allocator("lamp"), beyond, 0.995) == {"a": 99, "b": 1}


SHAPES = {"wide": (64, 256), "tall": (256, 64), "small": (16, 16), "narrow": (2, 40)}


@pytest.mark.parametrize("granularity", [None, Block(4, 1)], ids=["element", "4x1"])
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.9])
def test_erk_density_follows_the_shape(sparsity: float, granularity: Block | None) -> None:
    dense = FakeDense(layers_of(**SHAPES))
    removed = counts(find_allocator("erk(max_sparsity=1.0)"), dense, sparsity, granularity)
    size = 4 if granularity else 1
    groups = {name: -(-rows // size) * columns for name, (rows, columns) in SHAPES.items()}
    assert sum(removed.values()) == round(sparsity * sum(groups.values()))
    # The paper's loop: layers whose density would exceed 1 become dense, the others share the rest.
    raw = {name: (rows + columns) / (rows * columns) for name, (rows, columns) in SHAPES.items()}
    full: set[str] = set()
    while True:
        budget = (1 - sparsity) * sum(groups.values()) - sum(groups[name] for name in full)
        scale = budget / sum(raw[name] * groups[name] for name in SHAPES if name not in full)
        beyond = {name for name in SHAPES if name not in full and scale * raw[name] > 1}
        if not beyond:
            break
        full |= beyond
    for name in SHAPES:
        density = 1.0 if name in full else scale * raw[name]
        assert removed[name] == pytest.approx((1 - density) * groups[name], abs=1)


def test_names_and_aliases_find_every_allocator() -> None:
    names = [known.name for known in ALLOCATORS]
    assert {"uniform", "erk", "lamp"} <= set(names)
    assert len(set(names)) == len(names)
    for known in ALLOCATORS:
        for name in (known.name, *known.aliases):
            assert isinstance(find_allocator(name), known)


def test_uniform_gives_every_layer_the_sparsity_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    report = prune(model, 0.5, allocator="local")
    assert [row.sparsity for row in report.layers] == [0.5] * len(report.layers)
    assert report.allocator == "uniform"


def outlier_share(weights: list[torch.Tensor], norms: list[torch.Tensor], m: float) -> float:
    """The definition of OWL, element by element."""
    values = [
        abs(float(weight[i, j])) * float(norm[j])
        for weight, norm in zip(weights, norms, strict=True)
        for i in range(len(weight))
        for j in range(weight.shape[1])
    ]
    mean = sum(values) / len(values)
    return sum(value > m * mean for value in values) / len(values)


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_owl_against_its_definition(sparsity: float) -> None:
    layers = layers_of(a=(20, 30), b=(30, 20), c=(20, 30), d=(30, 20), e=(40, 12))
    with torch.no_grad():
        layers[2].weight[::5, ::4] *= 20
        layers[4].weight[0, 0] = 30
    norms = {layer.name: torch.rand(layer.shape[1]) + 0.1 for layer in layers}
    blocks = {"a": "layer.0", "b": "layer.0", "c": "layer.1", "d": "layer.1"}
    inputs = {name: Inputs(norms=norm) for name, norm in norms.items()}
    dense = FakeDense(layers, given_inputs=inputs, blocks=blocks)
    removed = counts(find_allocator("owl(m=3.0, limit=0.05)"), dense, sparsity)
    total = sum(layer.weight.numel() for layer in layers)
    assert sum(removed.values()) == round(sparsity * total)
    shares = {
        block: outlier_share(
            [layer.weight.detach() for layer in layers if layer.name in members],
            [norms[name] for name in members],
            3.0,
        )
        for block, members in {"layer.0": "ab", "layer.1": "cd", "e": "e"}.items()
    }
    low, high = min(shares.values()), max(shares.values())
    by_name = {layer.name: layer for layer in layers}
    wanted = {
        name: sparsity - 2 * 0.05 * (shares[blocks.get(name, name)] - low) / (high - low)
        for name in by_name
    }
    sizes = {name: layer.weight.numel() for name, layer in by_name.items()}
    shift = sparsity - sum(wanted[name] * sizes[name] for name in sizes) / total
    for name, size in sizes.items():
        assert removed[name] == pytest.approx((wanted[name] + shift) * size, abs=1)


def test_owl_without_outliers_is_uniform() -> None:
    layers = layers_of(a=(10, 10), b=(10, 10))
    with torch.no_grad():
        for layer in layers:
            layer.weight.fill_(1.0)
    inputs = {"a": Inputs(norms=torch.ones(10)), "b": Inputs()}  # no token reaches b
    removed = counts(find_allocator("owl"), FakeDense(layers, given_inputs=inputs), 0.4)
    assert removed == {"a": 40, "b": 40}


def test_owl_counts_the_layers_of_a_block_together() -> None:
    model = bert()
    report = prune(model, 0.5, "element", "magnitude", None, bert_batches(), "owl")
    assert report.sparsity == pytest.approx(0.5, abs=1e-4)
    by_block: dict[str, set[float]] = {}
    for row in report.layers:
        by_block.setdefault(row.name.partition(".layer.")[2][0], set()).add(round(row.sparsity, 2))
    assert {len(values) for values in by_block.values()} == {1}
    assert len(set.union(*by_block.values())) == len(by_block)


@pytest.mark.parametrize(
    ("options", "message"), [("m=1.0", "m=1.0 is not above 1"), ("limit=0.6", "limit=0.6 is not")]
)
def test_owl_refuses_options_without_a_meaning(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_allocator(f"owl({options})")
    with pytest.raises(UsageError, match="owl needs calibration"):
        prune(nn.Linear(4, 4), 0.5, allocator="owl")
