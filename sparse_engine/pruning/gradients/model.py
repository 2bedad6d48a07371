"""A model as a differentiable function of the dense weights of its layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparse_engine.errors import UsageError, one_line
from sparse_engine.modules.linears import is_conv1d, weight_of
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients.loss import Loss
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.statistics.dense_weights import DenseWeights


class DifferentiableModel:
    """The loss of the dense model, with gradients for the weights of some layers.

    For the time of a run the dense weights take the place of the parameters, as tensors that
    require gradients. So the parameters, their gradients and `requires_grad` stay as they are.

    Args:
        model: the unrolled model, in evaluation mode.
        layers: those whose gradients are taken.
        dense: copies of the dense weights of these and other layers.
        loss: what is differentiated.
        seed: of the random numbers of the loss. Those of a batch depend on its position alone, so
            that every pass draws the same.

    Raises:
        UsageError: if a weight is in float16, in which small gradients vanish.
    """

    def __init__(
        self, model: nn.Module, layers: list[Layer], dense: DenseWeights, loss: Loss, seed: int
    ) -> None:
        check_precision((layer.name, layer.linear) for layer in layers)
        self._loss = _LossOfModel(model, loss)
        self._seed = seed
        leaves: dict[int, Tensor] = {}  # tied parameters are one
        for copy in dense.of(model).values():
            leaves.setdefault(id(copy), copy.detach().requires_grad_())
        self._values = {f"model.{name}": leaves[id(x)] for name, x in dense.of(model).items()}
        self._weights = {
            layer.name: self._values[".".join(filter(None, ("model", layer.name, "weight")))]
            for layer in layers  # the name is empty if the model is the layer
        }
        self._transposed = {layer.name for layer in layers if is_conv1d(layer.linear)}

    def loss(self, batch: Batch, index: int) -> Tensor:
        """The loss of a batch, which can be differentiated.

        Args:
            batch: inputs of the model.
            index: the position of the batch.
        """
        generator = torch.Generator().manual_seed(self._seed + index)
        with torch.enable_grad():
            loss: Tensor = functional_call(self._loss, self._values, (batch, generator))
        return loss

    def weight_gradients(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """The gradient of the loss of a batch for the weight of each layer.

        Args:
            batch: inputs of the model.
            index: the position of the batch.

        Returns:
            By layer, float32 [out, in]. Layers that the loss does not depend on are missing.
        """
        gradients = differentiate(self.loss(batch, index), self._weights, batch)
        return {
            name: (gradient.t() if name in self._transposed else gradient).float()
            for name, gradient in gradients.items()
        }


def check_precision(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise UsageError if one of these layers is in float16, in which small gradients vanish."""
    for name, module in layers:
        if weight_of(module).dtype == torch.float16:
            raise UsageError(
                f"{name} is in float16, in which small gradients become zero; convert the model "
                "with .float() or .bfloat16() first"
            )


class _LossOfModel(nn.Module):
    """The loss as a module that holds the model, so that its parameters can be replaced."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.loss(self.model, batch, generator)


def differentiate(loss: Tensor, by_layer: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The gradients of a loss for a tensor of each layer.

    Args:
        loss: a scalar.
        by_layer: the tensors.
        batch: the loss is that of this batch, for messages.

    Returns:
        By layer, in the shapes of the tensors; those that the loss does not depend on are missing.

    Raises:
        UsageError: if a gradient is NaN or infinite, or there is no graph to differentiate.
    """
    names = list(by_layer)
    with one_line(f"{batch}: the loss cannot be differentiated"):
        gradients = torch.autograd.grad(loss, list(by_layer.values()), allow_unused=True)
    found = {name: g for name, g in zip(names, gradients, strict=True) if g is not None}
    for name, gradient in found.items():
        if not gradient.isfinite().all():
            raise UsageError(
                f"{batch}: the gradient of the loss is NaN or infinite at {name}; leave that batch "
                "out, or find what makes the model overflow"
            )
    return found
