"""How much each block changes the hidden states that run through a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.statistics.capture import forward_hooks
from sparse_engine.pruning.statistics.segments import hidden_states
from sparse_engine.pruning.statistics.skipping import entering


@dataclass(frozen=True)
class Change:
    """The change that a block makes, over all calibration tokens.

    Attributes:
        cosine: the mean cosine between the hidden states before and after it.
        energy: |y - x|^2 / |x|^2.
    """

    cosine: float
    energy: float


def measure_changes(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    batches: list[Batch],
    working: Callable[[str], None],
) -> dict[str, Change]:
    """The changes of blocks by their names.

    Args:
        model: the whole model, in evaluation mode.
        blocks: by dotted name.
        batches: calibration inputs.
        working: receives what is being computed.

    Raises:
        UsageError: if a block does not run, or hidden states are not finite.
    """
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in blocks}
    for i, batch in enumerate(batches, 1):
        working(f"batch {i} of {len(batches)}, change of the hidden states")

        def callback(name: str, args: Any, kwargs: Any, output: Any, batch: Batch = batch) -> None:
            y = hidden_states(output)
            assert y is not None
            before = batch.token_rows(entering(args, kwargs), name).double()
            sums[name] += _sums(before, batch.token_rows(y, name).double())

        with forward_hooks(dict(blocks), callback), batch.naming_errors(model):
            model(*batch.args, **batch.kwargs)
    changes = {}
    for name, (tokens, cosines, added, entered) in sums.items():
        if not tokens:
            raise UsageError(f"{name} did not run on the calibration inputs")
        changes[name] = Change(float(cosines / tokens), float(added / entered.clamp_min(1e-30)))
    return changes


def _sums(x: Tensor, y: Tensor) -> Tensor:
    """Of tokens: how many, and the sums of cosines, |y - x|^2 and |x|^2."""
    cosines = nn.functional.cosine_similarity(x, y, dim=1).sum()
    added, entered = (y - x).square().sum(), x.square().sum()
    return torch.stack([cosines.new_tensor(float(len(x))), cosines, added, entered]).cpu()
