"""Which modules have a sparse twin, how one is made of dense views, and when it is slower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparse_engine.backends import backend_of
from sparse_engine.modules.experts import DOWN, is_experts, is_transposed
from sparse_engine.nn import (
    SparseConv1d,
    SparseExperts,
    SparseMultiheadAttention,
    SparseTransformerDecoderLayer,
    SparseTransformerEncoderLayer,
)
from sparse_engine.nn.recurrent.cells import CELLS
from sparse_engine.nn.recurrent.networks import NETWORKS

# Groups of a convolution narrower than this stay dense: a product for each costs more than it saves.
MIN_GROUP = 8


@dataclass(frozen=True)
class Kind:
    """A class of modules that has a sparse twin.

    mark: a submodule that the twin has and the dense module has not; its name in a package says
    that the twin was packed.
    """

    name: str
    dense: type[nn.Module]
    sparse: Any
    mark: str

    @property
    def holds(self) -> bool:
        """Whether layers of other kinds lie in it, which may be swapped without it."""
        return self.name.endswith("layer")

    @property
    def uniform(self) -> bool:
        """Whether all its parts get one format."""
        return self.name in ("conv", "experts")

    @property
    def whole(self) -> bool:
        """Whether its weights are packed together, rather than part by part."""
        return self.name in ("recurrent", "cell")


# What holds others comes first: an encoder layer before the attention in it.
KINDS = (
    Kind(
        "encoder layer",
        nn.TransformerEncoderLayer,
        SparseTransformerEncoderLayer,
        "self_attn.q_proj",
    ),
    Kind(
        "decoder layer",
        nn.TransformerDecoderLayer,
        SparseTransformerDecoderLayer,
        "self_attn.q_proj",
    ),
    Kind("attention", nn.MultiheadAttention, SparseMultiheadAttention, "q_proj"),
    Kind("conv", nn.Conv1d, SparseConv1d, "linears.0"),
    *(Kind("recurrent", dense, sparse, "hh_l0") for dense, sparse in NETWORKS.items()),
    *(Kind("cell", dense, sparse, "network.hh_l0") for dense, sparse in CELLS.items()),
)
EXPERTS = Kind("experts", nn.Module, SparseExperts, f"{DOWN}.0")
TWINS = tuple(kind.sparse for kind in (*KINDS, EXPERTS))


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that has a twin; subclasses compute in their own way and have none."""
    found = next((kind for kind in KINDS if type(module) is kind.dense), None)
    return EXPERTS if found is None and is_experts(module) else found


def ancestor_of(module: nn.Module) -> Kind | None:
    """The kind that `module` is a subclass of, for saying why it stays."""
    return next((kind for kind in KINDS if isinstance(module, kind.dense)), None)


def like(kind: Kind, module: Any) -> Any:
    """The twin of `module` with dense views of its weights; of recurrent networks without any.

    Raises UsageError for options that the twin does not have.
    """
    if kind.whole:
        return kind.sparse.like(module, device="meta")
    return kind.sparse.like(module)


def above(name: str) -> list[str]:
    """A dotted name and those of the modules that hold it, without the model's own ""."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def too_narrow(module: nn.Module) -> str:
    """Why a convolution in groups stays dense; "" if its groups are wide enough."""
    if isinstance(module, nn.Conv1d) and module.groups > 1:
        width = module.out_channels // module.groups
        if width < MIN_GROUP:
            return f"{module.groups} groups of {width} channels, no gain below {MIN_GROUP}"
    return ""


def tokens_of(kind: Kind, module: Any, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens that a part of the twin gets where the module gets `tokens`: of experts the share of
    one, two being chosen for each token.
    """
    if kind is not EXPERTS:
        return tokens
    experts = len(module._parameters[DOWN])
    return tuple(sorted({max(1, 2 * count // experts) for count in tokens}))


@torch.inference_mode()
def faster(
    kind: Kind, dense: nn.Module, twin: nn.Module, tokens: tuple[int, ...]
) -> tuple[bool, str]:
    """Whether `twin` takes less time than `dense`, summed over the token counts; and the times."""
    training = {m: m.training for m in (*dense.modules(), *twin.modules())}
    dense.eval()
    twin.eval()
    total = [0.0, 0.0]
    for count in tokens:
        inputs = _inputs(kind, dense, count)
        calls = {"dense": lambda i=inputs: dense(*i), "sparse": lambda i=inputs: twin(*i)}
        times = backend_of(inputs[0]).time(calls, inputs[0].device, inputs[:1])
        for i, name in enumerate(calls):
            total[i] += times[name] / 1e6
    for m, was in training.items():
        m.training = was
    counts = ", ".join(map(str, tokens))
    told = f"{counts} tokens: dense {total[0] * 1e6:.0f} us, sparse {total[1] * 1e6:.0f} us"
    return total[1] < total[0], told


def _inputs(kind: Kind, module: Any, tokens: int) -> tuple[Any, ...]:
    """What the module is called with for one sequence of `tokens`."""
    weight = next(p for p in module.parameters() if p.dim() > 1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=weight.device).to(weight.dtype)

    if kind.name == "conv":
        reach = module.dilation[0] * (module.kernel_size[0] - 1) + 1
        return (random(1, module.in_channels, (tokens - 1) * module.stride[0] + reach),)
    if kind is EXPERTS:
        down = module._parameters[DOWN]
        experts, width = len(down), down.shape[2 if is_transposed(module) else 1]
        index = torch.stack([torch.randperm(experts)[: min(2, experts)] for _ in range(tokens)])
        return random(tokens, width), index.to(weight.device), random(*index.shape)
    attention = module if kind.name == "attention" else module.self_attn
    shape = (1, tokens) if attention.batch_first else (tokens, 1)
    x = random(*shape, attention.embed_dim)
    if kind.name == "encoder layer":
        return (x,)
    if kind.name == "decoder layer":
        return x, x
    return x, random(*shape, module.kdim), random(*shape, module.vdim), None, False
