"""The layers that are pruned while a model is trained, as parts of its parameters.

Training works on parameters: an optimizer changes the whole input matrix of an LSTM or the stacked
projections of an attention. Pruning works on layers, which have the names of the unrolled model,
such as `lstm.ih_l0` and `attention.q_proj`. A layer is a view of part of one parameter, and the
same view applies to its gradient, its mask and the state of its optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.plan import Layer, Plan
from sparse_engine.pruning.unrolled import unrolled


@dataclass(frozen=True)
class TrainedLayer:
    """The weight of a layer as a part of a parameter.

    Attributes:
        name: dotted name of the layer in the unrolled model.
        parameter: dotted name of the parameter that holds the weight.
        shape: (out, in).
        stride: of the view [out, in], in elements.
        offset: of its first element in the memory of the parameter.
    """

    name: str
    parameter: str
    shape: tuple[int, int]
    stride: tuple[int, int]
    offset: int

    def view(self, tensor: Tensor) -> Tensor:
        """The part [out, in] of a tensor that has the shape and strides of the parameter."""
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset)

    def weight_in(self, model: nn.Module) -> Tensor:
        """The weight [out, in] in the memory of the model's parameter."""
        return self.view(model.get_parameter(self.parameter).detach())

    def gradient_in(self, model: nn.Module) -> Tensor | None:
        """The gradient [out, in] in the memory of that of the parameter; None if it has none."""
        gradient = model.get_parameter(self.parameter).grad
        return None if gradient is None else self.view(gradient)


def trained_layers(model: nn.Module, make: Callable[[nn.Module], Plan]) -> list[TrainedLayer]:
    """The layers of a plan as parts of the parameters of the model.

    Args:
        model: the model, not unrolled.
        make: makes the plan of the unrolled model.

    Raises:
        UsageError: if the weight of a layer is no part of a parameter.
    """
    parameters = dict(model.named_parameters())
    with unrolled(model):
        return list(_found(make(model).layers, parameters))


def _found(layers: Iterable[Layer], parameters: dict[str, nn.Parameter]) -> Iterable[TrainedLayer]:
    by_memory = {p.untyped_storage().data_ptr(): (name, p) for name, p in parameters.items()}
    shared = len(by_memory) < len(parameters)
    for layer in layers:
        weight = layer.weight
        owner = by_memory.get(weight.untyped_storage().data_ptr())
        if owner is None or shared:  # parameters in one piece of memory are told apart by offset
            owner = _owner(weight, parameters)
        if owner is None:
            raise UsageError(
                f"{layer.name}: its weight is no part of a parameter in one piece of memory; call "
                ".contiguous() on the parameter, or leave the layer out with ignore"
            )
        name, parameter = owner
        out_features, in_features = weight.shape
        rows, columns = weight.stride()
        offset = int(weight.storage_offset()) - int(parameter.storage_offset())
        yield TrainedLayer(layer.name, name, (out_features, in_features), (rows, columns), offset)


def _owner(weight: Tensor, parameters: dict[str, nn.Parameter]) -> tuple[str, nn.Parameter] | None:
    """The parameter whose memory holds a weight; None if there is none."""
    memory, begin = weight.untyped_storage().data_ptr(), weight.storage_offset()
    for name, parameter in parameters.items():
        first = parameter.storage_offset()
        inside = first <= begin < first + parameter.numel()
        if parameter.untyped_storage().data_ptr() == memory and inside:
            return name, parameter
    return None
