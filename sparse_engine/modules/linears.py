"""Linear layers of models: torch.nn.Linear, and GPT-2's Conv1D with a transposed weight."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Whether `module` computes x Wᵀ + b from a weight of its own."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is transformers' Conv1D (Radford et al. 2018), whose weight is [in, out]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer, [out, in]: the parameter itself or a view of it."""
    weight: Any = module.weight
    return weight.t() if is_conv1d(module) else weight


def as_linear(module: nn.Module) -> nn.Linear:
    """A torch.nn.Linear that shares the memory of a linear layer's weight and bias."""
    if isinstance(module, nn.Linear):
        return module
    bias: Any = module.bias
    return linear_of(weight_of(module), bias).train(module.training)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A torch.nn.Linear that shares the memory of a weight [out, in] and a bias [out]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def as_conv1d(linear: nn.Linear) -> nn.Module:
    """transformers' Conv1D with the weight of `linear`, contiguous as in its checkpoints."""
    conv: nn.Module = sys.modules["transformers.pytorch_utils"].Conv1D(
        linear.out_features, linear.in_features
    )
    conv.weight = nn.Parameter(linear.weight.detach().t().contiguous(), requires_grad=False)
    conv.bias = linear.bias
    return conv
