"""Fused experts as lists of linear layers, against transformers' own forward."""

from __future__ import annotations

import pytest
import torch
from expert_models import EXPERTS, HIDDEN, INNER, KINDS, experts, routed
from torch import nn

from sparse_engine.modules.experts import UnrolledExperts, expert_linears, is_experts, refusal


@pytest.mark.parametrize("kind", KINDS)
def test_unrolled_experts_compute_what_the_module_does(kind: str) -> None:
    torch.manual_seed(1)
    module = experts(kind)
    assert is_experts(module)
    assert refusal(module) == ""
    x, index, weights = routed()
    with torch.no_grad():
        expected = module(x, index, weights)
        torch.testing.assert_close(UnrolledExperts(module)(x, index, weights), expected)
        one = UnrolledExperts(module)(x[:1], index[:1, :1], weights[:1, :1])
        torch.testing.assert_close(one, module(x[:1], index[:1, :1], weights[:1, :1]))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_experts_are_views(kind: str) -> None:
    module = experts(kind)
    linears = expert_linears(module)
    first, down = linears.values()
    gates = 1 if kind == "no_gate" else 2
    assert len(first) == len(down) == EXPERTS
    assert all(linear.weight.shape == (gates * INNER, HIDDEN) for linear in first)
    assert all(linear.weight.shape == (HIDDEN, INNER) for linear in down)
    assert all(linear.bias is not None for linear in first) == (kind == "gpt_oss")
    first[2].weight[3] = 0
    down[1].weight[:, 4] = 0
    x, index, weights = routed()
    with torch.no_grad():
        torch.testing.assert_close(
            UnrolledExperts(module)(x, index, weights), module(x, index, weights)
        )
    zeros = [int((p == 0).sum()) for p in module.parameters() if p.dim() == 3]
    assert sorted(zeros) == sorted([HIDDEN, HIDDEN])


def test_experts_that_compute_something_else_are_refused() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, HIDDEN))
            self.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))
            self.act_fn = nn.SiLU()

        def forward(
            self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
        ) -> torch.Tensor:
            return 2 * UnrolledExperts(self)(x, index, weights)

    class Identity(Doubled):
        """Indices past the experts stand for the identity, as LongCat's zero experts do."""

        def forward(
            self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
        ) -> torch.Tensor:
            y = UnrolledExperts(self)(x, index, weights)
            return y + x * ((index >= EXPERTS) * weights).sum(1, keepdim=True)

    class AllTokens(Doubled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return x

    class Odd(Doubled):
        def __init__(self) -> None:
            super().__init__()
            self.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER + 1))

    assert "computes something else" in refusal(Doubled())
    assert "computes something else" in refusal(Identity())
    assert "AllTokens is not called as experts are" in refusal(AllTokens())
    assert "does not fit" in refusal(Odd())
    assert not is_experts(nn.Linear(3, 3))
    assert "no fused experts" in refusal(nn.Linear(3, 3))
