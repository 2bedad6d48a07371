"""Distances of outputs and states to those of the teacher, over the tokens that are no padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch


def softened_divergence(state: Tensor, dense: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(dense / T) || softmax(state / T)), the mean over rows [tokens, classes].

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    if temperature != 1:  # with many classes a pass over the scores takes time
        state, dense = state / temperature, dense / temperature
    logs, targets = F.log_softmax(state, -1), F.log_softmax(dense, -1)
    divergence = F.kl_div(logs, targets, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def relative_distance(state: Tensor, dense: Tensor) -> Tensor:
    """|state - dense|^2 / |dense|^2 of rows [tokens, features]."""
    return (state - dense).square().sum() / dense.square().sum().clamp_min(1e-12)


def embedding_distance(state: Tensor, dense: Tensor) -> Tensor:
    """1 - cos(state, dense) of rows [texts, features], the mean over texts."""
    return 1 - F.cosine_similarity(state, dense, -1).mean()


def token_mask(batch: Batch, x: Tensor) -> Tensor | None:
    """Which rows of [batch, tokens, ...], or [batch x tokens, features], are none of padding.

    Returns:
        A bool mask of the first dimensions of `x`; None if all rows count.
    """
    for mask in batch.masks:
        if x.ndim >= 3 and x.shape[:2] == mask.shape:
            return mask
        if x.ndim == 2 and len(x) == mask.numel() > len(mask):
            return mask.flatten()
    return None


def token_rows(batch: Batch, x: Tensor) -> Tensor:
    """The rows [tokens, features] that are none of padding, in float32 or float64."""
    mask = token_mask(batch, x)
    return precise(x.reshape(-1, x.shape[-1]) if mask is None else x[mask])


def mean_rows(batch: Batch, x: Tensor) -> Tensor:
    """The mean over the tokens of each text, [texts, features]; [texts, features] as it is."""
    x = precise(x)
    if x.ndim < 3:
        return x
    mask = token_mask(batch, x)
    if mask is None:
        return x.flatten(1, -2).mean(1)
    weights = mask[..., None].to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1).clamp_min(1)


def check_shapes(name: str, state: Tensor, dense: Tensor) -> None:
    """Raise UsageError if the teacher computes another shape."""
    if state.shape != dense.shape:
        raise UsageError(
            f"distil: {name} of the model have shape {list(state.shape)}, those of the teacher "
            f"{list(dense.shape)}; give a teacher of the same shape, or leave the term out"
        )


def scores_of(output: Any) -> list[tuple[str, Tensor]]:
    """The class scores of an output: what a model of transformers calls logits, by name."""
    if not isinstance(output, dict):
        return []
    return [
        (name, x)
        for name, x in output.items()
        if name.endswith("logits") and isinstance(x, Tensor) and x.shape[-1] > 1
    ]


def states_of(output: Any) -> Tensor:
    """The first floating-point tensor of an output that is no scalar.

    Raises:
        UsageError: if there is none.
    """
    found = _first(output)
    if found is None:
        raise UsageError(f"distil: the model returns a {type(output).__name__} without any tensor")
    return found


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.ndim else None
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((x for x in map(_first, output) if x is not None), None)
    return None


def without_padding(batch: Batch, name: str, x: Tensor) -> Tensor:
    """Scores of positions [batch, tokens] without chance for padding; all others as they are.

    Models that mark the start and the end of an answer have a class for each token.
    """
    if name not in ("start_logits", "end_logits"):
        return x
    mask = next((mask for mask in batch.masks if mask.shape == x.shape), None)
    x = precise(x)
    return x if mask is None else x.masked_fill(~mask, torch.finfo(x.dtype).min)


def precise(x: Tensor) -> Tensor:
    """Numbers of 16 bits in float32, in which small distances do not vanish."""
    return x if x.dtype == torch.float64 else x.float()
