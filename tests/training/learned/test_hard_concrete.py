"""Hard-concrete gates: their derivatives and probabilities."""

from __future__ import annotations

import torch

from sparse_engine.training.learned.hard_concrete import (
    BETA,
    GAMMA,
    ZETA,
    expected,
    noise,
    open_probability,
    sampled,
)


def test_derivatives_are_those_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    a = (3 * torch.randn(2000, generator=generator, dtype=torch.float64)).requires_grad_()
    u = noise(a.detach(), generator)
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + a) / BETA)
    stretched = s * (ZETA - GAMMA) + GAMMA
    z = torch.minimum(torch.ones(()), torch.maximum(torch.zeros(()), stretched))
    z.sum().backward()
    gates, slopes = sampled(a.detach(), u)
    torch.testing.assert_close(gates, z.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes, a.grad, rtol=1e-9, atol=1e-12)
    assert (gates == 0).any()
    assert (gates == 1).any()

    _, slope = open_probability(a.detach())
    [autograd] = torch.autograd.grad(open_probability(a)[0].sum(), a)
    torch.testing.assert_close(slope, autograd, rtol=1e-9, atol=1e-12)


def test_the_probability_to_be_open_is_that_of_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    for value in (-3.0, -1.0, 0.0, 2.0):
        a = torch.full((40000,), value)
        gates, _ = sampled(a, noise(a, generator))
        share = float((gates > 0).float().mean())
        assert abs(share - float(open_probability(a[:1])[0])) < 0.01


def test_gates_without_noise_are_closed_and_open_at_the_ends() -> None:
    gates = expected(torch.tensor([-5.0, 0.0, 5.0]))
    assert gates.tolist() == [0.0, 0.5, 1.0]
