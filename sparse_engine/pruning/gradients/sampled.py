"""A loss of outputs without labels, whose gradients g give the curvature E[g g^T].

The loss that pruning should keep small is the distance to the outputs of the dense model. At the
dense model it is zero and so is its gradient, but its second derivatives are not:

- For logits the distance is the KL divergence, summed over the tokens. Its Hessian is the Fisher
  information, E[g g^T] with g the gradient of -log p(y) and labels y drawn from the model's own p.
- For other outputs it is half the squared error. Its Hessian is the Gauss-Newton matrix J^T J =
  E[g g^T] with g = J^T s and s random signs.

Martens 2020, "New Insights and Perspectives on the Natural Gradient Method", arXiv:1412.1193.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch


def sampled_loss(output: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """The loss of one draw of labels or signs.

    Args:
        output: of the model: a tensor, a tuple or a mapping. Logits are the items of a mapping
            whose names contain "logits", with more than one class; without any, the output is the
            first floating-point tensor.
        batch: its masks tell which tokens are padding, which is left out.
        generator: the source of labels and signs, on the CPU.

    Raises:
        UsageError: if there is no floating-point output.
    """
    rows, are_logits = output_rows(output, batch)
    if are_logits:
        return torch.stack([_negative_log(x, generator) for x in rows]).sum()
    return signed_sum(rows[0], generator)


def output_rows(
    output: Any, batch: Batch, use: str = "take gradients of; pass loss="
) -> tuple[list[Tensor], bool]:
    """What a model returns for the tokens of a batch, without padding.

    Args:
        output: as in `sampled_loss`.
        batch: its masks tell which tokens are padding.
        use: what the outputs are for and the way out, for the message.

    Returns:
        Rows [tokens, features], of one or several outputs, and whether they are logits.

    Raises:
        UsageError: if there is no floating-point output.
    """
    logits = [
        x
        for name, x in (output.items() if isinstance(output, dict) else ())
        if "logits" in name and isinstance(x, Tensor) and x.shape[-1] > 1
    ]
    if logits:
        return [_rows(x, batch) for x in logits], True
    first = next(_floats(output), None)
    if first is None:
        raise UsageError(f"{batch}: the model returns no floating-point tensor to {use}")
    return [_rows(first, batch)], False


def signed_sum(rows: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of outputs [tokens, features] with random signs."""
    signs = torch.randint(2, rows.shape, generator=generator) * 2 - 1
    return (rows.float() * signs.to(rows.device)).sum()


def _negative_log(logits: Tensor, generator: torch.Generator) -> Tensor:
    """-log p(y) of labels y drawn from p, summed over rows [tokens, classes]."""
    logs = logits.float().log_softmax(-1)
    probabilities = logs.detach().exp().cpu()
    if not probabilities.isfinite().all():
        return logs.sum()  # NaN, which the caller refuses
    labels = probabilities.multinomial(1, generator=generator)
    return -logs.gather(1, labels.to(logs.device)).sum()


def _rows(x: Tensor, batch: Batch) -> Tensor:
    """Rows [tokens, features] of an output [..., features], without those of padding."""
    mask = batch.mask_of(x)
    return x.reshape(-1, x.shape[-1]) if mask is None else x[mask]


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.ndim:
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _floats(value)
