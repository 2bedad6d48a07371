"""Collects the weighted moments of recurrent layers in one pass over the calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gates.moments import MAX_ELEMENTS, GateMoments
from sparse_engine.pruning.gates.pairs import GatePair, SingleLayer
from sparse_engine.pruning.gradients import LayerTokens, Loss, output_gradients
from sparse_engine.pruning.statistics.dense_weights import DenseWeights

MAX_SETS = 128  # of the rows of a layer by itself
DRAWS = 4  # of a loss with random signs for each batch


def collect_moments(
    model: nn.Module,
    pairs: Sequence[GatePair | SingleLayer],
    batches: list[Batch],
    dense: DenseWeights,
    loss: Loss,
    seed: int,
    working: Callable[[str], None],
) -> list[GateMoments | None]:
    """The moments of each pair in the dense model; None for those that the loss does not reach.

    Args:
        model: the unrolled model, in evaluation mode.
        pairs: recurrent layers, and layers by themselves.
        batches: calibration inputs.
        dense: copies of the dense weights.
        loss: what the outputs are weighted by.
        seed: of the random numbers of the loss.
        working: receives what is being computed.
    """
    layers = [layer for pair in pairs for layer in pair.layers]
    moments: list[GateMoments | None] = [None] * len(pairs)
    draws = DRAWS if loss.mean_is_zero else 1
    for i, batch in enumerate(batches):
        working(f"gradients of batch {i + 1} of {len(batches)}")
        # Of several draws the root of the sum of squares counts.
        observed: dict[str, LayerTokens] = {}
        for draw in range(draws):
            (found,) = output_gradients(
                model, layers, [batch], dense, loss, seed + i * draws + draw
            )
            for name, tokens in found.items():
                squares = tokens.gradients.float().square_()
                if draw:
                    squares += observed[name].gradients
                observed[name] = replace(tokens, gradients=squares)
        for j, pair in enumerate(pairs):
            if all(layer.name in observed for layer in pair.layers):
                moments[j] = _add(moments[j], pair, observed)
    return moments


def _add(
    moments: GateMoments | None, pair: GatePair | SingleLayer, observed: dict[str, LayerTokens]
) -> GateMoments:
    (x, a), *rest = (_in_time_order(layer.name, pair, observed) for layer in pair.layers)
    h, b = rest[0] if rest else (x[:, :0], a)
    if moments is None:
        biases = sum(layer.linear.bias is not None for layer in pair.layers)
        largest = MAX_ELEMENTS
        if not rest:  # heads may have very many rows
            largest = min(largest, MAX_SETS * (x.shape[1] + biases) ** 2)
        moments = GateMoments(a.shape[1], x.shape[1], h.shape[1], biases, largest)
    moments.add(x, h, a, b)
    return moments


def _in_time_order(
    name: str, pair: GatePair | SingleLayer, observed: dict[str, LayerTokens]
) -> tuple[Tensor, Tensor]:
    """The inputs [tokens, in] of a layer and the magnitudes [tokens, out] of its gradients.

    The input matrix of a network runs once, for the steps from the first to the last. The recurrent
    matrix of the reverse direction runs from the last step to the first.
    """
    inputs, magnitudes = observed[name].inputs, observed[name].gradients.sqrt()
    if pair.is_reverse and name == pair.layers[-1].name:
        lengths = observed[name].lengths
        inputs, magnitudes = (torch.cat(part.split(lengths)[::-1]) for part in (inputs, magnitudes))
    return inputs.float(), magnitudes
