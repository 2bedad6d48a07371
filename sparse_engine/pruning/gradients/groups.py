"""Gradients of the loss for the groups of sites, by factors of ones before the layers that read.

A factor m of a group multiplies its features in the input of every layer that reads them. At m = 1
the derivative of the loss is the sum of w dL/dw over the columns that read the group. A factor for
each row of a batch gives the derivatives of single examples in one backward pass.

Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", arXiv:2204.09656.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch, merge_batches, split_batches
from sparse_engine.pruning.gradients.factors import RowsMixed, group_factors
from sparse_engine.pruning.gradients.loss import Loss
from sparse_engine.pruning.gradients.model import check_precision, differentiate
from sparse_engine.pruning.progress import Progress
from sparse_engine.structures import Site


def group_gradients(
    model: nn.Module,
    sites: Sequence[Site],
    batches: list[Batch],
    loss: Loss,
    per_example: bool,
    seed: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """The derivative of the loss with respect to a factor of each group.

    Args:
        model: the unrolled model, in evaluation mode.
        sites: those whose groups are scored.
        batches: calibration inputs as they were given.
        loss: what is differentiated.
        per_example: for each example instead of for each batch.
        seed: of the random numbers of the loss.
        progress: receives which batch is being read.

    Returns:
        By site, float32 [batches or examples, groups].

    Raises:
        UsageError: if the loss does not depend on a site, or it or a derivative is not finite.
    """
    check_precision((name, model.get_submodule(name)) for site in sites for name in site.readers)
    if per_example:
        # The loss of a batch is the sum of those of its rows only if it takes no mean.
        batches = merge_batches(model, batches) if loss.adds_up else split_batches(model, batches)
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    for i, batch in enumerate(batches):
        progress.working(f"gradients of groups, batch {i + 1} of {len(batches)}")
        if per_example:
            parts = _of_examples(model, sites, batch, loss, seed + i)
        else:
            parts = [_of_batch(model, sites, batch, 1, loss, seed + i)]
        for part in parts:
            for name, slopes in part.items():
                found[name].append(slopes)
    gradients: dict[str, Tensor] = {}
    for name, slopes_of in found.items():
        if not slopes_of:
            raise UsageError("no calibration input has a label, or a token, to learn from")
        gradients[name] = torch.cat(slopes_of)
        if not gradients[name].any():
            raise UsageError(
                f"the gradient of the loss is zero for all groups of {name}; leave the site out "
                "with ignore, or pass a loss= that depends on it"
            )
    return gradients


def _of_examples(
    model: nn.Module, sites: Sequence[Site], batch: Batch, loss: Loss, seed: int
) -> list[dict[str, Tensor]]:
    """The derivatives of each example of a batch: in one pass where the rows stay apart."""
    rows = split_batches(model, [batch])
    mask = next((mask for mask in batch.masks if mask.any(1).sum() == len(rows)), None)
    if loss.adds_up and mask is not None and len(rows) > 1:
        try:
            together = _of_batch(model, sites, batch, len(mask), loss, seed)
        except RowsMixed:
            pass
        else:
            present = mask.any(1).cpu()
            return [{name: slopes[present] for name, slopes in together.items()}]
    return [_of_batch(model, sites, row, 1, loss, seed + i) for i, row in enumerate(rows)]


def _of_batch(
    model: nn.Module, sites: Sequence[Site], batch: Batch, rows: int, loss: Loss, seed: int
) -> dict[str, Tensor]:
    """The derivatives of a batch, float32 [rows, groups] by site.

    Args:
        model: the unrolled model.
        sites: those whose groups are scored.
        batch: inputs of the model.
        rows: how many factors each group has; with more than one, each is that of a row.
        loss: what is differentiated.
        seed: of its random numbers.
    """
    factors: dict[str, Tensor] = {}
    for site in sites:
        device = next(model.get_submodule(next(iter(site.readers))).parameters()).device
        factors[site.name] = torch.ones(rows, site.groups, device=device, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), group_factors(model, sites, factors, batch):
        value = loss(model, batch, generator)
    found = differentiate(value, factors, batch)
    none = {name: torch.zeros_like(factor) for name, factor in factors.items()}
    return {name: slopes.detach().float().cpu() for name, slopes in (none | found).items()}
