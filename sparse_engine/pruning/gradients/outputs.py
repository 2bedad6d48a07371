"""Gradients of the loss for the outputs of layers, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients.loss import Loss
from sparse_engine.pruning.gradients.model import DifferentiableModel, differentiate
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.statistics.capture import forward_hooks, linear_input
from sparse_engine.pruning.statistics.dense_weights import DenseWeights


@dataclass(frozen=True)
class LayerTokens:
    """What a layer read for the tokens of a batch, and how the loss depends on what it returned.

    The gradient of the loss for the weight is gradients^T inputs. If the layer runs several times,
    as in the steps of a recurrent network, the runs follow each other. Padding is left out.

    Attributes:
        inputs: [tokens, in].
        gradients: [tokens, out], of the loss for the outputs W x + b.
        lengths: number of tokens of each run.
    """

    inputs: Tensor
    gradients: Tensor
    lengths: tuple[int, ...]


def output_gradients(
    model: nn.Module,
    layers: list[Layer],
    batches: list[Batch],
    dense: DenseWeights,
    loss: Loss,
    seed: int = 0,
) -> Iterator[dict[str, LayerTokens]]:
    """Run the dense model and its loss on each batch.

    Memory: the inputs and outputs of the layers for one batch, besides what torch keeps for the
    backward pass.

    Args:
        model: the unrolled model, in evaluation mode.
        layers: those to observe.
        batches: calibration inputs.
        dense: copies of the dense weights.
        loss: what is differentiated.
        seed: of the random numbers of the loss.

    Yields:
        For each batch, what was observed by the name of the layer. Layers that do not run, or that
        the loss does not depend on, are missing.

    Raises:
        UsageError: if the loss or a gradient cannot be used.
    """
    differentiable = DifferentiableModel(model, layers, dense, loss, seed)
    modules = {layer.name: layer.linear for layer in layers}
    for index, batch in enumerate(batches):
        runs: dict[str, list[_Run]] = {name: [] for name in modules}

        def on_output(
            name: str, args: Any, kwargs: Any, output: Tensor, runs: dict[str, list[_Run]] = runs
        ) -> Tensor:
            routed = args[1] if len(args) > 1 else None
            runs[name].append(_Run(linear_input(args, kwargs).detach(), output, routed))
            return output.clone()  # what follows may overwrite it

        with forward_hooks(modules, on_output):
            value = differentiable.loss(batch, index)
        outputs = {
            f"{name} {i}": run.output for name, of in runs.items() for i, run in enumerate(of)
        }
        gradients = differentiate(value, outputs, batch)
        yield {
            name: tokens
            for name, of in runs.items()
            if (tokens := _tokens(name, of, gradients, batch)) is not None
        }


@dataclass(frozen=True)
class _Run:
    """One run of a layer: [..., in], [..., out], and which tokens an expert received."""

    input: Tensor
    output: Tensor
    routed: Tensor | None


def _tokens(
    name: str, runs: list[_Run], gradients: dict[str, Tensor], batch: Batch
) -> LayerTokens | None:
    """The runs of a layer as rows; None if the loss depends on none of them."""
    inputs: list[Tensor] = []
    slopes: list[Tensor] = []
    for i, run in enumerate(runs):
        gradient = gradients.get(f"{name} {i}")
        if gradient is None:
            continue
        mask = batch.mask_of(run.input, run.routed)
        for rows, x in ((inputs, run.input), (slopes, gradient)):
            rows.append(x.reshape(-1, x.shape[-1]) if mask is None else x[mask])
    if not inputs:
        return None
    return LayerTokens(torch.cat(inputs), torch.cat(slopes), tuple(map(len, inputs)))
