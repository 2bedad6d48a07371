"""Model families: how to recognise a model, and where its layers and residual streams are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError

# Of a module that runs layers and a number of positions: cosines and sines, each
# [positions, rotated features / 2].
RotaryTables = Callable[[Any, int], tuple[Tensor, Tensor]]
# Of a module that runs layers and a longest sequence: [heads, 2 reach - 1], by query minus key.
PositionBias = Callable[[Any, int], Tensor]


@dataclass(frozen=True)
class Residual:
    """Where the residual stream is that a linear layer's output is added to.

    Attributes:
        module: dotted name of the module that receives the stream.
        argument: its position among the positional arguments of that module.
    """

    module: str
    argument: int


@dataclass(frozen=True)
class AttentionNames:
    """Names of an attention's modules inside a layer.

    Attributes:
        query, key, value, output: the linear layers. Without key and value, query computes all
            three.
        interleaved: whether such a query computes one key head after another, each with the
            queries that read it before it and its value after it; else all queries, all keys and
            all values.
        query_norm, key_norm: norms of each head.
        input_norm, output_norm, sum_norm: norms of what attention reads, of what it computes, and
            of its sum with the residual stream.
    """

    query: str
    output: str
    key: str | None = None
    value: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    input_norm: str | None = None
    output_norm: str | None = None
    sum_norm: str | None = None
    interleaved: bool = False


@dataclass(frozen=True)
class FeedForwardNames:
    """Names of a feed-forward's modules inside a layer; norms as in AttentionNames.

    Attributes:
        up, down, gate: the linear layers.
        fused_gate: whether the first half of the outputs of `up` is the gate.
    """

    up: str
    down: str
    gate: str | None = None
    fused_gate: bool = False
    input_norm: str | None = None
    output_norm: str | None = None
    sum_norm: str | None = None


@dataclass(frozen=True)
class LayerNames:
    """Names of a layer's modules; cross attention reads the states of an encoder.

    With `parallel`, attention and feed-forward read the same residual stream.
    """

    attention: AttentionNames
    feed_forward: FeedForwardNames
    cross_attention: AttentionNames | None = None
    parallel: bool = False


@dataclass(frozen=True)
class LayerGeometry:
    """What a layer computes, beyond what the shapes of its weights determine.

    The numbers of heads and the width of the feed-forward follow from the weights, so layers from
    which heads or units were pruned need no other geometry.

    Attributes:
        head_size: features of a head.
        activation: of the feed-forward, as `se.ops.linear` names it.
        scale: of attention scores; None for 1 / sqrt(head_size).
        soft_cap: scores are soft_cap tanh(score / soft_cap); 0 for none.
        group: query heads that read one key head, where one linear layer computes both.
        window: a query sees keys at distances below it, before it and in encoders also after it;
            0 for all.
        rotary: makes the table of rotary positions; layers with the same function share one.
        position_bias: makes the bias that is added to scores, likewise.
    """

    head_size: int
    activation: str
    scale: float | None = None
    soft_cap: float = 0.0
    group: int = 1
    window: int = 0
    rotary: RotaryTables | None = None
    position_bias: PositionBias | None = None


@dataclass(frozen=True)
class LayerStack:
    """Layers that one native call can run; see csrc/layers/stack.h.

    Attributes:
        layers: dotted names of the layers, children of one ModuleList. The module that holds the
            list is called with ids if it has an embedding, else with hidden states.
        names: what each layer holds.
        geometry: of each layer; they may differ.
        hidden: features of the residual stream.
        causal: whether the module is a decoder, which keeps a cache.
        reach: the longest sequence that position biases, rotary or learned positions serve.
        embedding, positions, final_norm: names below the module of the embeddings of tokens and of
            positions, and of the norm after the last layer; None where there are none.
        input_module: an encoder's module that computes the input of the first layer: from hidden
            states, where the module that holds the list is called with them, else from those
            arguments of the call that it has.
        embedding_scale: the factor of token embeddings.
        position_offset: the row of `positions` that belongs to the first position.
        positions_from_mask: whether positions that are not given count the tokens of the mask, and
            not the places in the batch.
        embedding_norm: the norm of embeddings; None where there is none.
        norm_offset: is added to the weights of RMS norms.
        residual_scale: the factor of what sublayers add to the residual stream. Norms do not see
            the scale of the stream, so it is divided by this factor instead.
        fixed_heads: whether the modules count heads by the config, so that none can be removed.
        bias_table: the embedding of position biases, with a column for each head, where all layers
            add the same bias. Cross attentions of such layers share a bias too, which is zero.
    """

    layers: tuple[str, ...]
    names: LayerNames
    geometry: tuple[LayerGeometry, ...]
    hidden: int
    causal: bool = False
    reach: int = 0
    embedding: str | None = None
    input_module: str | None = None
    embedding_scale: float = 1.0
    positions: str | None = None
    position_offset: int = 0
    positions_from_mask: bool = False
    embedding_norm: str | None = None
    norm_offset: float = 0.0
    residual_scale: float = 1.0
    final_norm: str | None = None
    bias_table: str | None = None
    fixed_heads: bool = False

    @property
    def name(self) -> str:
        """Dotted name of the module that runs the layers; "" for the model itself."""
        return ".".join(self.layers[0].split(".")[:-2])

    @property
    def local_layers(self) -> tuple[str, ...]:
        """Names of the layers below the module that runs them."""
        return tuple(".".join(layer.split(".")[-2:]) for layer in self.layers)

    @property
    def has_rotary(self) -> bool:
        """Whether any layer has rotary positions."""
        return any(layer.rotary for layer in self.geometry)

    @property
    def has_position_bias(self) -> bool:
        """Whether any layer adds a bias to its scores."""
        return any(layer.position_bias for layer in self.geometry)

    @property
    def shortest_window(self) -> int:
        """The fewest keys that a query of any layer sees; 0 if all see all."""
        return min((layer.window for layer in self.geometry if layer.window), default=0)


def uniform(geometry: LayerGeometry, layers: tuple[str, ...]) -> tuple[LayerGeometry, ...]:
    """The geometry of each of `layers`, where all have the same."""
    return (geometry,) * len(layers)


class Family(ABC):
    """Models of one architecture; all names are dotted names in `model.named_modules()`."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether the model is of this family."""

    @abstractmethod
    def layers(self, model: nn.Module) -> list[str]:
        """Names of the repeated layers, in the order in which they run."""

    @abstractmethod
    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        """For each linear layer that writes into a residual stream: where that stream is."""

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        """The layers that can run natively, all of a stack in one call.

        Raises:
            UnsupportedModelError: with the reason, if the library cannot run them.
        """
        raise UnsupportedModelError(f"{self.name} models have no native layers")


def activation_of(name: object) -> str:
    """The name that `se.ops.linear` has for an activation of transformers.

    Raises:
        UnsupportedModelError: if it has none.
    """
    names = {
        "relu": "relu",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "silu": "silu",
        "swish": "silu",
    }
    if not isinstance(name, str) or name not in names:
        raise UnsupportedModelError(f"activation {name!r} has no native kernel")
    return names[name]


def model_type(model: nn.Module) -> str:
    """`config.model_type` of a Hugging Face model, or "" where there is none."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def layers_in(model: nn.Module, suffix: str) -> list[str]:
    """Names of the children of the first nn.ModuleList whose name ends in `suffix`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and f".{name}".endswith(f".{suffix}"):
            return [f"{name}.{child}" for child, _ in module.named_children()]
    return []
