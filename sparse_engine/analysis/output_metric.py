"""The metric when the caller gives none: how far outputs are from those of the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.evaluation import evaluation_mode

MOST_VALUES = 1 << 26
"""Values of dense outputs that are kept; of larger outputs some tokens, evenly spread."""


@dataclass(frozen=True)
class Kind:
    """One way to compare outputs."""

    name: str
    higher_is_better: bool


KL = Kind("KL divergence to dense", False)
COSINE = Kind("cosine to dense", True)
ERROR = Kind("relative error", False)


class OutputMetric:
    """A metric(model) of calibration batches, against the outputs that the model has now.

    Padding is left out. Which outputs are compared, and how, depends on the model:

    - logits with more than one class: the KL divergence of the dense distribution to the other
      one, mean over tokens or texts, in nats; less is better;
    - a single feature: |y - y'| / |y| over all tokens; less is better;
    - otherwise, such as hidden states: the cosine of y and y', mean over tokens; more is better.

    Args:
        model: the dense model.
        batches: its inputs.

    Raises:
        UsageError: if the model fails, or returns no floating-point tensor or NaN.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self.kind = COSINE
        self._dense: list[Tensor] = []
        self._picks: list[Tensor] = []
        most = MOST_VALUES // len(batches)
        for batch, (logits, rows) in zip(batches, self._outputs(model), strict=True):
            if not rows.isfinite().all():
                raise UsageError(f"{batch}: the outputs of the model hold NaN or infinity")
            if logits:
                self.kind = KL
            elif rows.shape[-1] == 1:
                self.kind = ERROR
            count = max(1, min(len(rows), most // rows.shape[-1]))
            picks = torch.linspace(0, len(rows) - 1, count).round().long().to(rows.device)
            self._picks.append(picks)
            self._dense.append(rows[picks])

    def __call__(self, model: nn.Module) -> float:
        """The metric of a model that may have been pruned; NaN if its outputs are not finite."""
        total, count = 0.0, 0.0
        for (_, rows), dense, picks in zip(
            self._outputs(model), self._dense, self._picks, strict=True
        ):
            pruned = rows[picks]
            if self.kind is KL:
                logs = dense.log_softmax(-1), pruned.log_softmax(-1)
                total += float((logs[0].exp() * (logs[0] - logs[1])).sum())
                count += len(dense)
            elif self.kind is ERROR:
                total += float((pruned - dense).square().sum())
                count += float(dense.square().sum())
            else:
                total += float(torch.cosine_similarity(dense, pruned, dim=-1).sum())
                count += len(dense)
        value = total / max(count, torch.finfo(torch.float32).tiny)
        return value**0.5 if self.kind is ERROR else value

    def _outputs(self, model: nn.Module) -> Iterator[tuple[bool, Tensor]]:
        """Of each batch whether its output is logits, and its rows [tokens, features], float32."""
        for batch in self._batches:
            with evaluation_mode(model), torch.no_grad(), batch.naming_errors(model):
                output = model(*batch.args, **batch.kwargs)
            logits, x = _main_output(output, batch)
            x = x.detach().float()
            mask = batch.mask_of(x)
            yield logits, (x.reshape(-1, x.shape[-1]) if mask is None else x[mask])


def _main_output(output: Any, batch: Batch) -> tuple[bool, Tensor]:
    """Whether the output that is compared is logits, and the output."""
    if isinstance(output, dict):
        for name, value in output.items():
            if "logits" in name and isinstance(value, Tensor) and value.shape[-1] > 1:
                return True, value
    first = next(_floats(output), None)
    if first is None:
        raise UsageError(f"{batch}: the model returns no floating-point tensor; pass metric=")
    return False, first


def _floats(output: Any) -> Iterator[Tensor]:
    """Floating-point tensors of an output, without scalars such as a loss."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.ndim and output.numel():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _floats(value)
