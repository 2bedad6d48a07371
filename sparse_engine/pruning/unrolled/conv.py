"""torch.nn.Conv1d as linear layers over windows of its input, one for each group of channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.pruning.unrolled.base import Kind, NumberedLayers, ParameterViews


def layers(conv: nn.Conv1d, views: ParameterViews) -> dict[str, nn.Module]:
    """The layers linears.0, ..., one for each group of channels, as SparseConv1d packs them.

    Their weights are [out / groups, in / groups x kernel].
    """
    weights = views.matrix(conv.weight).chunk(conv.groups)
    biases = [None] * conv.groups if conv.bias is None else conv.bias.detach().chunk(conv.groups)
    parts = zip(weights, biases, strict=True)
    return {"linears": NumberedLayers(views.linear(weight, bias) for weight, bias in parts)}


def forward(conv: nn.Conv1d, input: Tensor) -> Tensor:
    """The forward pass of torch.nn.Conv1d.

    Args:
        conv: the unrolled module.
        input: [batch, in, length], or [in, length].

    Returns:
        [batch, out, length'], or [out, length'].
    """
    x = input if input.dim() == 3 else input[None]
    left, right = conv._reversed_padding_repeated_twice
    if left or right:
        x = F.pad(
            x, (left, right), "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        )
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    # windows: [batch, in, length', kernel]; rows: [batch, length', in / groups, kernel].
    windows = x.unfold(2, reach, conv.stride[0])[..., :: conv.dilation[0]]
    groups = windows.transpose(1, 2).chunk(conv.groups, 2)
    linears = conv.get_submodule("linears").children()
    parts = [linear(rows.flatten(2)) for linear, rows in zip(linears, groups, strict=True)]
    y = torch.cat(parts, 2).transpose(1, 2).contiguous()
    return y if input.dim() == 3 else y[0]


def refusal(conv: nn.Conv1d) -> str:
    """Depthwise convolutions are not unrolled: each of their matrices has one row."""
    return "it is depthwise" if conv.groups > 1 and conv.groups == conv.in_channels else ""


CONV1D = Kind(
    matches=lambda module: type(module) is nn.Conv1d,
    base=(nn.Conv1d,),
    parameters=lambda module: ["weight", "bias"],
    layers=layers,
    forward=forward,
    refusal=refusal,
)
