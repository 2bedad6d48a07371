"""How far the outputs of a model are from those of the dense model, on calibration inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch

TOKENS = 2048  # about so many are compared


class OutputError:
    """The error of a model's outputs against those of the dense model.

    For a language model with a head it is the KL divergence per token from the dense model's
    distribution; for others the squared relative error of the logits or hidden states. Padding
    does not count.

    Args:
        model: whose weights are then replaced.
        batches: calibration inputs, of which the first are used.
        dense: what the outputs are compared with; None for those of `model` as it is now.
    """

    def __init__(
        self, model: nn.Module, batches: list[Batch], dense: nn.Module | None = None
    ) -> None:
        self._model = model
        self._has_head = _has_head(model)
        self._batches: list[Batch] = []
        self._wanted: list[Tensor] = []
        for batch in batches:
            self._batches.append(batch)
            self._wanted.append(self._output(model if dense is None else dense, batch))
            if sum(map(len, self._wanted)) >= TOKENS:
                break

    def __call__(self) -> float:
        """The error with the model's weights as they are now."""
        lost = size = 0.0
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            found = self._output(self._model, batch)
            if self._has_head:
                lost += float((wanted.exp() * (wanted - found)).sum())
                size += len(wanted)
            else:
                lost += float((found - wanted).double().square().sum())
                size += float(wanted.double().square().sum())
        return lost / max(size, 1e-30)

    def _output(self, model: nn.Module, batch: Batch) -> Tensor:
        """Rows [tokens, features]: log-probabilities of a language model, values of others."""
        with batch.naming_errors(model):
            y = first_tensor(model(*batch.args, **batch.kwargs))
        rows = batch.token_rows(y, "the output").float()
        return rows.log_softmax(-1) if self._has_head else rows


def first_tensor(output: Any) -> Tensor:
    """The logits or hidden states of a model's output, without a loss.

    Raises:
        UsageError: if the output holds no tensor.
    """
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    values = output.values() if isinstance(output, dict) else output
    for value in [values] if isinstance(values, Tensor) else list(values or ()):
        if isinstance(value, Tensor) and value.ndim:
            return value
    raise UsageError("the model returns no tensor, so its outputs cannot be compared")


def _has_head(model: nn.Module) -> bool:
    """Whether the outputs of a model are logits of tokens."""
    try:
        return isinstance(model.get_output_embeddings(), nn.Module)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return False
