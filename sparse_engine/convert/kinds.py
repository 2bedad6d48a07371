"""The classes of modules that have a sparse counterpart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sparse_engine.modules.cut_attention import CutMultiheadAttention
from sparse_engine.modules.experts import DOWN, is_experts
from sparse_engine.nn import (
    SparseConv1d,
    SparseExperts,
    SparseMultiheadAttention,
    SparseTransformerDecoderLayer,
    SparseTransformerEncoderLayer,
)
from sparse_engine.nn.recurrent.cells import CELLS
from sparse_engine.nn.recurrent.networks import NETWORKS


@dataclass(frozen=True)
class Kind:
    """A class of modules that has a sparse counterpart.

    Attributes:
        name: in the report.
        dense: the class of torch; of experts, whose classes are many, torch.nn.Module.
        sparse: the class that replaces it.
        marker: a submodule that only the sparse module has. Its name in a package says that the
            module is a sparse one there.
    """

    name: str
    dense: type[nn.Module]
    sparse: Any
    marker: str

    @property
    def is_container(self) -> bool:
        """Whether it contains modules of other kinds, which may be replaced without it."""
        return self.name.endswith("layer")

    @property
    def uniform(self) -> bool:
        """Whether all its linear layers get one format."""
        return self.name in ("conv", "experts")

    @property
    def packed_whole(self) -> bool:
        """Whether its weights are packed together, rather than layer by layer."""
        return self.name in ("recurrent", "cell")

    def unpacked(self, module: Any) -> Any:
        """The sparse counterpart of `module`, with dense views of its weights.

        Recurrent networks and cells have no weights yet.

        Raises:
            UsageError: `module` has options that the sparse class does not have.
        """
        if self.packed_whole:
            return self.sparse.like(module, device="meta")
        return self.sparse.unpacked(module)


# Containers come first: an encoder layer before the attention in it.
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
    Kind("attention", CutMultiheadAttention, SparseMultiheadAttention, "q_proj"),
    Kind("conv", nn.Conv1d, SparseConv1d, "linears.0"),
    *(Kind("recurrent", dense, sparse, "hh_l0") for dense, sparse in NETWORKS.items()),
    *(Kind("cell", dense, sparse, "network.hh_l0") for dense, sparse in CELLS.items()),
)
EXPERTS = Kind("experts", nn.Module, SparseExperts, f"{DOWN}.0")
SPARSE_CLASSES = tuple(kind.sparse for kind in (*KINDS, EXPERTS))


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module, by its exact class: subclasses may compute in their own way."""
    found = next((kind for kind in KINDS if type(module) is kind.dense), None)
    return EXPERTS if found is None and is_experts(module) else found


def base_kind_of(module: nn.Module) -> Kind | None:
    """The kind of which `module` is an instance, also by a subclass."""
    return next((kind for kind in KINDS if isinstance(module, kind.dense)), None)
