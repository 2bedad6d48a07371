"""Masks trained against a discriminator: their steps, what they find, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_bert import TOKENS, build
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.pruning.adversarial import train_masks
from sparse_engine.pruning.adversarial.discriminator import Discriminator, looks_dense
from sparse_engine.pruning.adversarial.masks import MOMENTUM
from sparse_engine.pruning.calibration import read_calibration
from sparse_engine.pruning.criteria import GeneratorMask
from sparse_engine.pruning.progress import Progress
from sparse_engine.structures import find_sites

USELESS = list(range(8))


def network() -> nn.Sequential:
    """Two layers with 24 hidden units between them; the first 8 hardly reach the output."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6))
    with torch.no_grad():
        model[2].weight[:, USELESS] *= 0.02
    return model


def inputs(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(40, 12, generator=generator) for _ in range(count)]


def masks(model: nn.Module, items: list[Tensor], training: GeneratorMask, seed: int = 0) -> Tensor:
    sites = find_sites(model, ("unit",))
    batches = read_calibration(model, items)
    found = train_masks(model, sites, batches, training, seed, Progress(None, 1))
    (paths,) = found.values()
    return paths


def test_one_step_by_the_distance_alone_tells_nothing() -> None:
    # The dense model has no distance to itself, so that the first gradient is zero.
    with pytest.raises(UsageError, match="needs more steps"):
        masks(network(), inputs(1), GeneratorMask(steps=1, adversarial=0.0))


def test_two_steps_against_their_formula_with_a_discriminator() -> None:
    model, (x,) = network(), inputs(1)
    rate, weight = 0.1, 0.3
    found = masks(model, [x], GeneratorMask(steps=2, rate=rate, adversarial=weight), seed=4)
    generator = torch.Generator().manual_seed(4)
    torch.randperm(1, generator=generator)
    dense = model(x).detach()
    judge = Discriminator(6, float(dense.square().mean().sqrt()), generator)
    mask, speed, path = torch.ones(24), torch.zeros(24), torch.zeros(24)
    for step in range(2):
        leaf = mask.clone().requires_grad_()
        masked = model[2](model[1](model[0](x)) * leaf)
        loss = (masked - dense).square().sum() / dense.square().sum()
        loss = loss + weight * looks_dense(judge(masked))
        (slope,) = torch.autograd.grad(loss, leaf)
        judge.learn(dense, masked)
        speed = MOMENTUM * speed + (1 - MOMENTUM) * slope / slope.square().mean().sqrt()
        mask = (mask - rate * (speed + 2.0 * step / 2)).clamp(0, 1)
        path += mask / 2
        torch.randperm(1, generator=generator)
    torch.testing.assert_close(found, path.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_units_that_hardly_reach_the_output_vanish_first(adversarial: float) -> None:
    scores = masks(network(), inputs(), GeneratorMask(steps=150, adversarial=adversarial))
    assert sorted(scores.argsort()[: len(USELESS)].tolist()) == USELESS


def test_prune_removes_them_and_leaves_gradients_alone() -> None:
    model = network()
    criterion = "generator(steps=150)"
    report = se.prune(model, 1 / 3, se.Unit(keep=1), criterion, calibration=inputs())
    assert report.sites[0].kept == tuple(range(8, 24))
    assert model[0].out_features == 16
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_heads_and_units_of_all_layers_are_trained_together() -> None:
    model = build()
    report = se.prune(
        model,
        0.5,
        [se.Head(), se.Unit()],
        "generator(steps=20)",
        allocator="raw",
        calibration=[{"input_ids": TOKENS}],
    )
    assert sum(len(site.kept) for site in report.sites if site.kind == "head") == 4
    assert sum(len(site.kept) for site in report.sites if site.kind == "unit") == 64
    assert model(TOKENS)[0].isfinite().all()


def test_the_seed_decides() -> None:
    training = GeneratorMask(steps=10, adversarial=1.0)
    model, before = network(), copy.deepcopy(network().state_dict())
    first = masks(model, inputs(), training, seed=1)
    assert torch.equal(first, masks(model, inputs(), training, seed=1))
    assert not torch.equal(first, masks(model, inputs(), training, seed=2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_discriminator_learns_to_tell_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    judge = Discriminator(5, 1.0, generator)
    dense, masked = torch.randn(64, 5) + 1, torch.randn(64, 5) - 1
    before = looks_dense(judge(dense)).item()
    for _ in range(200):
        judge.learn(dense, masked)
    assert looks_dense(judge(dense)).item() < min(before, 0.2)
    assert looks_dense(judge(masked)).item() > 2


def test_single_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="scores structures; give granularity"):
        se.prune(network(), 0.5, "4x1", "generator", calibration=inputs())
    with pytest.raises(UsageError, match="needs calibration"):
        se.prune(network(), 0.5, "unit", "generator")


@pytest.mark.parametrize("options", ["steps=0", "rate=1.0", "adversarial=-1.0", "steps=1000000"])
def test_options_out_of_range_are_refused(options: str) -> None:
    with pytest.raises(UsageError, match="generator: "):
        se.prune(network(), 0.5, "unit", f"generator({options})", calibration=inputs())


def test_outputs_that_do_not_depend_on_a_site_are_refused() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight.zero_()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="all took the same path"):
        se.prune(model, 0.5, "unit", "generator(steps=5)", calibration=inputs())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_outputs_that_change_their_shape_are_refused() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.calls = network(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y: Tensor = self.layers(x)
            return y[: 1 + self.calls % 2]

    with pytest.raises(UsageError, match="must not change from call to call"):
        se.prune(Changing(), 0.5, "unit", "generator(steps=5)", calibration=inputs())
