"""Counts of a model's weights, dense or sparse, their zeros, and the work for one token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sparse_engine.backends.semi_structured import plain_of
from sparse_engine.modules.linears import is_linear
from sparse_engine.modules.names import prefixes
from sparse_engine.nn import (
    SparseConv1d,
    SparseExperts,
    SparseLinear,
    SparseMultiheadAttention,
    SparseRNNBase,
    SparseRNNCellBase,
)

# Kinds whose weights are looked up, or scale features: they are no matrix products.
NO_WORK = ("embedding", "norm")
# Attributes in which models have the number of experts that are chosen for a token.
TOP_K = ("top_k", "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk")
CONVOLUTIONS = (nn.modules.conv._ConvNd,)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

Weight = Tensor | SparseLinear


@dataclass(frozen=True)
class Row:
    """The weights of one module, without those of its submodules.

    Attributes:
        name: of the module in the model.
        kind: linear, conv, recurrent, cell, attention, experts, embedding, norm or other.
        weights: elements of its weights, without biases.
        zeros: how many of them are zero.
        multiply_adds: weights used for one token: of a convolution for one position of its output,
            of experts those of the top k.
        parameters: weights and biases that no earlier module has.
        tied_to: name of the earlier module that has the same weight, or "".
        sparse: whether the weights are in sparse layers; not compared between rows.
    """

    name: str
    kind: str
    weights: int
    zeros: int
    multiply_adds: int
    parameters: int
    tied_to: str = ""
    sparse: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Census:
    """All modules that have weights, in the order of `model.named_modules()`."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the model, tied ones counted once."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds with a weight for one token, each module run once."""
        return sum(row.multiply_adds for row in self.rows)

    def select(self, names: Iterable[str]) -> Census:
        """The modules of these names, and those below them."""
        selected = set(names)
        return Census(
            tuple(row for row in self.rows if not selected.isdisjoint(prefixes(row.name)))
        )

    @property
    def zeros_of_weights(self) -> float:
        """Share of zeros in the weights of these modules, 0..1."""
        return _share(sum(r.zeros for r in self.rows), sum(r.weights for r in self.rows))

    @property
    def zeros_of_parameters(self) -> float:
        """Share of all parameters that are zeros of a weight, 0..1, tied ones counted once."""
        return _share(sum(r.zeros for r in self.rows if not r.tied_to), self.parameters)

    @property
    def zeros_of_multiply_adds(self) -> float:
        """Share of the multiply-adds for one token whose weight is zero, 0..1."""
        zeros = sum(r.multiply_adds * r.zeros / r.weights for r in self.rows if r.weights)
        return _share(zeros, self.multiply_adds)

    def summary(self, names: Iterable[str]) -> str:
        """One sentence: zeros of the modules `names`, of all parameters, and of multiply-adds."""
        return (
            f"zeros: {self.select(names).zeros_of_weights:.1%} of these layers, "
            f"{self.zeros_of_parameters:.1%} of all parameters, "
            f"{self.zeros_of_multiply_adds:.1%} of multiply-adds for one token"
        )


def zeros_of(weight: Tensor) -> int:
    """Number of zeros of a dense weight; none of one on the meta device, which has no values."""
    if weight.is_meta:
        return 0
    return weight.numel() - int(plain_of(weight.detach()).count_nonzero())


def census(model: nn.Module, zeros: Callable[[Tensor], int] = zeros_of) -> Census:
    """Count the weights of `model`, and their zeros.

    A module that has two names, or runs more than once, counts once. Products that a model computes
    outside of modules, such as a head that reads an embedding's weight, do not count.

    Args:
        model: any module.
        zeros: returns the number of zeros of a dense weight.

    >>> census(torch.nn.Linear(4, 3)).multiply_adds
    12
    """
    modules = dict(model.named_modules())
    owners: dict[int, str] = {}  # of parameters, by id
    done: set[int] = set()  # layers that were counted with the sparse module that contains them
    rows = []
    for name, module in modules.items():
        if id(module) in done:
            continue
        kind, weights = _weights(module)
        sparse = any(isinstance(weight, SparseLinear) for weight in weights)
        if kind != "linear" and sparse:
            done.update(id(part) for part in (*weights, getattr(module, "network", None)))
        parameters = [p for p in module.parameters(recurse=False) if id(p) not in owners]
        tied = next((owners[id(w)] for w in weights if id(w) in owners), "")
        owners.update({id(parameter): name for parameter in parameters})
        count, zero, biases = _counts(module, weights, zeros)
        if not count and not parameters:
            continue
        work = 0 if kind in NO_WORK else _used(model, modules, name, kind, count)
        own = sum(p.numel() for p in parameters) or (0 if tied else count + biases)
        rows.append(Row(name, kind, count, zero, work, own, tied, sparse))
    return Census(tuple(rows))


def _weights(module: Any) -> tuple[str, list[Weight]]:
    """The kind of a module and its own weights: matrices, without biases."""
    if isinstance(module, SparseLinear):
        return "linear", [module]
    if isinstance(module, SparseConv1d):
        return "conv", list(module.linears)  # type: ignore[arg-type]
    if isinstance(module, SparseRNNBase):
        layers = module.children()  # a layer that was made dense again has a row of its own
        return "recurrent", [layer for layer in layers if isinstance(layer, SparseLinear)]
    if isinstance(module, SparseRNNCellBase):
        return "cell", list(module.network.children())  # type: ignore[arg-type]
    if isinstance(module, SparseMultiheadAttention):
        projections = (module.q_proj, module.k_proj, module.v_proj)
        return "attention", [p for p in projections if isinstance(p, SparseLinear)]
    if isinstance(module, SparseExperts):
        return "experts", [m for m in module.modules() if isinstance(m, SparseLinear)]
    if is_linear(module):
        return "linear", [module.weight]
    if isinstance(module, CONVOLUTIONS):
        return "conv", [module.weight]
    if isinstance(module, EMBEDDINGS):
        return "embedding", [module.weight]
    if isinstance(module, nn.RNNBase):
        names = [name for name in module._flat_weights_names if name.startswith("weight")]
        return "recurrent", [getattr(module, name) for name in names]
    if isinstance(module, nn.RNNCellBase):
        return "cell", [module.weight_ih, module.weight_hh]
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            return "attention", [module.in_proj_weight]
        return "attention", [getattr(module, f"{which}_proj_weight") for which in "qkv"]
    return _by_parameters(module)


def _by_parameters(module: nn.Module) -> tuple[str, list[Weight]]:
    """Modules of other classes, by the parameters that they have."""
    own = dict(module.named_parameters(recurse=False))
    if "norm" in type(module).__name__.lower() and all(p.dim() == 1 for p in own.values()):
        return "norm", [own["weight"]] if "weight" in own else []
    if "expert" in type(module).__name__.lower() or hasattr(module, "num_experts"):
        stacked: list[Weight] = [p for p in own.values() if p.dim() == 3]
        if stacked:
            return "experts", stacked
    # Routers and linear layers of a model's own class. Position tables have other names.
    return "other", [p for name, p in own.items() if p.dim() > 1 and "weight" in name]


def _counts(
    module: Any, weights: list[Weight], zeros_of: Callable[[Tensor], int]
) -> tuple[int, int, int]:
    """Elements and zeros of weights, and elements of the biases of sparse layers."""
    count = zeros = biases = 0
    for weight in weights:
        if isinstance(weight, SparseLinear):
            elements = weight.in_features * weight.out_features
            zeros += elements - weight.packed.nnz
            biases += 0 if weight.bias is None else weight.bias.numel()
        else:
            elements = weight.numel()
            zeros += zeros_of(weight)
        count += elements
    network = module.network if isinstance(module, SparseRNNCellBase) else module
    if isinstance(network, SparseRNNBase):  # its layers are padded with rows of zeros
        padded, gates = count, network.gates * network.hidden_size
        parts = network.named_children()
        layers = {name: part for name, part in parts if isinstance(part, SparseLinear)}
        count = sum(
            (layer.out_features if name.startswith("hr") else gates) * layer.in_features
            for name, layer in layers.items()
        )
        zeros -= padded - count
        biases = 2 * gates * network.num_layers * network.directions if network.bias else 0
    return count, zeros, biases


def _used(model: nn.Module, modules: dict[str, nn.Module], name: str, kind: str, count: int) -> int:
    """How many of a module's weights one token is multiplied by."""
    for prefix in prefixes(name):
        is_experts = prefix == name and kind == "experts"
        if prefix == name and not is_experts:
            break
        if is_experts or prefix.rpartition(".")[2] == "experts":
            experts = _experts(modules[prefix])
            return count * _top_k(model, modules, prefix, experts) // experts
    return count


def _experts(module: Any) -> int:
    """How many experts a module has: by its attribute, lists of layers, or fused parameters."""
    if count := getattr(module, "num_experts", 0):
        return int(count)
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return len(module)
    parts = [*module.children(), *module.parameters(recurse=False)]
    return max((len(p) for p in parts if isinstance(p, nn.ModuleList | Tensor)), default=1)


def _top_k(model: nn.Module, modules: dict[str, nn.Module], name: str, experts: int) -> int:
    """How many experts are chosen for a token; all of them where no attribute has the number."""
    parent = modules[name.rpartition(".")[0]]
    for owner in (modules[name], parent, *parent.children(), getattr(model, "config", None)):
        for attribute in TOP_K:
            found = getattr(owner, attribute, None)
            if isinstance(found, int) and 0 < found <= experts:
                return found
    return experts


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
