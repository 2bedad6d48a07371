"""Collects the weighted moments of recurrent layers in one pass over the calibration inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gates.moments import GateMoments
from sparse_engine.pruning.gates.pairs import GatePair
from sparse_engine.pruning.gradients import LayerTokens, Loss, output_gradients
from sparse_engine.pruning.statistics.dense_weights import DenseWeights

DRAWS = 4  # of a loss with random signs for each batch


def collect_moments(
    model: nn.Module,
    pairs: list[GatePair],
    batches: list[Batch],
    dense: DenseWeights,
    loss: Loss,
    seed: int,
    working: Callable[[str], None],
) -> list[GateMoments | None]:
    """The moments of each pair in the dense model; None for those that the loss does not reach.

    Args:
        model: the unrolled model, in evaluation mode.
        pairs: recurrent layers.
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
        observed: list[dict[str, LayerTokens]] = []
        for draw in range(draws):
            observed += output_gradients(
                model, layers, [batch], dense, loss, seed + i * draws + draw
            )
        for j, pair in enumerate(pairs):
            if all(layer.name in observed[0] for layer in pair.layers):
                moments[j] = _add(moments[j], pair, observed)
    return moments


def _add(
    moments: GateMoments | None, pair: GatePair, observed: list[dict[str, LayerTokens]]
) -> GateMoments:
    (x, a), (h, b) = (_in_time_order(layer.name, pair, observed) for layer in pair.layers)
    if moments is None:
        has_bias = pair.ih.linear.bias is not None
        moments = GateMoments(a.shape[1], x.shape[1], h.shape[1], has_bias)
    moments.add(x, h, a, b)
    return moments


def _in_time_order(
    name: str, pair: GatePair, observed: list[dict[str, LayerTokens]]
) -> tuple[Tensor, Tensor]:
    """The inputs [tokens, in] of a layer and the magnitudes [tokens, out] of its gradients.

    The input matrix of a network runs once, for the steps from the first to the last. The recurrent
    matrix of the reverse direction runs from the last step to the first.
    """
    runs = [of_draw[name] for of_draw in observed]
    inputs = runs[0].inputs
    magnitudes = torch.stack([tokens.gradients.float().square() for tokens in runs]).sum(0).sqrt()
    if pair.is_reverse and name == pair.hh.name:
        lengths = runs[0].lengths
        inputs, magnitudes = (torch.cat(part.split(lengths)[::-1]) for part in (inputs, magnitudes))
    return inputs.float(), magnitudes
