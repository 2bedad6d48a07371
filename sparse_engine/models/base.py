"""What a model family says: how to recognise a model, where its blocks are, who adds to what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError


@dataclass(frozen=True)
class Residual:
    """Where the residual stream lies that a linear layer's output is added to.

    module:    dotted name of the module that receives the stream
    argument:  its position among the positional arguments of that module
    """

    module: str
    argument: int


@dataclass(frozen=True)
class EncoderLayer:
    """Where a layer of an encoder keeps its modules: names inside the layer.

    norm1 and norm2 belong to attention and feed-forward, before or after them as the stack says.
    """

    query: str
    key: str
    value: str
    output: str
    up: str
    down: str
    norm1: str
    norm2: str
    gate: str | None = None


@dataclass(frozen=True)
class EncoderStack:
    """Encoder layers that one native call can run: see csrc/blocks/encoder.h.

    blocks:         dotted names of the layers, children of one ModuleList; the module that holds
                    the list is called with hidden states and a mask
    layer:          what each of them holds
    activation:     of the feed-forward, as `se.ops.linear` names it
    position_bias:  (stack, reach) -> [heads, 2 reach - 1], added to scores by query minus key
    reach:          longest sequence that the position bias serves
    """

    blocks: tuple[str, ...]
    layer: EncoderLayer
    hidden: int
    heads: int
    inner: int
    activation: str
    norm_first: bool = False
    position_bias: Callable[[Any, int], Tensor] | None = None
    reach: int = 0

    @property
    def name(self) -> str:
        """Dotted name of the module that runs the layers."""
        return self.blocks[0].rsplit(".", 2)[0]


class Family(ABC):
    """Models of one architecture; all names are dotted names in `model.named_modules()`."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether the model is of this family."""

    @abstractmethod
    def blocks(self, model: nn.Module) -> list[str]:
        """Names of the repeated blocks, in the order in which they run."""

    @abstractmethod
    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        """For each linear layer that writes into a residual stream: where that stream lies."""

    def encoder(self, model: nn.Module) -> EncoderStack:
        """The encoder that can run natively; raises UnsupportedModelError with the reason."""
        raise UnsupportedModelError(f"{self.name} models have no native encoder")


def activation_of(name: object) -> str:
    """The name that `se.ops.linear` has for an activation of transformers."""
    known = {
        "relu": "relu",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "silu": "silu",
        "swish": "silu",
    }
    if not isinstance(name, str) or name not in known:
        raise UnsupportedModelError(f"activation {name!r} has no native kernel")
    return known[name]


def model_type(model: nn.Module) -> str:
    """`config.model_type` of a Hugging Face model, or "" where there is none."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def children_of(model: nn.Module, suffix: str) -> list[str]:
    """Names of the children of the first nn.ModuleList whose name ends in `suffix`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and f".{name}".endswith(f".{suffix}"):
            return [f"{name}.{child}" for child, _ in module.named_children()]
    return []
