"""Trains soft masks of the groups of all sites of a model together, without labels.

The model with its masks m is the generator. With f and f_m the features of the dense and of the
masked model, D a discriminator and g the gradient of

    |f_m - f|^2 / |f|^2 - a log D(f_m)

divided by its root mean square over the groups of one kind, every step is a proximal one:

    v <- b v + (1 - b) g        m <- max(m - r (v + l_t), 0)

The weight l_t of the L1 term rises from 0 to LAST. So groups leave in the order of their use, and
the mean of a mask over all steps is its score: the area below its path.

Lin et al. 2019, "Towards Optimal Structured CNN Pruning via Generative Adversarial Learning",
arXiv:1903.09291, fix the weight of the L1 term, and keep what is not zero at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.adversarial.discriminator import Discriminator, looks_dense
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.criteria import GeneratorMask
from sparse_engine.pruning.gradients.factors import group_factors
from sparse_engine.pruning.gradients.model import check_precision, differentiate
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.target.outputs import first_tensor
from sparse_engine.structures import Site

MOMENTUM = 0.9
LAST = 2.0  # weight of the L1 term at the end, in root mean squares of the gradient


def train_masks(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    training: GeneratorMask,
    seed: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """The score of each group by the path of its mask.

    Args:
        model: the unrolled model, in evaluation mode; it does not change.
        sites: those whose groups get masks.
        batches: calibration inputs; without padding tokens, their outputs are compared.
        training: steps, rate and the weight of the discriminator.
        seed: of the order of batches and the discriminator.
        progress: receives which step is being computed.

    Returns:
        By site, float64 [groups], from 0 to 1.

    Raises:
        UsageError: if the outputs do not depend on a site, or become NaN or infinite.
    """
    check_precision((name, model.get_submodule(name)) for site in sites for name in site.readers)
    generator = torch.Generator().manual_seed(seed)
    masks = {site.name: _ones(model, site) for site in sites}
    speeds = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    paths = {name: torch.zeros(mask.shape[1], dtype=torch.float64) for name, mask in masks.items()}
    kinds = {site.name: site.kind for site in sites}
    discriminator: Discriminator | None = None
    for step in range(training.steps):
        progress.working(f"masks, step {step + 1} of {training.steps}")
        if step % len(batches) == 0:
            order = torch.randperm(len(batches), generator=generator).tolist()
        batch = batches[order[step % len(batches)]]
        with torch.no_grad():
            dense = _rows(model, batch)
        if discriminator is None and training.adversarial:
            scale = float(dense.square().mean().sqrt())
            discriminator = Discriminator(dense.shape[1], scale, generator)
        leaves = {name: mask.detach().requires_grad_() for name, mask in masks.items()}
        with torch.enable_grad(), group_factors(model, sites, leaves, batch):
            masked = _rows(model, batch)
            if masked.shape != dense.shape:
                raise UsageError(
                    f"generator: the model gives {[*dense.shape]} and then {[*masked.shape]} rows "
                    "and features for one input; its outputs must not change from call to call"
                )
            loss = (masked - dense).square().sum() / dense.square().sum().clamp_min(1e-30)
            if discriminator is not None:
                loss = loss + training.adversarial * looks_dense(discriminator(masked))
            gradients = differentiate(loss, leaves, batch)
            if discriminator is not None:
                discriminator.learn(dense, masked)
        scales = _scales(gradients, kinds)
        for name in masks:
            slope = gradients.get(name, torch.zeros_like(masks[name])) / scales[kinds[name]]
            speeds[name] = MOMENTUM * speeds[name] + (1 - MOMENTUM) * slope
            shrink = LAST * step / training.steps
            moved = masks[name] - training.rate * (speeds[name] + shrink)
            masks[name] = moved.clamp(0, 1)
            paths[name] += masks[name][0].double().cpu() / training.steps
    for name, path in paths.items():
        if len(path) > 1 and bool((path == path[0]).all()):
            raise UsageError(
                f"the masks of {name} all took the same path: the outputs do not depend on it, or "
                "it needs more steps or a higher rate"
            )
    return paths


def _ones(model: nn.Module, site: Site) -> Tensor:
    device = next(model.get_submodule(next(iter(site.readers))).parameters()).device
    return torch.ones(1, site.groups, device=device)


def _rows(model: nn.Module, batch: Batch) -> Tensor:
    """The outputs of the model as rows [tokens, features] in float32, without padding."""
    with batch.naming_errors(model):
        output = first_tensor(model(*batch.args, **batch.kwargs))
    return batch.token_rows(output, "the output").float()


def _scales(gradients: dict[str, Tensor], kinds: dict[str, str]) -> dict[str, float]:
    """The root mean square of the gradients of the groups of each kind."""
    by_kind: dict[str, list[Tensor]] = defaultdict(list)
    for name, kind in kinds.items():
        by_kind[kind].append(gradients[name].flatten() if name in gradients else torch.zeros(1))
    return {
        kind: max(float(torch.cat(parts).square().mean().sqrt()), 1e-30)
        for kind, parts in by_kind.items()
    }
