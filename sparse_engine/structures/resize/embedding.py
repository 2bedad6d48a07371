"""torch.nn.Embedding: features are rows of a layer, entries are its columns."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.structures.resize.base import Kept, select


def matches(module: nn.Module) -> bool:
    """Whether the module is an embedding."""
    return isinstance(module, nn.Embedding)


def resize(module: Any, kept: dict[str, Kept]) -> None:
    """Keep features (rows) and entries (columns) of the embedding, whose own name is ""."""
    of = kept[""]
    module.weight = select(select(module.weight, 1, of.rows), 0, of.columns)
    module.num_embeddings, module.embedding_dim = module.weight.shape
