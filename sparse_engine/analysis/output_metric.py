"""The metric when the caller gives none: how far outputs are from those of the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.evaluation import evaluation_mode
from sparse_engine.pruning.gradients.sampled import output_rows

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
        self._dense: list[list[Tensor]] = []
        most = MOST_VALUES // len(batches)
        for batch, (outputs, are_logits) in zip(batches, self._outputs(model), strict=True):
            if not all(rows.isfinite().all() for rows in outputs):
                raise UsageError(f"{batch}: the outputs of the model hold NaN or infinity")
            if are_logits:
                self.kind = KL
            elif outputs[0].shape[-1] == 1:
                self.kind = ERROR
            self._dense.append([_spread(rows, most // len(outputs)) for rows in outputs])

    @property
    def name(self) -> str:
        """How outputs are compared."""
        return self.kind.name

    def __call__(self, model: nn.Module) -> float:
        """The metric of a model that may have been pruned; NaN if its outputs are not finite."""
        total, count = 0.0, 0.0
        for (outputs, _), of_batch in zip(self._outputs(model), self._dense, strict=True):
            for rows, dense in zip(outputs, of_batch, strict=True):
                pruned = _spread(rows, dense.numel())
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

    def _outputs(self, model: nn.Module) -> Iterator[tuple[list[Tensor], bool]]:
        """Of each batch the rows [tokens, features] of its outputs, and whether they are logits."""
        for batch in self._batches:
            with evaluation_mode(model), torch.no_grad():
                with batch.naming_errors(model):
                    output = model(*batch.args, **batch.kwargs)
                outputs, are_logits = output_rows(output, batch, "compare; pass metric=")
            yield [rows.float() for rows in outputs], are_logits


def _spread(rows: Tensor, most: int) -> Tensor:
    """Rows [tokens, features] of at most `most` values together, evenly spread; at least one."""
    count = max(1, min(len(rows), most // rows.shape[-1]))
    picks = torch.linspace(0, len(rows) - 1, count, device=rows.device).round().long()
    return rows[picks]
