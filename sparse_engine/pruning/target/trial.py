"""Levels that are written into the layers of a model for a while, to see what they lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.target.levels import Level, Tables


@contextmanager
def trying(
    layers: Sequence[Layer], tables: Tables, output_error: Callable[[], float]
) -> Iterator[Callable[[Sequence[int]], float]]:
    """Inside of a `with` block, the error of the whole model for choices of levels.

    The layers are then what they were before.

    Args:
        layers: of the model.
        tables: by layer, its levels.
        output_error: the error of the model with the weights that its layers have.

    Example:
        with trying(layers, tables, source.output_error()) as error_of:
            error = error_of([0] * len(layers))
    """
    originals = [Original.of(layer) for layer in layers]
    written: list[int | None] = [None] * len(layers)

    def error_of(picks: Sequence[int]) -> float:
        for i, pick in enumerate(picks):
            if written[i] != pick:
                originals[i].replace(tables[i][pick])
                written[i] = pick
        return output_error()

    try:
        yield error_of
    finally:
        for original in originals:
            original.restore()


@dataclass(frozen=True)
class Original:
    """A layer whose weight and bias are replaced for a while."""

    weight: Tensor
    bias: Tensor | None
    dense_weight: Tensor
    dense_bias: Tensor | None

    @classmethod
    def of(cls, layer: Layer) -> Original:
        """The layer as it is."""
        weight, bias = layer.weight, layer.linear._parameters.get("bias")
        return cls(weight, bias, weight.clone(), None if bias is None else bias.clone())

    def replace(self, level: Level) -> None:
        """Write the pruned weight and bias of a level."""
        self.restore()
        if level.stored is not None:
            self.weight.copy_(level.stored.to_dense())
        if level.bias is not None and self.bias is not None:
            self.bias.copy_(level.bias)

    def restore(self) -> None:
        """Write the dense weight and bias."""
        self.weight.copy_(self.dense_weight)
        if self.bias is not None and self.dense_bias is not None:
            self.bias.copy_(self.dense_bias)
