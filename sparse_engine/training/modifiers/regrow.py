"""Regrow: small groups of weights go, and as many come back where the gradient is largest.

Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", arXiv:1911.11134 (RigL). The
sparsity of every layer stays the same.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.pruning.granularity import Granularity, parse_granularity
from sparse_engine.pruning.plan import Selection
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.training import Training
from sparse_engine.training.window import Moment, steps_every


class Regrow(Modifier):
    """At every event a layer exchanges a share of its groups, which falls to 0 by a cosine.

    The share at step t of a window of T steps is share / 2 (1 + cos(pi t / T)). The kept groups
    with the least mean |w| go, and as many return with the largest mean |dL/dw|, which is read
    before it is masked. What returns starts at zero, without momentum. A group that goes and
    returns at once keeps its weights.

    It stands behind the modifiers that prune, and exchanges only groups that these have removed.

    Attributes:
        share: of the kept groups that are exchanged at the first event.
        every: from one event to the next, in steps or epochs.
        granularity: of the groups; the one by which the layers were pruned.
        layers: patterns of pruned layers; none for all of them.
        ignore: patterns of layers that are left in any case.

    Example:
        [Prune(sparsity=0.9, criterion="random", allocator="erk"), Regrow(end="30ep")]
    """

    name: ClassVar[str] = "regrow"
    share: float = Field(default=0.3, gt=0, le=1)
    every: Moment = 100
    granularity: str | Granularity = "element"
    layers: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    _steps: Sequence[int] = PrivateAttr(default=())
    _done: int = PrivateAttr(default=0)  # how many events have happened

    def resolve(self, steps_per_epoch: int | None, end: int | None) -> None:
        super().resolve(steps_per_epoch, end)
        first, last = self._window
        if last is None:
            raise UsageError(f"{self.name} needs an end, at which the share that returns is 0")
        # The first exchange comes when there was something to learn.
        what = f"{self.name}: every"
        self._steps = steps_every(self.every, first, last, steps_per_epoch, what)[1:]

    def begin(self, training: Training) -> None:
        if parse_granularity(self.granularity).fixed_sparsity is not None:
            raise UsageError(f"{self.name}: {self.granularity} has no groups that compete")
        if not self._chosen(training):
            raise UsageError(
                f"{self.name}: no layer is pruned; put it behind the modifier that prunes"
            )
        training.masks.add(self._chosen(training))  # refused where masks are learned

    def before_step(self, training: Training) -> None:
        due = bisect_right(self._steps, training.step)
        if due <= self._done:
            return
        parameters = dict(training.model.named_parameters())
        layers = [x for x in self._chosen(training) if parameters[x.parameter].grad is not None]
        slopes = [_slope(layer, parameters[layer.parameter]) for layer in layers]
        if not all(slope.isfinite().all() for slope in slopes):
            return  # a step that a gradient scaler skips; the next one has gradients
        first, last = self._window
        assert last is not None
        progress = (training.step - first) / (last - first)
        share = self.share / 2 * (1 + math.cos(math.pi * progress))
        granularity, total = parse_granularity(self.granularity), 0
        for layer, slope in zip(layers, slopes, strict=True):
            weight = layer.view(parameters[layer.parameter].detach())
            keep = training.masks.of(layer)
            exchanged, count = exchange(weight, slope, keep, granularity, share, layer.name)
            training.masks.set(layer, exchanged, training.optimizer)
            total += count
        training.masks.apply_to_weights()
        self._done = due
        training.note(self.name, f"{total} groups of {granularity} returned")

    def _chosen(self, training: Training) -> list[TrainedLayer]:
        """The pruned layers that take part."""
        layers = training.masks.layers
        names = [layer.name for layer in layers]
        left = Selection.of(self.layers, self.ignore).left(names, [], {})
        return [layer for layer in layers if layer.name not in left]

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done}

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        done = state["done"]
        if type(done) is not int or not 0 <= done <= len(self._steps):
            raise InvalidFileError(f"the state of {self.name} is damaged: {done!r:.40} events")
        self._done = done


def _slope(layer: TrainedLayer, parameter: nn.Parameter) -> Tensor:
    """|dL/dw| of a layer, [out, in]."""
    assert parameter.grad is not None
    return layer.view(torch.empty_like(parameter).copy_(parameter.grad.abs()))


def exchange(
    weight: Tensor,
    slope: Tensor,
    keep: Tensor,
    granularity: Granularity,
    share: float,
    name: str,
) -> tuple[Tensor, int]:
    """The new mask of a layer, and how many groups returned.

    Args:
        weight: [out, in].
        slope: [out, in], absolute values of the gradient.
        keep: bool [out, in].
        granularity: of the groups; it has scores.
        share: of the kept groups to exchange.
        name: of the layer, for messages.

    Returns:
        A bool [out, in] with as many kept groups as `keep`, and the number of new ones.

    Raises:
        UsageError: if the mask does not consist of whole groups.
    """
    kept = granularity.group_scores(keep.float())
    removed = int((kept == 0).sum())
    if not torch.equal(granularity.mask(keep.float(), removed), keep):
        raise UsageError(f"{name}: what is removed is no whole groups of {granularity}")
    count = min(round(share * (kept.numel() - removed)), removed)
    size = weight.abs().float().masked_fill(~keep, -1)
    left = granularity.mask(size, removed + count)
    best = granularity.mask(slope.float().masked_fill(left, torch.inf), removed)
    return best, int((granularity.group_scores((best & ~keep).float()) > 0).sum())
