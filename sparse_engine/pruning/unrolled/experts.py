"""Fused experts of transformers as linear layers gate_up_proj.0, down_proj.0, ... by expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.modules import experts
from sparse_engine.pruning.unrolled.base import Kind, NumberedLayers, ParameterViews


class RoutedLinear(nn.Linear):
    """A linear layer of an expert; an argument selects the tokens of its input."""

    def forward(self, input: Tensor, routed: Tensor | None = None) -> Tensor:
        """The result of torch.nn.Linear; `routed`, bool [tokens], is read only by hooks."""
        return super().forward(input)


def names(module: nn.Module) -> list[str]:
    """Names of the two fused weights, and of their biases if there are any."""
    weights = (experts.up_name(module) or "", experts.DOWN)
    biases = [f"{name}_bias" for name in weights]
    return [*weights, *(name for name in biases if name in module._parameters)]


def layers(module: nn.Module, views: ParameterViews) -> dict[str, nn.Module]:
    """A linear layer for each expert, whose weight [out, in] is a view of the fused one."""
    return {
        name: NumberedLayers(
            views.linear(linear.weight.detach(), _detached(linear.bias), RoutedLinear)
            for linear in linears
        )
        for name, linears in experts.expert_linears(module).items()
    }


def forward(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Sum over the chosen experts e of weight[e] down[e](gate(first[e](x))).

    All experts run, those that no token has chosen on an empty input. So every pass runs the same
    layers in the same order.

    Args:
        module: the unrolled module.
        hidden_states: x, [tokens, hidden].
        top_k_index: int64 [tokens, k], the chosen experts.
        top_k_weights: [tokens, k].

    Returns:
        [tokens, hidden].
    """
    first = module._modules.get("gate_up_proj") or module._modules["up_proj"]
    result = torch.zeros_like(hidden_states)
    for expert, (up, down) in enumerate(
        zip(first.children(), module.down_proj.children(), strict=True)
    ):
        chosen = top_k_index == expert
        tokens, choice = chosen.nonzero(as_tuple=True)
        routed = chosen.any(-1)
        y = down(_gate(module, up(hidden_states[tokens], routed)), routed)
        if getattr(module, "has_post_expert_norm", False):
            y = module.post_expert_norm(y)
        y = y * top_k_weights[tokens, choice, None]
        result.index_add_(0, tokens, y.to(result.dtype))
    return result


def _gate(module: Any, x: Tensor) -> Tensor:
    return module.act_fn(x) if "up_proj" in module._modules else experts.gate(module, x)


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


EXPERTS = Kind(
    matches=experts.is_experts,
    base=(),
    parameters=names,
    layers=layers,
    forward=forward,
    refusal=experts.refusal,
)
