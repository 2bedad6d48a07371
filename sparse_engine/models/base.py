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
class LayerNames:
    """Where a layer keeps its modules: names inside the layer.

    norm1 and norm2 belong to attention and feed-forward, before or after them as the stack says.
    Without key and value, query computes all three, one after another. query_norm and key_norm are
    for single heads. The cross modules attend to an encoder's states.
    """

    query: str
    key: str | None
    value: str | None
    output: str
    up: str
    down: str
    norm1: str
    norm2: str
    gate: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    cross_query: str | None = None
    cross_key: str | None = None
    cross_value: str | None = None
    cross_output: str | None = None
    cross_norm: str | None = None


@dataclass(frozen=True)
class LayerStack:
    """Layers that one native call can run: see csrc/layers/stack.h.

    blocks:         dotted names of the layers, children of one ModuleList; the module that holds
                    the list is called with ids if it has an embedding, else with hidden states
    layer:          what each of them holds
    activation:     of the feed-forward, as `se.ops.linear` names it
    key_heads:      heads of keys and values; 0 for as many as there are of queries
    head:           features of a head; 0 for hidden / heads
    scale:          of scores; None for 1 / sqrt(head)
    causal:         a decoder, whose module keeps a cache
    window:         keys that a query sees; 0 for all
    reach:          longest sequence that position bias, rotary or learned positions serve
    position_bias:  (module, reach) -> [heads, 2 reach - 1], added to scores by query minus key
    rotary:         (module, reach) -> cosines and sines, each [reach, rotated features / 2]
    embedding_scale: what token embeddings are multiplied by
    embedding, positions, last: names below the module, of token and position embeddings and of the
                    norm after the last layer; None where there are none
    """

    blocks: tuple[str, ...]
    layer: LayerNames
    hidden: int
    heads: int
    inner: int
    activation: str
    norm_first: bool = False
    key_heads: int = 0
    head: int = 0
    scale: float | None = None
    causal: bool = False
    window: int = 0
    reach: int = 0
    position_bias: Callable[[Any, int], Tensor] | None = None
    rotary: Callable[[Any, int], tuple[Tensor, Tensor]] | None = None
    embedding: str | None = None
    embedding_scale: float = 1.0
    positions: str | None = None
    last: str | None = None

    @property
    def name(self) -> str:
        """Dotted name of the module that runs the layers; "" for the model itself."""
        return ".".join(self.blocks[0].split(".")[:-2])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers below the module that runs them."""
        return tuple(".".join(block.split(".")[-2:]) for block in self.blocks)

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.head or self.hidden // self.heads


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

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        """The layers that can run natively, all of a stack in one call; raises UnsupportedModelError
        with the reason.
        """
        raise UnsupportedModelError(f"{self.name} models have no native layers")


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
