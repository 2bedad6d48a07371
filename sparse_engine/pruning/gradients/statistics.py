"""Statistics of the gradients of weights: their mean, their squares, and the Fisher information.

The gradient of a batch is that of the mean over its rows, whose square is far less than the mean of
the squares. The Fisher information is a mean over single examples, so that for it each batch is
split into its rows where the rows do not depend on each other. The other statistics read batches as
they are given.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch, split_batches
from sparse_engine.pruning.gradients.loss import Loss, check_mean
from sparse_engine.pruning.gradients.model import DifferentiableModel
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.statistics.needs import Statistic

BUDGET = 1 << 28  # numbers that are kept at once (1 GiB), at least those of one layer
PENDING = 16  # gradients that are added to blocks of the Fisher information in one product


class GradientStatistics:
    """The statistics of all layers, collected in one pass over the calibration inputs.

    If they take more numbers than BUDGET, layers are taken in turns of that size, each with a pass
    of its own. All passes draw the same random numbers.

    Args:
        model: the unrolled model, in evaluation mode.
        layers: in the order of the model.
        batches: calibration inputs as they were given.
        dense: copies of the dense weights.
        loss: what is differentiated.
        method: its statistics are collected, for groups of its granularity.
        seed: of the random numbers of the loss.
        progress: receives which batch is being read.

    Raises:
        UsageError: if the mean gradient is needed and is zero by the choice of the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[Layer],
        batches: list[Batch],
        dense: DenseWeights,
        loss: Loss,
        method: Method,
        seed: int,
        progress: Progress,
    ) -> None:
        if "gradient" in method.needs:
            check_mean(loss)
        self._model = model
        self._batches = batches
        self._dense = dense
        self._loss = loss
        self._method = method
        self._seed = seed
        self._progress = progress
        self._turns = self._split([layer for layer in layers if method.gradients_of(layer.name)])
        self._turn: list[Layer] = []
        self._collected: dict[str, dict[Statistic, Tensor]] = {}

    def of(self, layer: Layer) -> dict[Statistic, Tensor]:
        """The statistics that the method needs of a layer, as fields of `Inputs`.

        Raises:
            UsageError: if the loss does not depend on the layer, or it or a gradient is not finite.
        """
        if not self._method.gradients_of(layer.name):
            return {}
        if layer.name not in self._collected:
            self._collected = {}  # frees what the last turn collected
            turn = next(turn for turn in self._turns if layer in turn)
            self._collected = self._collect(turn)
        found = self._collected[layer.name]
        if not any(x.any() for x in found.values()):
            raise UsageError(
                f"the gradient of the loss is zero for all weights of {layer.name}; leave the "
                "layer out with filter_fn, or pass a loss= that depends on it"
            )
        return found

    def _split(self, layers: list[Layer]) -> list[list[Layer]]:
        """Consecutive layers whose statistics fit into BUDGET."""
        turns: list[list[Layer]] = []
        free = 0
        for layer in layers:
            size = self._sums(layer).size
            if size > free:
                turns.append([])
                free = BUDGET
            turns[-1].append(layer)
            free -= size
        return turns

    def _sums(self, layer: Layer) -> _Sums:
        needs = self._method.gradients_of(layer.name)
        return _Sums(layer, needs, self._method.fisher_width(layer.name, layer.shape[1]))

    def _collect(self, layers: list[Layer]) -> dict[str, dict[Statistic, Tensor]]:
        """Statistics by layer, all zero for layers that the loss does not depend on."""
        model = DifferentiableModel(self._model, layers, self._dense, self._loss, self._seed)
        sums = {layer.name: self._sums(layer) for layer in layers}
        needs = {need for of_layer in sums.values() for need in of_layer.needs}
        if needs - {"fisher"}:
            for name, gradient in self._gradients(model, self._batches, "batch"):
                sums[name].add_batch(gradient)
        examples: list[Batch] = []
        if "fisher" in needs:
            examples = split_batches(self._model, self._batches)
            if not examples:
                raise UsageError("no calibration input has a label, or a token, to learn from")
            for name, gradient in self._gradients(model, examples, "example"):
                sums[name].add_example(gradient)
        return {
            name: of_layer.means(len(self._batches), len(examples))
            for name, of_layer in sums.items()
        }

    def _gradients(
        self, model: DifferentiableModel, batches: list[Batch], what: str
    ) -> Iterator[tuple[str, Tensor]]:
        """The gradient of each layer on each batch."""
        for i, batch in enumerate(batches):
            self._progress.working(f"gradients, {what} {i + 1} of {len(batches)}")
            yield from model.weight_gradients(batch, i).items()


class _Sums:
    """Sums of one layer, whose tensors are made when they are first added to.

    Attributes:
        needs: which sums.
        size: how many numbers they take.
    """

    def __init__(self, layer: Layer, needs: set[Statistic], width: int) -> None:
        self.needs = needs
        self._weight = layer.weight
        self._width = width
        self._blocks = -(-self._weight.shape[1] // width)
        self._pending: list[Tensor] = []
        self._sums: dict[Statistic, Tensor] = {}
        fisher = width + PENDING * (width > 1)
        self.size = self._weight.numel() * sum(fisher if x == "fisher" else 1 for x in needs)

    def _sum(self, name: Statistic) -> Tensor:
        if name not in self._sums:
            out, columns = self._weight.shape
            blocks = (out * self._blocks, self._width, self._width)
            shape = blocks if name == "fisher" else (out, columns)
            self._sums[name] = self._weight.new_zeros(shape, dtype=torch.float32)
        return self._sums[name]

    def add_batch(self, gradient: Tensor) -> None:
        """Add the gradient [out, in] of a batch."""
        if "gradient" in self.needs:
            self._sum("gradient").add_(gradient)
        if "squared_gradient" in self.needs:
            self._sum("squared_gradient").addcmul_(gradient, gradient)

    def add_example(self, gradient: Tensor) -> None:
        """Add the gradient [out, in] of one example."""
        if "fisher" not in self.needs:
            return
        if self._width == 1:
            self._sum("fisher").view_as(gradient).addcmul_(gradient, gradient)
            return
        padded = F.pad(gradient, (0, self._blocks * self._width - gradient.shape[1]))
        self._pending.append(padded.reshape(-1, self._width))
        if len(self._pending) == PENDING:
            self._flush()

    def _flush(self) -> None:
        """Add what is pending: the blocks are read and written once for many gradients."""
        if self._pending:
            gradients = torch.stack(self._pending, 2)  # [out x blocks, width, gradients]
            self._sum("fisher").baddbmm_(gradients, gradients.mT)
            self._pending.clear()

    def means(self, batches: int, examples: int) -> dict[Statistic, Tensor]:
        """The statistics; the sums are used up."""
        self._flush()
        found: dict[Statistic, Tensor] = {}
        for name in self.needs:
            mean = self._sum(name).div_(examples if name == "fisher" else batches)
            blocks = (-1, self._blocks, self._width, self._width)
            found[name] = mean.view(blocks) if name == "fisher" else mean
        return found
